"""Reading folders of .jsonl files, in slices that can be read in parallel.

A slice is a byte range that starts and ends at line ends, so any process can read it alone and still knows
the line numbers. Lines end at ``\\n`` only: U+2028 and its like are ordinary characters of a JSON string.
"""

import codecs
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from colossal_llama.errors import UserError

SLICE_BYTES = 1 << 20
"""Size of a slice. It fixes the unit of work, not the result: a line longer than this stays whole."""


@dataclass(frozen=True, slots=True)
class FileSlice:
    """The bytes ``start:end`` of a file, whole lines; ``first_line`` counts from 1."""

    path: str
    start: int
    end: int
    first_line: int


@dataclass(frozen=True, slots=True)
class Record:
    """One JSON object and where it stands."""

    path: str
    line: int
    value: dict[str, Any]

    @property
    def where(self) -> str:
        """``file:line``, the start of every message about this record."""
        return f"{self.path}:{self.line}"


def list_jsonl_files(directory: Path, flag: str) -> list[Path]:
    """The .jsonl files directly in ``directory``, sorted by name.

    Raises:
        UserError: the folder is missing, is a file, or holds no .jsonl file.
    """
    if not directory.exists():
        raise UserError(f"{flag} {directory}: no such directory")
    if not directory.is_dir():
        raise UserError(f"{flag} {directory}: is a file; give the directory that holds the .jsonl files")
    files = sorted(path for path in directory.iterdir() if path.suffix == ".jsonl" and path.is_file())
    if not files:
        raise UserError(f"{flag} {directory}: no .jsonl file in this directory (subdirectories are not read)")
    return files


def plan_slices(path: Path, slice_bytes: int = SLICE_BYTES) -> Iterator[FileSlice]:
    """Cut a file into slices of about ``slice_bytes``, at line ends.

    Raises:
        UserError: the file cannot be read.
    """
    start, position, line = 0, 0, 1
    try:
        with path.open("rb") as file:
            while block := file.read(slice_bytes):
                cut = block.rfind(b"\n") + 1
                if cut:
                    yield FileSlice(str(path), start, position + cut, line)
                    start, line = position + cut, line + block.count(b"\n", 0, cut)
                position += len(block)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if start < position:
        yield FileSlice(str(path), start, position, line)


def read_slice(piece: FileSlice) -> Iterator[Record]:
    """The records of a slice; blank lines, CRLF, a byte order mark and a missing last newline are fine.

    Raises:
        UserError: a line is not a JSON object in UTF-8; the message starts with ``file:line``.
    """
    with open(piece.path, "rb") as file:
        file.seek(piece.start)
        content = file.read(piece.end - piece.start)
    if piece.start == 0 and content.startswith(codecs.BOM_UTF8):
        content = content[len(codecs.BOM_UTF8) :]
    for number, raw in enumerate(content.split(b"\n"), start=piece.first_line):
        if raw.strip():
            yield Record(piece.path, number, parse_line(raw, f"{piece.path}:{number}"))


def read_records(directory: Path, flag: str = "--data_input_dirs") -> Iterator[Record]:
    """All records of a directory in order: files by name, then by line.

    Raises:
        UserError: as :func:`list_jsonl_files` and :func:`read_slice`.
    """
    for path in list_jsonl_files(directory, flag):
        for piece in plan_slices(path):
            yield from read_slice(piece)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _object_without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    # Python would keep the last value and lose the others without a word.
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} occurs twice in one object")
    return content


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_object_without_duplicates)


def parse_line(raw: bytes, where: str) -> dict[str, Any]:
    """Parse one line into a JSON object that UTF-8 can express.

    Args:
        raw: the line's bytes.
        where: ``file:line`` for messages.

    Raises:
        UserError: not UTF-8, not JSON (NaN and Infinity included), not an object, a key twice in one object,
            nested too deeply, or a string that holds half of a surrogate pair.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: not UTF-8 (byte 0x{raw[error.start]:02x} at column {error.start + 1}); convert the file to UTF-8"
        ) from error
    try:
        value = _DECODER.decode(text)
    except RecursionError as error:
        raise UserError(f"{where}: nested too deeply; expected one flat JSON object per line") from error
    except ValueError as error:
        raise UserError(f"{where}: not valid JSON ({_reason(error)}); expected one JSON object per line") from error
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a JSON object, found {json_type(value)}")
    if b"\\ud" in raw.lower():
        _refuse_lone_surrogates(value, where)
    return value


def _reason(error: ValueError) -> str:
    # The decoder counts lines too, and its "line 1" would stand beside the file's real line.
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return str(error)


def _refuse_lone_surrogates(value: dict[str, Any], where: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        raise UserError(
            f"{where}: a string holds \\u{code:04x}, which is half of a surrogate pair; remove it"
        ) from error


def json_type(value: Any) -> str:
    """What JSON calls the type of a parsed value, for messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list) else "an object"
