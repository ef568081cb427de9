"""The files that an input names: files of known endings, directories, globs, saved datasets."""

import glob
import json
from dataclasses import dataclass
from pathlib import Path

from colossal_llama.errors import UserError

JSONL, GZIP, ZSTD, JSON, PARQUET, ARROW = "jsonl", "jsonl.gz", "jsonl.zst", "json", "parquet", "arrow"
KINDS = (JSONL, GZIP, ZSTD, JSON, PARQUET, ARROW)
"""The kinds of input files, which are also the ends of their names."""

_DATASET_FILES = ("state.json", "dataset_info.json")
"""What marks a folder of ``datasets.Dataset.save_to_disk``, beside its arrow files."""

_READABLE = ", ".join(f".{kind}" for kind in KINDS) + " files or a folder written by save_to_disk"


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file to read; ``kind`` is one of :data:`KINDS`."""

    path: str
    kind: str

    @property
    def size(self) -> int:
        """Bytes on disk; the ``bytes_read`` of the file's slices add up to it."""
        return Path(self.path).stat().st_size


def list_input_files(spec: str | Path, flag: str) -> list[InputFile]:
    """The files that an input names, in sorted order.

    Args:
        spec: a file; a directory, which stands for the readable files directly in it or is itself a folder
            written by ``save_to_disk``; or a glob, in which ``**`` stands for any number of directories.
        flag: the flag that gave it, for messages.

    Raises:
        UserError: nothing is there, nothing of it can be read, or a file has an unknown ending.
    """
    path = Path(spec)
    if path.is_dir():
        files = _directory_files(path, flag)
        if not files:
            raise UserError(
                f"{flag} {spec}: nothing to read in this directory; expected {_READABLE} "
                f"(subdirectories are not read; {path / '**' / '*.jsonl'} would)"
            )
        return files
    if path.exists():
        kind = _kind(path)
        if kind is None:
            raise UserError(f"{flag} {spec}: unknown kind of file; expected {_READABLE}")
        return [InputFile(str(path), kind)]
    if not glob.has_magic(str(spec)):
        raise UserError(f"{flag} {spec}: no such directory or file")
    files = _glob_files(str(spec), flag)
    if not files:
        raise UserError(f"{flag} {spec}: matches nothing that can be read; expected {_READABLE}")
    return files


def _kind(path: Path) -> str | None:
    name = path.name.lower()
    return next((kind for kind in KINDS if name.endswith(f".{kind}")), None)


def _is_saved_dataset(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _DATASET_FILES)


def _directory_files(folder: Path, flag: str) -> list[InputFile]:
    if _is_saved_dataset(folder):
        return _dataset_files(folder, flag)
    if (folder / "dataset_dict.json").is_file():
        raise UserError(f"{flag} {folder}: holds several splits (dataset_dict.json); name one of its subdirectories")
    found = [(path, _kind(path)) for path in sorted(folder.iterdir())]
    for path, kind in found:
        if kind is not None and not path.is_file():
            what = "a folder" if path.is_dir() else "a link to a file that is missing"
            raise UserError(f"{flag} {path}: is {what}; mend it or take it out of the folder")
    return [InputFile(str(path), kind) for path, kind in found if kind is not None]


def _dataset_files(folder: Path, flag: str) -> list[InputFile]:
    """The arrow files of a saved dataset in the order of its state.json, which is the order of its rows."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        names = [str(entry["filename"]) for entry in state["_data_files"]]
        indices = state.get("_indices_files") or state.get("_indices_data_files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{flag} {folder}: its state.json is not that of a saved dataset ({error})") from error
    if indices:
        raise UserError(f"{flag} {folder}: saved with an indices file; call flatten_indices() and save_to_disk again")
    for name in names:
        if not (folder / name).is_file():
            raise UserError(f"{flag} {folder}: {name}, which its state.json names, is missing; save it again")
    return [InputFile(str(folder / name), ARROW) for name in names]


def _glob_files(pattern: str, flag: str) -> list[InputFile]:
    found: dict[str, InputFile] = {}
    for path in sorted(Path(match) for match in glob.glob(pattern, recursive=True)):
        files: list[InputFile] = []
        if path.is_dir():
            files = _dataset_files(path, flag) if _is_saved_dataset(path) else []
        elif not (path.name in _DATASET_FILES and _is_saved_dataset(path.parent)):
            kind = _kind(path)
            files = [] if kind is None else [InputFile(str(path), kind)]
        # A saved dataset is matched as a folder and through its files.
        found |= {file.path: file for file in files}
    return list(found.values())
