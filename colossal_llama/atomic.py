"""Outputs that are either complete or absent: written under a temporary name, renamed at the end."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from colossal_llama.errors import UserError


def refuse_existing(target: Path, flag: str, overwrite: bool) -> None:
    """Refuse to write over something that exists, before any work is done.

    Raises:
        UserError: ``target`` exists, is not an empty folder, and ``overwrite`` is off.
    """
    if overwrite or not target.exists():
        return
    if target.is_dir() and not any(target.iterdir()):
        return
    raise UserError(f"{flag} {target} already exists; choose another folder or add --overwrite to replace it")


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a fresh sibling folder that becomes ``target`` on success and vanishes on any error.

    An older ``target`` is replaced only after the new one is complete; call :func:`refuse_existing` first
    where that must not happen.
    """
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        yield scratch
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    publish_directory(scratch, target)


def publish_directory(scratch: Path, target: Path) -> None:
    """Rename ``scratch`` to ``target``, replacing what was there."""
    retired = target.with_name(f".{target.name}.old-{os.getpid()}")
    shutil.rmtree(retired, ignore_errors=True)
    if target.exists():
        target.rename(retired)
    scratch.rename(target)
    shutil.rmtree(retired, ignore_errors=True)
