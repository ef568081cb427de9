"""Telling whole checkpoints from damaged ones, before anything is loaded from them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from colossal_llama.checkpoint.folders import RUNNING_STATES, checkpoint_folders, progress_of
from colossal_llama.checkpoint.manifest import find_faults, read_manifest, share_of_files
from colossal_llama.checkpoint.masters import MODELING
from colossal_llama.constants import MANIFEST_FILE
from colossal_llama.distributed.agreement import gather
from colossal_llama.errors import UserError

GB = 1e9


@dataclass(frozen=True)
class Verifier:
    """Reads checkpoints, each file on one of the ranks. Every method is collective.

    Attributes:
        rank, world_size: of this process.
        say: prints a line on one rank.
    """

    rank: int
    world_size: int
    say: Callable[[str], None]

    def find_faults(self, folder: Path) -> list[str]:
        """What is damaged or missing in a checkpoint, one line a file; the same on all ranks."""
        started = time.perf_counter()
        faults = missing_parts(folder)
        if not faults and (folder / MANIFEST_FILE).is_file():
            try:
                files = read_manifest(folder)
            except (OSError, ValueError) as error:
                faults = [f"{MANIFEST_FILE}: {error}"]
            else:
                faults = find_faults(folder, files, share_of_files(files, self.rank, self.world_size))
        faults = list(dict.fromkeys(fault for part in gather(faults) for fault in part))
        if not faults:
            self._report(folder, time.perf_counter() - started)
        return faults

    def require_whole(self, folder: Path) -> None:
        """Refuse a damaged checkpoint.

        Raises:
            UserError: names a damaged file, and the newest earlier checkpoint beside it that is whole.
        """
        faults = self.find_faults(folder)
        if not faults:
            return
        earlier = [one for one in self._folders(folder.parent) if progress_of(one) < progress_of(folder)]
        other = self._newest_whole(earlier)
        advice = (
            f"the newest earlier checkpoint that is whole is {other}: resume it with --load_checkpoint {other}"
            if other is not None
            else "no earlier checkpoint beside it is whole"
        )
        raise UserError(f"--load_checkpoint {folder}: damaged, {_summary(faults)}; {advice}")

    def newest_whole(self, save_dir: Path) -> Path | None:
        """The newest checkpoint in ``save_dir`` that is whole; damaged ones are skipped aloud. None: there is none."""
        return self._newest_whole(self._folders(save_dir))

    def _folders(self, save_dir: Path) -> list[Path]:
        # What rank 0 sees holds for all: a shared file system may look different on other nodes for a moment.
        return gather(checkpoint_folders(save_dir))[0]

    def _newest_whole(self, folders: list[Path]) -> Path | None:
        for folder in reversed(folders):
            faults = self.find_faults(folder)
            if not faults:
                return folder
            self.say(f"skipped {folder}: damaged, {_summary(faults)}")
        return None

    def _report(self, folder: Path, seconds: float) -> None:
        if not (folder / MANIFEST_FILE).is_file():
            self.say(f"{folder} has no {MANIFEST_FILE} (an earlier version wrote it): its files cannot be verified")
            return
        files = read_manifest(folder)
        size = sum(record.size for record in files.values()) / GB
        self.say(f"verified {folder}: {len(files)} files, {size:.3f} GB in {seconds:.1f} s")


def missing_parts(folder: Path) -> list[str]:
    """What is evidently wrong with a checkpoint, without reading its tensors."""
    if not (folder / MANIFEST_FILE).is_file():
        if not (folder / RUNNING_STATES).is_file():
            return [f"{RUNNING_STATES}: missing"]
        try:
            states = json.loads((folder / RUNNING_STATES).read_text(encoding="utf-8"))
            expected = states.get("manifest") if isinstance(states, dict) else None
        except (OSError, ValueError, RecursionError) as error:
            return [f"{RUNNING_STATES}: damaged ({error})"]
        if expected is not None:
            return [f"{expected}: missing"]
        return [] if (folder / MODELING).is_dir() else [f"{MODELING}: missing"]
    return []


def _summary(faults: list[str]) -> str:
    return faults[0] + (f" (and {len(faults) - 1} more)" if len(faults) > 1 else "")
