"""The checkpoints in a ``--save_dir``: which there are, which may go, and what killed saves have left."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from colossal_llama.atomic import remove_directory

RUNNING_STATES = "running_states.json"

_NAME = re.compile(r"epoch-(\d+)_step-(\d+)")
_LEFTOVER = re.compile(r"\.(epoch-\d+_step-\d+|modeling|rehearsal)\.(tmp|old-\d+)")


def checkpoint_name(epoch: int, step: int) -> str:
    """Name of the folder of a checkpoint."""
    return f"epoch-{epoch}_step-{step}"


def progress_of(folder: Path) -> tuple[int, int]:
    """Epoch and step that a checkpoint's folder is named after; later checkpoints compare greater."""
    found = _NAME.fullmatch(folder.name)
    return (int(found[1]), int(found[2])) if found else (-1, -1)


def checkpoint_folders(save_dir: Path) -> list[Path]:
    """Folders with the name of a checkpoint, complete or not, oldest first."""
    found = [path for path in save_dir.glob("epoch-*_step-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=progress_of)


def existing_checkpoints(save_dir: Path) -> list[Path]:
    """Complete checkpoints in ``save_dir``, oldest first."""
    return [folder for folder in checkpoint_folders(save_dir) if (folder / RUNNING_STATES).is_file()]


def discard_checkpoints(save_dir: Path) -> None:
    """Delete all complete checkpoints in ``save_dir``."""
    for folder in existing_checkpoints(save_dir):
        remove_directory(folder)


def remove_leftovers(save_dir: Path) -> list[Path]:
    """Delete what killed saves have left, and return it; a folder that was being replaced gets its name back."""
    removed = []
    for path in save_dir.glob(".*"):
        if not (_LEFTOVER.fullmatch(path.name) and path.is_dir()):
            continue
        name, kind = path.name[1:].split(".")
        if kind.startswith("old-") and not (save_dir / name).exists():
            path.rename(save_dir / name)
        else:
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path)
    return removed


def remove_empty_folders(folder: Path) -> None:
    """Delete the empty folders below ``folder``."""
    for path in sorted(folder.rglob("*"), reverse=True):  # what lies in a folder sorts behind it
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay.

    Attributes:
        keep_last: how many of the newest; 0 for all.
        keep_every: also those whose number of optimizer steps is a multiple of this; 0 for none.
    """

    keep_last: int = 0
    keep_every: int = 0

    def expendable(self, newest: Path) -> list[Path]:
        """The checkpoints beside ``newest``, which is whole, that may be deleted; never ``newest`` itself.

        Later ones belong to a run that went on from the same checkpoint before: they stay, and so does a checkpoint
        that does not say how many steps it has.
        """
        if not self.keep_last:
            return []
        older = [one for one in existing_checkpoints(newest.parent) if progress_of(one) <= progress_of(newest)]
        return [folder for folder in older[: -self.keep_last] if folder != newest and not self._is_milestone(folder)]

    def _is_milestone(self, folder: Path) -> bool:
        try:
            steps = int(json.loads((folder / RUNNING_STATES).read_text(encoding="utf-8"))["global_step"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return True
        return self.keep_every > 0 and steps % self.keep_every == 0
