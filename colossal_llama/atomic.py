"""Outputs that are either complete or absent: written under a temporary name, renamed at the end."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from colossal_llama.errors import FULL, UserError, explain_os_error, system_error

MODEL_FOLDER_SUFFIXES = (".json", ".model", ".safetensors", ".bin", ".txt", ".jinja", ".md", ".py")


def is_model_folder_entry(entry: Path) -> bool:
    """Whether a file looks like one of a Hugging Face model or tokenizer folder."""
    return entry.is_file() and entry.suffix in MODEL_FOLDER_SUFFIXES


def refuse_existing(
    target: Path, flag: str, overwrite: bool, is_ours: Callable[[Path], bool] = is_model_folder_entry
) -> None:
    """Refuse to write over something that exists, before any work is done.

    Args:
        target: folder that is to be written.
        flag: the flag that named it, for messages.
        overwrite: replace an older output.
        is_ours: tells entries of such an output from others, which ``overwrite`` must not delete.

    Raises:
        UserError: ``target`` is a file, or a folder that holds something: without ``overwrite`` anything, with it
            anything that no such output holds.
    """
    if not target.exists():
        refuse_unwritable(target, flag)
        return
    if not target.is_dir():
        raise UserError(f"{flag} {target}: is a file; give a folder")
    entries = sorted(target.iterdir())
    if entries and not overwrite:
        raise UserError(f"{flag} {target} already exists; choose another folder or add --overwrite to replace it")
    strangers = [entry.name for entry in entries if not is_ours(entry)]
    if strangers:
        raise UserError(
            f"{flag} {target}: --overwrite would delete {strangers[0]!r}, which this command does not write; "
            "name another folder"
        )
    refuse_unwritable(target.parent, f"{flag}: the folder")


def refuse_existing_file(target: Path, flag: str, overwrite: bool) -> None:
    """Refuse a file that exists or could not be written, before any work is done.

    Args:
        target: file that is to be written.
        flag: the flag that named it, for messages.
        overwrite: replace an older one.

    Raises:
        UserError: it is a folder, exists and ``overwrite`` is not set, or its folder cannot be written.
    """
    if target.is_dir():
        raise UserError(f"{flag} {target}: is a folder; give a file")
    if target.exists() and not overwrite:
        raise UserError(f"{flag} {target} already exists; choose another file or add --overwrite")
    refuse_unwritable(target.parent, f"{flag}: the folder")


def refuse_unwritable(folder: Path, flag: str) -> None:
    """Refuse a folder that could not be made or written to, before any work is done.

    Args:
        folder: that is to be written to; it is not made.
        flag: the flag that named it, for messages.

    Raises:
        UserError: it is a file or lies below one, or nothing may be written there.
    """
    try:
        nearest = next(one for one in (folder, *folder.parents) if one.exists())
    except OSError as error:
        raise UserError(f"{flag} {folder}: cannot be written ({error.strerror}); give another folder") from error
    if not nearest.is_dir():
        what = "is a file" if nearest == folder else f"{nearest} is a file"
        raise UserError(f"{flag} {folder}: {what}; give another folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {folder}: nothing may be written into {nearest}; give another folder")


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a fresh sibling folder that becomes ``target`` on success and vanishes on any error, with new parents.

    An older ``target`` is replaced only after the new one is complete; call :func:`refuse_existing` first
    where that must not happen.

    Raises:
        UserError: the disk is full, or nothing may be written there.
    """
    given, target = target, target.resolve()
    made = [parent for parent in target.parents if not parent.exists()]
    scratch = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        yield scratch
        publish_directory(scratch, target)
    except BaseException as error:
        shutil.rmtree(scratch, ignore_errors=True)
        for parent in made:
            with suppress(OSError):  # someone else has put something there
                parent.rmdir()
        reason = _why_not_written(error, target.parent)
        if reason is not None:
            raise UserError(f"{given}: cannot be written ({reason})") from error
        raise


def _why_not_written(error: BaseException, folder: Path) -> str | None:
    """Why nothing could be written below ``folder``; None where ``error`` says something else."""
    found = system_error(error)
    if found is None:
        return None
    # Of a full disk, copyfile names the file that it reads.
    below = found.filename is not None and os.path.abspath(os.fsdecode(found.filename)).startswith(str(folder))
    return explain_os_error(found) if found.errno in FULL or below else None


def _current_umask() -> int:
    mask = os.umask(0o077)  # there is no other way to read it
    os.umask(mask)
    return mask


_UMASK = _current_umask()


def _open_to_readers(folder: Path) -> None:
    """Give weights the permissions of any new file: safetensors 0.8 leaves them readable for their owner only."""
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o666 & ~_UMASK)


@contextmanager
def scratch_beside(target: Path) -> Iterator[Path]:
    """The name of a file to write, which becomes ``target`` on success and vanishes on any error; parents are made.

    Raises:
        UserError: it cannot be written there.
    """
    scratch = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield scratch
        scratch.replace(target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({explain_os_error(error)})") from error
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)


@contextmanager
def atomic_file(target: Path) -> Iterator[TextIO]:
    """Yield a text file (UTF-8) that becomes ``target`` on success and vanishes on any error; parents are made.

    An older ``target`` is replaced only after the new one is complete.

    Raises:
        UserError: it cannot be written there.
    """
    with scratch_beside(target) as scratch, scratch.open("w", encoding="utf-8", newline="\n") as file:
        yield file


def publish_directory(scratch: Path, target: Path) -> None:
    """Rename ``scratch`` to ``target``, replacing what was there."""
    _open_to_readers(scratch)
    retired = _retired_name(target)
    shutil.rmtree(retired, ignore_errors=True)
    if target.exists():
        target.rename(retired)
    scratch.rename(target)
    shutil.rmtree(retired, ignore_errors=True)


def remove_directory(folder: Path) -> None:
    """Delete a folder so that it is never seen half deleted under its name."""
    retired = _retired_name(folder)
    shutil.rmtree(retired, ignore_errors=True)
    folder.rename(retired)
    shutil.rmtree(retired, ignore_errors=True)


def _retired_name(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old-{os.getpid()}")


def write_text_atomically(path: Path, text: str, errors: str = "strict") -> None:
    """Write a UTF-8 text file that is complete or as it was; missing parent folders are made.

    Args:
        path: the file.
        text: its content.
        errors: what to do with characters that UTF-8 has not, as in ``str.encode``.

    Raises:
        UserError: it cannot be written there.
    """
    with scratch_beside(path) as scratch:
        scratch.write_text(text, encoding="utf-8", errors=errors)


def flush_file(path: Path) -> None:
    """Return when the file's content is on the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_directory(folder: Path) -> None:
    """Return when the folder's entries are on the disk, where its file system can tell."""
    try:
        flush_file(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise


def flush_tree(folder: Path) -> None:
    """Return when ``folder`` and everything below it is on the disk."""
    for path in folder.rglob("*"):
        flush_directory(path) if path.is_dir() else flush_file(path)
    flush_directory(folder)
