"""The files that inputs name, and those that are passed over: one set of rules for every command that reads texts."""

import glob
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from colossal_llama.constants import MANIFEST_FILE
from colossal_llama.errors import UserError

JSONL, JSON, TXT, PARQUET, ARROW = "jsonl", "json", "txt", "parquet", "arrow"
_KIND_OF_ENDING = {"jsonl": JSONL, "ndjson": JSONL, "json": JSON, "txt": TXT, "parquet": PARQUET, "arrow": ARROW}
COMPRESSIONS = ("gz", "zst", "bz2", "xz")
"""Endings that may follow those of texts."""

_TEXTS = (JSONL, JSON, TXT)

_STATE_FILE = "state.json"
_DATASET_FILES = (_STATE_FILE, "dataset_info.json")
_DATASET_PARTS = "data-*-of-*.arrow"
"""What marks a folder of ``datasets.Dataset.save_to_disk``."""

_MAP_CACHE = re.compile(r"cache-[0-9a-f]{16}(_\d+_of_\d+)?\.arrow")
"""What ``Dataset.map`` keeps beside the files that it read."""

_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json")
_DOCUMENTATION = ("readme", "license", "licence", "notice", "copying", "changelog", "requirements")
_UNFINISHED = (".part", ".partial", ".tmp", ".temp", ".crdownload", ".incomplete", ".download", ".aria2", ".swp", "~")

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_HTML = (b"<!doctype html", b"<html")
_HEAD_BYTES = 256

_READABLE = (
    ".jsonl, .ndjson, .json and .txt files (also .gz, .zst, .bz2, .xz), .parquet, .arrow or a folder written by "
    "save_to_disk"
)


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file to read: its kind, such as :data:`JSONL`, and one of :data:`COMPRESSIONS` or ""."""

    path: str
    kind: str
    compression: str = ""

    @property
    def size(self) -> int:
        """Bytes on disk; the ``bytes_read`` of the file's slices add up to it."""
        return Path(self.path).stat().st_size


@dataclass
class FoundFiles:
    """What inputs name.

    Attributes:
        groups: the files of each input.
        not_read: reason of each file or folder that was passed over, by its path.
    """

    groups: list[list[InputFile]] = field(default_factory=list)
    not_read: dict[str, str] = field(default_factory=dict)

    def describe(self, most: int = 10) -> str:
        """The first files that were passed over with their reasons, on one line."""
        return describe_not_read(self.not_read, most)


def describe_not_read(not_read: dict[str, str], most: int = 10) -> str:
    """Files that were passed over with their reasons, on one line, at most so many by name."""
    shown = ", ".join(f"{path} ({reason})" for path, reason in list(not_read.items())[:most])
    return shown + (f", and {len(not_read) - most:,} more" if len(not_read) > most else "")


@dataclass(frozen=True)
class FileRules:
    """What is read.

    Attributes:
        flag: the flag that gave the inputs, for messages.
        recursive: read subfolders too.
        plain_text: read the ``.txt`` files of folders, of which each line is a text.
        unknown_is_text: a file of another ending that is named itself is plain text.
        may_repeat: an input may name a file of another one again; it is read once.
    """

    flag: str
    recursive: bool = False
    plain_text: bool = True
    unknown_is_text: bool = False
    may_repeat: bool = False


def find_input_files(specs: Sequence[str | Path], rules: FileRules) -> FoundFiles:
    """The files of all inputs, each file once whatever its names are.

    Raises:
        UserError: an input is missing or has nothing to read, two inputs share a file, a file is there both plain and
            compressed, or one is no data (a Git LFS pointer, a web page, a broken link).
    """
    found = FoundFiles()
    seen: dict[tuple[int, int], tuple[int, str]] = {}
    for number, spec in enumerate(specs):
        search = _Search(rules, found.not_read)
        files: dict[str, InputFile] = {}
        for file in search.files(spec):
            state = os.stat(file.path)
            owner, first = seen.setdefault((state.st_dev, state.st_ino), (number, file.path))
            if first == file.path and owner == number:
                files[first] = file
            elif owner != number and not rules.may_repeat:
                raise UserError(f"{rules.flag}: {specs[owner]} and {spec} both hold {file.path}; name it once")
            elif first != file.path:
                found.not_read[file.path] = f"the same file as {first}"
        for file in files.values():
            _refuse_what_is_no_data(file, rules.flag)
        _refuse_two_forms(files.values(), rules.flag)
        found.groups.append(list(files.values()))
    return found


def list_input_files(spec: str | Path, flag: str, recursive: bool = False) -> list[InputFile]:
    """The files that an input names, in sorted order.

    Args:
        spec: a file; a directory, which stands for the readable files directly in it (or below it too) or is itself
            a folder written by ``save_to_disk``; or a glob, in which ``**`` stands for any number of directories.
        flag: the flag that gave it, for messages.
        recursive: read subfolders too.

    Raises:
        UserError: as :func:`find_input_files`.
    """
    return find_input_files([spec], FileRules(flag, recursive)).groups[0]


def kind_of(path: Path) -> InputFile | None:
    """The file with its kind by its name; None for another ending."""
    name = path.name.lower()
    compression = next((ending for ending in COMPRESSIONS if name.endswith(f".{ending}")), "")
    ending = name.removesuffix(f".{compression}").rpartition(".")[2]
    kind = _KIND_OF_ENDING.get(ending) if "." in name else None
    if kind is None or (compression and kind not in _TEXTS):
        return None
    return InputFile(str(path), kind, compression)


@dataclass
class _Search:
    """Looks for the files of one input; notes what it passes over."""

    rules: FileRules
    not_read: dict[str, str]
    entered: set[Path] = field(default_factory=set)

    def files(self, spec: str | Path) -> list[InputFile]:
        path, flag = Path(spec), self.rules.flag
        if path.is_dir():
            before = len(self.not_read)
            files = list(self._folder(path))
            if not files:
                passed = list(self.not_read.items())[before:]
                why = f"; not read: {describe_not_read(dict(passed))}" if passed else ""
                raise UserError(f"{flag} {spec}: nothing to read in this directory; expected {_READABLE}{why}")
            return files
        if path.exists():
            file = kind_of(path)
            if file is None and self.rules.unknown_is_text:
                file = InputFile(str(path), TXT)
            if file is None or not path.is_file():
                raise UserError(f"{flag} {spec}: unknown kind of file; expected {_READABLE}")
            return [file]
        if path.is_symlink():
            raise UserError(f"{flag} {spec}: a link to a file that is not there; fetch the file")
        if not glob.has_magic(str(spec)):
            raise UserError(f"{flag} {spec}: no such directory or file")
        files = list(self._glob(str(spec)))
        if not files:
            raise UserError(f"{flag} {spec}: matches nothing that can be read; expected {_READABLE}")
        return files

    def _folder(self, folder: Path, inside: bool = False) -> Iterator[InputFile]:
        flag = self.rules.flag
        self.entered.add(folder.resolve())
        if _is_saved_dataset(folder):
            yield from self._dataset(folder)
            return
        if (folder / "dataset_dict.json").is_file():
            raise UserError(
                f"{flag} {folder}: holds several splits (dataset_dict.json); name one of its subdirectories"
            )
        if _is_prepared(folder):
            if not inside:
                raise UserError(f"{flag} {folder}: a prepared dataset; name raw texts, or train on it")
            self.not_read[str(folder)] = "a prepared dataset"
            return
        try:
            entries = sorted(folder.iterdir())
        except OSError as error:
            raise UserError(f"{flag} {folder}: cannot be read ({error.strerror})") from error
        folders = []
        for path in entries:
            if path.is_dir():
                folders.append(path)
            elif (file := self._of_folder(path)) is not None:
                yield file
        for path in folders:
            if path.name.startswith("."):
                self.not_read[str(path)] = "hidden"
            elif not self.rules.recursive:
                self.not_read[str(path)] = "a subfolder; --recursive reads it"
            elif path.resolve() in self.entered:
                self.not_read[str(path)] = "a link to a folder that is read already"
            else:
                yield from self._folder(path, inside=True)

    def _glob(self, pattern: str) -> Iterator[InputFile]:
        for path in sorted(Path(match) for match in glob.glob(pattern, recursive=True)):
            folder = path if path.is_dir() else path.parent
            if _is_saved_dataset(folder):
                # It is matched as a folder, through its files, or both.
                files = self._dataset(folder)
                yield from files if path.is_dir() else (file for file in files if Path(file.path) == path)
            elif path.is_dir():
                continue
            elif _is_prepared(folder):
                self.not_read[str(folder)] = "a prepared dataset"
            elif (file := self._of_folder(path)) is not None:
                yield file

    def _of_folder(self, path: Path) -> InputFile | None:
        """A file that is not named itself, if it is to be read."""
        file = kind_of(path)
        reason = self._why_not(path, file)
        if reason is not None:
            self.not_read[str(path)] = reason
            return None
        if path.is_symlink() and not path.exists():
            raise UserError(f"{self.rules.flag} {path}: a link to a file that is not there; fetch or remove it")
        return file

    def _why_not(self, path: Path, file: InputFile | None) -> str | None:
        name = path.name.lower()
        if name.startswith("."):
            return "hidden"
        if name.endswith(_UNFINISHED):
            return "an unfinished download or a scratch file"
        if name in _DESCRIPTIONS:
            return "describes a dataset"
        if _MAP_CACHE.fullmatch(name):
            return "a cache of the library datasets"
        if file is None:
            return "unknown ending"
        if path.exists() and not path.is_file():
            return "not a regular file"
        if file.kind == TXT and name.startswith(_DOCUMENTATION):
            return "documentation"
        if file.kind == TXT and not self.rules.plain_text:
            return "plain text, which is not of the format that is asked for"
        return None

    def _dataset(self, folder: Path) -> Iterator[InputFile]:
        """The arrow files of a saved dataset in the order of its state.json, which is the order of its rows."""
        files = _dataset_files(folder, self.rules.flag)
        listed = {Path(file.path).name for file in files} | set(_DATASET_FILES)
        for path in sorted(folder.iterdir()):
            if path.name not in listed:
                self.not_read[str(path)] = f"not of the dataset, by its {_STATE_FILE}"
        yield from files


def _is_saved_dataset(folder: Path) -> bool:
    """Whether it is one, perhaps with a damaged or lost ``state.json``, which reading then names."""
    if not (folder / "dataset_info.json").is_file():
        return False
    return os.path.lexists(folder / _STATE_FILE) or any(folder.glob(_DATASET_PARTS))


def _is_prepared(folder: Path) -> bool:
    """Whether a folder is the arrow folder of a preparation."""
    try:
        content = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"format_version", "tokenizer_fingerprint", "parts"} <= content.keys()


def _dataset_files(folder: Path, flag: str) -> list[InputFile]:
    try:
        state = json.loads((folder / _STATE_FILE).read_text(encoding="utf-8"))
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


def _refuse_what_is_no_data(file: InputFile, flag: str) -> None:
    try:
        with open(file.path, "rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except OSError as error:
        raise UserError(f"{file.path}: cannot be read ({error.strerror})") from error
    if head.startswith(_LFS_POINTER):
        raise UserError(f"{flag} {file.path}: a Git LFS pointer, not the file itself; run git lfs pull")
    if file.kind != TXT and head.lstrip().lower().startswith(_HTML):
        raise UserError(f"{flag} {file.path}: a web page, perhaps of a failed download; fetch the file again")


def _refuse_two_forms(files: Iterable[InputFile], flag: str) -> None:
    """Refuse a file that lies there plain and compressed, or compressed twice: it would be learned twice."""
    forms: dict[str, str] = {}
    for file in files:
        plain = file.path[: -len(file.compression) - 1] if file.compression else file.path
        other = forms.setdefault(plain, file.path)
        if other != file.path:
            raise UserError(
                f"{flag}: {other} and {file.path} look like two forms of one file, which would be read twice; remove "
                "or rename one"
            )
