"""Reading folders of .jsonl files, in slices that can be read in parallel.

A slice is a byte range that starts and ends at line ends, so any process can read it alone and still knows
the line numbers. Lines end at ``\\n`` only: U+2028 and its like are ordinary characters of a JSON string.
"""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colossal_llama.errors import UserError
from colossal_llama.json_records import parse_line

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
