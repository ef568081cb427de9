"""Records out of the slices of input files, and what becomes of those that cannot be read."""

import codecs
import json
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colossal_llama.data.columnar import chunk_rows
from colossal_llama.data.input_files import ARROW, JSON, TXT, list_input_files
from colossal_llama.data.slices import DAMAGED_FILE, FileSlice, plan_slices
from colossal_llama.errors import RecordError, UserError
from colossal_llama.json_records import NOT_UTF8, parse_line

RAW_CHARACTERS = 2_000
"""How much of a refused record's text is kept."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record and where it stands: in a line (``unit`` is "") or as one of a file's records ("record ")."""

    path: str
    number: int
    value: dict[str, Any]
    unit: str = ""

    @property
    def where(self) -> str:
        """``file:line`` or ``file:record N``, the start of every message about this record."""
        return f"{self.path}:{self.unit}{self.number}"


@dataclass(frozen=True, slots=True)
class Reject:
    """A record, or the rest of a damaged file, that was passed over.

    Attributes:
        where: ``file:line``, ``file:record N``, or the file alone.
        reason: a short category to count by.
        detail: the full message.
        raw: the beginning of the record's text.
    """

    where: str
    reason: str
    detail: str
    raw: str


def reject_record(record: Record, error: RecordError) -> Reject:
    """A record that was read but refused later, by its format for example."""
    try:
        raw = json.dumps(record.value, ensure_ascii=False, default=str)
    except RecursionError:  # it takes a little less depth than parsing
        raw = ""
    return Reject(record.where, error.reason, str(error), raw[:RAW_CHARACTERS])


RejectHandler = Callable[[Reject], None]


def read_slice(piece: FileSlice, on_reject: RejectHandler | None = None) -> Iterator[Record]:
    """The records of a slice; blank lines, CRLF, a byte order mark and a missing last newline are fine.

    Args:
        piece: of :func:`plan_slices`.
        on_reject: is told of each bad record, which is then passed over.

    Raises:
        UserError: without ``on_reject``: a record is not a JSON object in UTF-8 (the message starts with
            :attr:`Record.where`), or the file is damaged. In any case: the file cannot be read.
    """
    if piece.kind == DAMAGED_FILE:
        message = f"{piece.path}: {piece.damage}"
        if on_reject is None:
            raise UserError(message)
        on_reject(Reject(piece.path, DAMAGED_FILE, message, ""))
    elif piece.kind == ARROW:
        yield from _row_records(piece, on_reject)
    elif piece.kind == JSON:
        yield from _element_records(piece, on_reject)
    else:
        yield from _line_records(piece, on_reject)


def _content(piece: FileSlice) -> bytes:
    if piece.content is not None:
        return piece.content
    try:
        with open(piece.path, "rb") as file:
            file.seek(piece.start)
            return file.read(piece.end - piece.start)
    except OSError as error:
        raise UserError(f"{piece.path}: cannot be read ({error.strerror})") from error


def parse_plain_line(raw: bytes, where: str) -> dict[str, Any]:
    """A line of a plain text as a record of the format "text", without its end.

    Raises:
        RecordError: not UTF-8.
    """
    try:
        return {"text": raw.decode("utf-8").rstrip("\r")}
    except UnicodeDecodeError as error:
        raise RecordError(NOT_UTF8, f"{where}: not UTF-8; convert the file to UTF-8") from error


LineParser = Callable[[bytes, str], dict[str, Any]]


def _parse(
    record: Record, raw: bytes, on_reject: RejectHandler | None, parse: LineParser = parse_line
) -> Record | None:
    """``record`` with the value of ``raw``; None when it is bad and ``on_reject`` took it."""
    try:
        # Not dataclasses.replace, which takes as long as the parsing.
        return Record(record.path, record.number, parse(raw, record.where), record.unit)
    except RecordError as error:
        if record.number == 1 and not record.unit and raw.lstrip().startswith(b"["):
            error = RecordError(error.reason, f"{error}; if the whole file is one JSON array, name it .json")
        if on_reject is None:
            raise error
        # A character takes up to four bytes.
        text = raw[: 4 * RAW_CHARACTERS].decode("utf-8", errors="replace")
        on_reject(Reject(record.where, error.reason, str(error), text[:RAW_CHARACTERS]))
        return None


def _line_records(piece: FileSlice, on_reject: RejectHandler | None) -> Iterator[Record]:
    content = _content(piece)
    if piece.first == 1 and content.startswith(codecs.BOM_UTF8):
        content = content[len(codecs.BOM_UTF8) :]
    parse = parse_plain_line if piece.kind == TXT else parse_line
    for number, raw in enumerate(content.split(b"\n"), start=piece.first):
        if raw.strip():
            record = _parse(Record(piece.path, number, {}), raw, on_reject, parse)
            if record is not None:
                yield record


def _element_records(piece: FileSlice, on_reject: RejectHandler | None) -> Iterator[Record]:
    content = _content(piece)
    bounds = array("q")
    bounds.frombytes(piece.bounds)
    for number, (start, end) in enumerate(zip(bounds[::2], bounds[1::2], strict=True), start=piece.first):
        record = _parse(Record(piece.path, number, {}, "record "), content[start:end].strip(), on_reject)
        if record is not None:
            yield record


def _row_records(piece: FileSlice, on_reject: RejectHandler | None) -> Iterator[Record]:
    assert piece.content is not None, "rows travel inside their slice"
    for number, row in enumerate(chunk_rows(piece.content), start=piece.first):
        if not isinstance(row, UnicodeDecodeError):
            yield Record(piece.path, number, row, "record ")
            continue
        where = f"{piece.path}:record {number}"
        error = RecordError(NOT_UTF8, f"{where}: not UTF-8 ({row.reason}); write the file's text columns as UTF-8")
        if on_reject is None:
            raise error
        raw = bytes(row.object)[: 4 * RAW_CHARACTERS].decode("utf-8", errors="replace")
        on_reject(Reject(where, NOT_UTF8, str(error), raw[:RAW_CHARACTERS]))


def read_records(spec: str | Path, flag: str = "--data_input_dirs") -> Iterator[Record]:
    """All records of an input in order.

    Raises:
        UserError: as :func:`list_input_files` and :func:`read_slice`.
    """
    for file in list_input_files(spec, flag):
        for piece in plan_slices(file):
            yield from read_slice(piece)
