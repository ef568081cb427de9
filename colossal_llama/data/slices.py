"""Cutting input files of many kinds into slices that can be read in parallel.

The process that plans cuts each file into slices of about 1 MiB; any other process turns a slice into records
and still knows their numbers. A slice of a plain file is a byte range; what needs decoding from the start
(compressed, parquet and arrow files) travels inside the slice, so that memory stays bounded. Lines end at
``\\n`` only: U+2028 and its like are ordinary characters of a JSON string.
"""

import bz2
import codecs
import gzip
import lzma
import zlib
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from colossal_llama.data.columnar import ColumnarError, read_chunks
from colossal_llama.data.input_files import ARROW, JSON, JSONL, PARQUET, TXT, InputFile
from colossal_llama.data.json_array import ArrayError, scan_array
from colossal_llama.errors import UserError
from colossal_llama.json_records import parse_line

SLICE_BYTES = 1 << 20
"""Size of a slice. It fixes the unit of work, not the result: a record longer than this stays whole."""

DAMAGED_FILE = "damaged file"

_LONGEST_FIRST_LINE = 64 << 20
_DECODE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class FileSlice:
    """A unit of work; picklable, and the same for the same file.

    Attributes:
        path: the file, for messages and, where ``content`` is None, for reading.
        kind: :data:`JSONL` or :data:`TXT` (lines), :data:`JSON` (elements of an array), :data:`ARROW` (rows in arrow's
            IPC format), or :data:`DAMAGED_FILE`.
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
    if file.compression:
        yield from _plan_compressed(file, slice_bytes)
    elif file.kind == JSON:
        yield from _plan_json(file.path, slice_bytes)
    elif file.kind in (PARQUET, ARROW):
        yield from _plan_rows(file, slice_bytes)
    else:
        yield from _plan_lines(file.path, slice_bytes, file.kind)


def _damaged(path: str, first: int, damage: str) -> FileSlice:
    return FileSlice(path, DAMAGED_FILE, first, damage=damage)


def _plan_lines(path: str, slice_bytes: int, kind: str = JSONL) -> Planned:
    start, position, line = 0, 0, 1
    with open(path, "rb") as file:
        while block := file.read(slice_bytes):
            cut = block.rfind(b"\n") + 1
            if cut:
                yield FileSlice(path, kind, line, start, position + cut), position + cut
                start, line = position + cut, line + block.count(b"\n", 0, cut)
            position += len(block)
    if start < position:
        yield FileSlice(path, kind, line, start, position), position


class _DecodeError(ValueError):
    """The compressed stream is damaged."""


@contextmanager
def _decompressed(file: BinaryIO, kind: str) -> Iterator[Callable[[int], bytes]]:
    """A function that reads decompressed bytes, of all members or frames of a file."""
    if kind != "zst":
        module: Any = {"gz": gzip, "bz2": bz2, "xz": lzma}[kind]
        with module.open(file, "rb") as stream:
            yield stream.read1
        return
    import pyarrow as pa

    # Unlike the bindings in the package zstandard, arrow's stream notices when a file is cut off.
    with pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd") as decoder:
        yield decoder.read


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
            except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
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
        name = {"gz": "gzip", "zst": "zstd"}.get(kind, kind)
        raise _DecodeError(f"not readable as {name} ({failure}); is it complete, and is that what it is?") from failure


def _plan_compressed(file: InputFile, slice_bytes: int) -> Planned:
    line, position = 1, 0
    waiting: list[bytes] = []
    kind = TXT if file.kind == TXT else JSONL
    with open(file.path, "rb") as raw:
        try:
            for block in _decoded_blocks(raw, file.compression, slice_bytes):
                if not position and file.kind == JSON and block.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"[":
                    damage = "a compressed JSON array; decompress it, or write one object per line"
                    yield _damaged(file.path, 1, damage), 0
                    return
                position = raw.tell()
                cut = block.rfind(b"\n") + 1
                if cut:
                    content = b"".join([*waiting, block[:cut]])
                    yield FileSlice(file.path, kind, line, content=content), position
                    line += content.count(b"\n")
                    waiting = []
                waiting.append(block[cut:])
        except _DecodeError as error:
            # The line that was cut off is lost with what would follow.
            yield _damaged(file.path, line, str(error)), position
            return
    content = b"".join(waiting)
    if content:
        yield FileSlice(file.path, kind, line, content=content), position


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
