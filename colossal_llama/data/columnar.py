"""Parquet and arrow files in chunks of rows that can be sent to another process.

A chunk is a stream in arrow's IPC format. Only the process that plans reads the file, one batch after the other:
part of a parquet row group cannot be read without decoding all of the group before it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

_MOST_ROWS_PER_READ = 65_536


Batches = Iterator[tuple["pa.RecordBatch", int]]
"""Batches, and the bytes of the file that were read up to each."""


class ColumnarError(ValueError):
    """The file is not what its name says, or is damaged."""


def read_chunks(path: str, kind: str, chunk_bytes: int) -> Iterator[tuple[bytes, int, int]]:
    """Cut a file into chunks of about ``chunk_bytes`` (decoded), at rows.

    Args:
        path: the file.
        kind: "parquet" or "arrow"; the latter in the stream or in the file format.
        chunk_bytes: smallest size at which a chunk is complete; a longer row stays whole.

    Returns:
        Chunks with their number of rows and the bytes of the file that were read up to there.

    Raises:
        ColumnarError: the file cannot be decoded, or two columns have one name.
        OSError: the file cannot be read.
    """
    batches = _parquet_batches(path, chunk_bytes) if kind == "parquet" else _arrow_batches(path)
    waiting: list[pa.RecordBatch] = []
    size = position = 0
    failure: ColumnarError | None = None
    for item in _until_damage(batches):
        if isinstance(item, ColumnarError):
            failure = item
            break
        whole, position = item
        for batch in _split(whole, chunk_bytes):
            waiting.append(batch)
            size += batch.nbytes
            if size >= chunk_bytes:
                yield _serialise(waiting), sum(part.num_rows for part in waiting), position
                waiting, size = [], 0
    if waiting:
        yield _serialise(waiting), sum(part.num_rows for part in waiting), position
    if failure is not None:
        raise failure


def _until_damage(batches: Batches) -> Iterator["tuple[pa.RecordBatch, int] | ColumnarError"]:
    """The batches and, as the last item, what is wrong with the file."""
    import pyarrow as pa

    try:
        yield from batches
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's fault, not the content's
        yield ColumnarError(" ".join(str(error).split()))
    except ColumnarError as error:
        yield error


def _split(batch: "pa.RecordBatch", chunk_bytes: int) -> Iterator["pa.RecordBatch"]:
    if not batch.num_rows:
        return
    rows = max(1, batch.num_rows * chunk_bytes // max(batch.nbytes, 1))
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


def _serialise(batches: list["pa.RecordBatch"]) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _refuse_repeated_names(names: list[str]) -> None:
    # A Python dict would keep the last column only.
    for name in names:
        if names.count(name) > 1:
            raise ColumnarError(f"the column {name!r} occurs twice")


def _parquet_batches(path: str, chunk_bytes: int) -> Batches:
    from pyarrow import parquet

    size = Path(path).stat().st_size
    # Without buffering ahead a row group of any size passes through page by page.
    with parquet.ParquetFile(path, pre_buffer=False) as file:
        _refuse_repeated_names(file.schema_arrow.names)
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        decoded = sum(group.total_byte_size for group in groups)
        total = file.metadata.num_rows
        rows = min(max(1, total * chunk_bytes // max(decoded, 1)), _MOST_ROWS_PER_READ)
        done = 0
        for batch in file.iter_batches(batch_size=rows):
            done += batch.num_rows
            yield batch, size * done // max(total, 1)


def _arrow_batches(path: str) -> Batches:
    import pyarrow as pa

    with pa.OSFile(path, "rb") as file:
        if file.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(file)
            _refuse_repeated_names(reader.schema.names)
            size = file.size()
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number), size * (number + 1) // reader.num_record_batches
            return
        file.seek(0)
        stream = pa.ipc.open_stream(file)
        _refuse_repeated_names(stream.schema.names)
        for batch in stream:
            yield batch, file.tell()


def chunk_rows(content: bytes) -> Iterator[dict[str, Any] | UnicodeDecodeError]:
    """The rows of a chunk as dicts of Python values; in place of a row that is not UTF-8, the error."""
    import pyarrow as pa

    for batch in pa.ipc.open_stream(content):
        try:
            rows = batch.to_pylist()
        except UnicodeDecodeError:
            rows = [_row(batch.slice(number, 1)) for number in range(batch.num_rows)]
        yield from rows


def _row(batch: "pa.RecordBatch") -> dict[str, Any] | UnicodeDecodeError:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return error
