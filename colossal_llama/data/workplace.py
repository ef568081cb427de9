"""Where a preparation does its work: found again by the same command after a kill, and by no other.

Beside the arrow folder that is to be made stands a note, ``.arrow.prepare-<identity>.json``, from before the first
file of the work is written until after the last one is removed. Its first line names the folders in use and those
that had to be made to hold them; a second one, the manifest's digest, says that everything is made and only needs to
be published. Whoever works holds a lock on the note, so that a note without a lock belongs to a preparation that was
killed.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from colossal_llama.atomic import publish_directory
from colossal_llama.constants import MANIFEST_FILE
from colossal_llama.data.engines import WorkerLostError
from colossal_llama.data.input_files import InputFile
from colossal_llama.data.job import PrepareJob
from colossal_llama.data.manifest import FORMAT_VERSION
from colossal_llama.data.shards import TokenizeSetup
from colossal_llama.errors import UserError

_NOTE_SUFFIX = ".json"


@dataclass(frozen=True)
class Workplace:
    """Folders of one preparation, the same for every run of the same command.

    Attributes:
        scratch: shards, document lists and counts; below ``--data_cache_dir``.
        arrow, jsonl: the outputs under temporary names, beside their targets.
        arrow_target, jsonl_target: where they are published.
        note: file that says who works here.
    """

    scratch: Path
    arrow: Path
    jsonl: Path | None
    arrow_target: Path
    jsonl_target: Path | None
    note: Path

    def is_complete(self) -> bool:
        """Whether an earlier run made everything and was killed while it published or tidied up."""
        digest = _read_note(self.note).digest
        made = self.arrow if self.arrow.exists() else self.arrow_target
        jsonl_is_there = (
            self.jsonl is None or self.jsonl.exists() or bool(self.jsonl_target and _holds(self.jsonl_target))
        )
        return digest is not None and digest == _manifest_digest(made) and jsonl_is_there

    def complete(self) -> None:
        """Note that everything is made; from now on the same command only publishes it."""
        with self.note.open("a", encoding="utf-8") as file:
            file.write(f"{_manifest_digest(self.arrow)}\n")

    def publish(self) -> Path:
        """Rename what is not published yet, the arrow folder last, because training looks for that.

        Returns:
            The published arrow folder.
        """
        if self.jsonl is not None and self.jsonl_target is not None and self.jsonl.exists():
            publish_directory(self.jsonl, self.jsonl_target)
        if self.arrow.exists():
            publish_directory(self.arrow, self.arrow_target)
        for target in filter(None, (self.arrow_target, self.jsonl_target)):
            # An older output that a killed run had moved out of the way: nobody else publishes here meanwhile.
            for retired in _entries(target.parent, f".{target.name}.old-"):
                shutil.rmtree(retired, ignore_errors=True)
        return self.arrow_target

    def remove(self) -> None:
        """Remove everything that is not published, the note last."""
        _remove(self.folders(), _read_note(self.note).made, self.note)

    def folders(self) -> list[Path]:
        """The folders that are in use."""
        return [folder for folder in (self.scratch, self.arrow, self.jsonl) if folder is not None]


def workplace_of(job: PrepareJob, setup: TokenizeSetup, files: list[list[InputFile]], shard_bytes: int) -> Workplace:
    """The workplace of a job; nothing is created."""
    identity = _identity(job, setup, files, shard_bytes)
    arrow_target = job.arrow_dir.resolve()
    jsonl_target = None if job.jsonl_dir is None else job.jsonl_dir.resolve()
    return Workplace(
        scratch=job.cache_dir.resolve() / f"prepare-{identity}",
        arrow=_hidden(arrow_target, identity),
        jsonl=None if jsonl_target is None else _hidden(jsonl_target, identity),
        arrow_target=arrow_target,
        jsonl_target=jsonl_target,
        note=arrow_target.with_name(_hidden(arrow_target, identity).name + _NOTE_SUFFIX),
    )


def _hidden(target: Path, identity: str) -> Path:
    return target.with_name(f".{target.name}.prepare-{identity}")


def _identity(job: PrepareJob, setup: TokenizeSetup, files: list[list[InputFile]], shard_bytes: int) -> str:
    """A name for this preparation: equal for the same inputs, tokenizer, settings and program, else different."""
    facts = {
        "format": FORMAT_VERSION,
        "settings": asdict(job.settings),
        "tokenizer": hashlib.sha256((setup.spec.head_json + setup.spec.tail_json).encode()).hexdigest(),
        "template": None if job.template is None else job.template.jinja(),
        "outputs": [str(folder.resolve()) for folder in (job.arrow_dir, job.jsonl_dir) if folder is not None],
        "files": [[_file_state(file.path) for file in group] for group in files],
        "evaluation": [_file_state(path) for path in job.settings.screening.evaluation_files],
        "shard_bytes": shard_bytes,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _file_state(path: str) -> tuple[str, int, int]:
    """What changes when a file does."""
    state = Path(path).stat()
    return str(Path(path).resolve()), state.st_size, state.st_mtime_ns


@contextmanager
def open_workplace(place: Workplace) -> Iterator[None]:
    """Make the folders that the work is done in; kept when the disk fails or a process is killed, else removed.

    Folders that killed preparations with other flags left for the same output are removed first.

    Raises:
        UserError: the same preparation, or another one of the same output, is running.
    """
    made = _missing_parents([place.note])
    place.note.parent.mkdir(parents=True, exist_ok=True)
    with _locked(place.note) as note:
        _remove_abandoned(place)
        try:
            if not place.is_complete():
                _make_folders(place, note, [*_missing_parents(place.folders()), *made])
            yield
        except (OSError, WorkerLostError):
            if not _holds(place.scratch):  # nothing to go on with
                place.remove()
            raise
        except Exception:
            place.remove()
            raise
        else:
            place.remove()


def _missing_parents(paths: list[Path]) -> list[Path]:
    """Folders that must be made to hold these, deepest first."""
    wanted = {parent for path in paths for parent in path.parents}
    return sorted((folder for folder in wanted if not folder.exists()), key=lambda folder: -len(folder.parts))


def _make_folders(place: Workplace, note: TextIO, made: list[Path]) -> None:
    if place.scratch.exists():
        print(f"going on with what an earlier run left in {place.scratch}", flush=True)
    made += _read_note(place.note).made  # by the earlier run
    # Written over what the note said before, then cut: a kill in between leaves a first line that is whole. What
    # followed it (that all is made, which has gone since) is no longer so.
    note.seek(0)
    note.write(json.dumps({"folders": list(map(str, place.folders())), "made": list(map(str, made))}) + "\n")
    note.truncate()
    note.flush()
    for folder in place.folders():
        folder.mkdir(parents=True, exist_ok=True)


def _remove_abandoned(place: Workplace) -> None:
    """Remove what preparations with other flags left for the same output.

    Raises:
        UserError: one of them is running.
    """
    prefix = f".{place.arrow_target.name}.prepare-"
    for path in _entries(place.note.parent, prefix):
        if path.suffix != _NOTE_SUFFIX or path == place.note:
            continue
        try:
            with _locked(path):
                note, identity = _read_note(path), path.name.removeprefix(prefix).removesuffix(_NOTE_SUFFIX)
                # Whatever a note says, other folders than a preparation's stay.
                _remove([own for own in note.folders if own.name.endswith(f"prepare-{identity}")], note.made, path)
        except _HeldError as error:
            if not place.scratch.exists():
                place.note.unlink()
            raise UserError(
                f"{place.arrow_target}: another preparation of this folder is running, with other flags or input; wait "
                "for it or stop it"
            ) from error
        print(f"removed what a stopped preparation with other flags or input left beside {place.arrow_target}")


def _entries(folder: Path, prefix: str) -> list[Path]:
    """The entries of a folder whose names begin so."""
    return sorted(entry for entry in folder.iterdir() if entry.name.startswith(prefix)) if folder.is_dir() else []


def _remove(folders: list[Path], made: list[Path], note: Path) -> None:
    """Remove folders with their content, ``made`` where that leaves them empty, and the note last."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    _remove_empty(made)
    note.unlink(missing_ok=True)
    _remove_empty(made)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


@dataclass(frozen=True)
class _Note:
    """What a note says: folders in use, folders made to hold them, deepest first, and the digest if all is made."""

    folders: list[Path]
    made: list[Path]
    digest: str | None


def _read_note(path: Path) -> _Note:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        lines = []
    try:
        content = json.loads(lines[0])
        folders, made = ([Path(folder) for folder in content[name]] for name in ("folders", "made"))
    except (IndexError, ValueError, TypeError, KeyError):  # killed before it was written
        return _Note([], [], None)
    return _Note(folders, made, lines[1] if len(lines) > 1 else None)


def _manifest_digest(folder: Path) -> str | None:
    path = folder / MANIFEST_FILE
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _holds(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


class _HeldError(UserError):
    """Another process holds the lock."""


@contextmanager
def _locked(path: Path) -> Iterator[TextIO]:
    """Hold a lock on a file, which ends with the process; the file is made if it is not there.

    Raises:
        _HeldError: another process holds it.
    """
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Else the one who held it has just removed the file, and a lock on nothing keeps nobody out.
            held = not path.exists() or os.stat(path).st_ino != os.fstat(file.fileno()).st_ino
        except BlockingIOError:
            held = True
        if held:
            raise _HeldError(f"{path}: the same preparation is running already; wait for it or stop it")
        yield file
