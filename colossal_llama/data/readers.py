"""Reading input files of many kinds, in slices that can be read in parallel.

The process that plans cuts each file into slices of about 1 MiB; any other process turns a slice into records
and still knows their numbers. A slice of a plain file is a byte range; what needs decoding from the start
(compressed, parquet and arrow files) travels inside the slice, so that memory stays bounded. Lines end at
``\\n`` only: U+2028 and its like are ordinary characters of a JSON string.
"""

import codecs
import glob
import gzip
import json
import zlib
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from colossal_llama.data.columnar import ColumnarError, chunk_rows, read_chunks
from colossal_llama.data.json_array import ArrayError, scan_array
from colossal_llama.errors import RecordError, UserError
from colossal_llama.json_records import NOT_UTF8, parse_line

SLICE_BYTES = 1 << 20
"""Size of a slice. It fixes the unit of work, not the result: a record longer than this stays whole."""

RAW_CHARACTERS = 2_000
"""How much of a refused record's text is kept."""

JSONL, GZIP, ZSTD, JSON, PARQUET, ARROW = "jsonl", "jsonl.gz", "jsonl.zst", "json", "parquet", "arrow"
KINDS = (JSONL, GZIP, ZSTD, JSON, PARQUET, ARROW)
"""The kinds of input files, which are also the ends of their names."""

DAMAGED_FILE = "damaged file"

_DATASET_FILES = ("state.json", "dataset_info.json")
"""What marks a folder of ``datasets.Dataset.save_to_disk``, beside its arrow files."""

_LONGEST_FIRST_LINE = 64 << 20
_DECODE_BYTES = 1 << 16
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


@dataclass(frozen=True, slots=True)
class FileSlice:
    """A unit of work; picklable, and the same for the same file.

    Attributes:
        path: the file, for messages and, where ``content`` is None, for reading.
        kind: :data:`JSONL` (lines), :data:`JSON` (elements of an array), :data:`ARROW` (rows in arrow's IPC
            format), or :data:`DAMAGED_FILE`.
        first: number of the first line or record, from 1.
        start: where the slice begins in the file, in bytes; 0 with ``content``.
        end: where it ends.
        content: the slice itself, where it cannot be read from the file alone.
        bounds: of array elements: start and end of each, relative to ``start``, as 64-bit integers.
        damage: what is wrong with the rest of a damaged file.
        bytes_read: this slice's share of the file's size on disk.
    """

    path: str
    kind: str
    first: int
    start: int = 0
    end: int = 0
    content: bytes | None = None
    bounds: bytes = b""
    damage: str = ""
    bytes_read: int = 0


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
    found = [(path, _kind(path)) for path in sorted(folder.iterdir()) if path.is_file()]
    return [InputFile(str(path), kind) for path, kind in found if kind is not None]


def _dataset_files(folder: Path, flag: str) -> list[InputFile]:
    """The arrow files of a saved dataset in the order of its state.json, which is the order of its rows."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        names = [str(entry["filename"]) for entry in state["_data_files"]]
        indices = state.get("_indices_files") or state.get("_indices_data_files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
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


def plan_slices(file: InputFile, slice_bytes: int = SLICE_BYTES) -> Iterator[FileSlice]:
    """Cut a file into slices of about ``slice_bytes``, between records.

    A file that turns out to be damaged ends in a slice that says so, which :func:`read_slice` reports.

    Raises:
        UserError: the file cannot be opened or read.
    """
    try:
        waiting: FileSlice | None = None
        position = given = 0
        for piece, position in _plan(file, slice_bytes):
            if waiting is not None:
                yield waiting
            waiting = replace(piece, bytes_read=position - given)
            given = position
        if waiting is not None:
            # What follows the last record (footers, blank lines) counts as read with it.
            yield replace(waiting, bytes_read=waiting.bytes_read + file.size - given)
    except OSError as error:
        raise UserError(f"{file.path}: cannot be read ({error.strerror or error})") from error


Planned = Iterator[tuple[FileSlice, int]]
"""Slices, and how many bytes of the file had been read when each was complete."""


def _plan(file: InputFile, slice_bytes: int) -> Planned:
    if file.kind == JSON:
        yield from _plan_json(file.path, slice_bytes)
    elif file.kind in (PARQUET, ARROW):
        yield from _plan_rows(file, slice_bytes)
    elif file.kind == JSONL:
        yield from _plan_lines(file.path, slice_bytes)
    else:
        yield from _plan_compressed(file, slice_bytes)


def _damaged(path: str, first: int, damage: str) -> FileSlice:
    return FileSlice(path, DAMAGED_FILE, first, damage=damage)


def _plan_lines(path: str, slice_bytes: int) -> Planned:
    start, position, line = 0, 0, 1
    with open(path, "rb") as file:
        while block := file.read(slice_bytes):
            cut = block.rfind(b"\n") + 1
            if cut:
                yield FileSlice(path, JSONL, line, start, position + cut), position + cut
                start, line = position + cut, line + block.count(b"\n", 0, cut)
            position += len(block)
    if start < position:
        yield FileSlice(path, JSONL, line, start, position), position


class _DecodeError(ValueError):
    """The compressed stream is damaged."""


@contextmanager
def _decompressed(file: BinaryIO, kind: str) -> Iterator[Callable[[int], bytes]]:
    """A function that reads decompressed bytes; all members of a gzip file and all frames of a zstd file."""
    if kind == GZIP:
        with gzip.GzipFile(fileobj=file) as stream:
            yield stream.read1
        return
    import pyarrow as pa

    # Unlike the bindings in the package zstandard, arrow's stream notices when a file is cut off.
    with pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd") as stream:
        yield stream.read


def _decoded_blocks(file: BinaryIO, kind: str, block_bytes: int) -> Iterator[bytes]:
    """Decompressed blocks of at least ``block_bytes``; what was read before a damaged place comes before the error.

    Raises:
        _DecodeError: at a damaged place; up to ``_DECODE_BYTES`` that the decoder had in hand are lost with it.
    """
    waiting: list[bytes] = []
    size = 0
    failure: Exception | None = None
    with _decompressed(file, kind) as read:
        while True:
            try:
                part = read(min(_DECODE_BYTES, block_bytes))
            except (OSError, EOFError, zlib.error) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                failure, part = error, b""
            waiting.append(part)
            size += len(part)
            if size >= block_bytes or not part:
                yield b"".join(waiting)
                waiting, size = [], 0
            if not part:
                break
    if failure is not None:
        name = "gzip" if kind == GZIP else "zstd"
        raise _DecodeError(f"not readable as {name} ({failure}); is it complete, and is that what it is?") from failure


def _plan_compressed(file: InputFile, slice_bytes: int) -> Planned:
    line, position = 1, 0
    waiting: list[bytes] = []
    with open(file.path, "rb") as raw:
        try:
            for block in _decoded_blocks(raw, file.kind, slice_bytes):
                position = raw.tell()
                cut = block.rfind(b"\n") + 1
                if cut:
                    content = b"".join([*waiting, block[:cut]])
                    yield FileSlice(file.path, JSONL, line, content=content), position
                    line += content.count(b"\n")
                    waiting = []
                waiting.append(block[cut:])
        except _DecodeError as error:
            # The line that was cut off is lost with what would follow.
            yield _damaged(file.path, line, str(error)), position
            return
    content = b"".join(waiting)
    if content:
        yield FileSlice(file.path, JSONL, line, content=content), position


def _plan_json(path: str, slice_bytes: int) -> Planned:
    with open(path, "rb") as file:
        begin, character = _first_character(file)
        if not character:
            return
        if character == b"{":
            if _holds_lines(file, begin):
                yield from _plan_lines(path, slice_bytes)
            else:
                damage = (
                    "holds one JSON object; expected an array of objects, or one object per line (put the records "
                    "into an array, or rename the file to .jsonl if its one line is a record)"
                )
                yield _damaged(path, 1, damage), begin
            return
        if character != b"[":
            yield _damaged(path, 1, "not a JSON file: it does not begin with '['; expected an array of objects"), begin
            return
        yield from _plan_elements(path, file, begin, slice_bytes)


def _first_character(file: BinaryIO) -> tuple[int, bytes]:
    """Offset and value of the first character behind a byte order mark and white space."""
    offset = len(codecs.BOM_UTF8) if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0
    file.seek(offset)
    while character := file.read(1):
        if character not in b" \t\r\n":
            break
        offset += 1
    return offset, character


def _holds_lines(file: BinaryIO, begin: int) -> bool:
    """Whether the first line is a whole object and another follows: JSON lines under the name .json."""
    file.seek(begin)
    line = file.readline(_LONGEST_FIRST_LINE)
    try:
        parse_line(line, "")
    except UserError:
        return False
    return bool(file.read(1 << 16).strip())


def _plan_elements(path: str, file: BinaryIO, begin: int, slice_bytes: int) -> Planned:
    first, count = 1, 0
    start = end = begin
    bounds = array("q")

    def piece() -> tuple[FileSlice, int]:
        return FileSlice(path, JSON, first, start, end, bounds=bounds.tobytes()), end

    try:
        for element_start, end in scan_array(file, begin, slice_bytes):
            if not bounds:
                start = element_start
            count += 1
            bounds.extend((element_start - start, end - start))
            if end - start >= slice_bytes:
                yield piece()
                first, bounds = count + 1, array("q")
    except ArrayError as error:
        if bounds:
            yield piece()
        yield _damaged(path, count + 1, str(error)), end
        return
    if bounds and not (count == 1 and _is_blank(file, start, end)):
        yield piece()


def _is_blank(file: BinaryIO, start: int, end: int) -> bool:
    """Whether the one element of an array is none."""
    file.seek(start)
    return not file.read(end - start).strip()


def _plan_rows(file: InputFile, slice_bytes: int) -> Planned:
    first, position = 1, 0
    try:
        for content, rows, position in read_chunks(file.path, file.kind, slice_bytes):
            yield FileSlice(file.path, ARROW, first, content=content), position
            first += rows
    except ColumnarError as error:
        yield _damaged(file.path, first, f"not readable as {file.kind} ({error})"), position


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


def _parse(record: Record, raw: bytes, on_reject: RejectHandler | None) -> Record | None:
    """``record`` with the value of ``raw``; None when it is bad and ``on_reject`` took it."""
    try:
        # Not dataclasses.replace, which takes as long as the parsing.
        return Record(record.path, record.number, parse_line(raw, record.where), record.unit)
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
    for number, raw in enumerate(content.split(b"\n"), start=piece.first):
        if raw.strip():
            record = _parse(Record(piece.path, number, {}), raw, on_reject)
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
