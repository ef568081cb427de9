"""Dealing documents out to bins, and turning each bin into a part folder.

Tokenised documents pass through one scratch file per bin, so memory holds one bin and never the corpus.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from colossal_llama.constants import IGNORE_INDEX, PART_PREFIX
from colossal_llama.data.manifest import PartInfo
from colossal_llama.data.packing import pack, split_lengths
from colossal_llama.data.tokenization import TokenizedSample

if TYPE_CHECKING:
    import pyarrow

FLUSH_BYTES = 64 << 20
"""Scratch data held in memory before it is appended to the files."""

BATCH_TOKENS = 1 << 26
"""Tokens per arrow batch: its list offsets are int32, and a copy of it is in memory while it is made."""


def part_name(number: int) -> str:
    """Name of a part folder: ``part-00000``."""
    return f"{PART_PREFIX}{number:05d}"


class BinAssigner:
    """Deals the documents of one sub-dataset out to bins.

    Documents come in blocks of as many as there are bins; each block gives every bin one document, the
    longest to the bin with the fewest tokens so far, ties by a seeded draw. So every bin gets its share of
    each stretch of the sub-dataset, the bins' numbers of documents differ by one at most, and their tokens
    by little.
    """

    def __init__(self, bins: int, seed: Sequence[int]) -> None:
        self._loads = np.zeros(bins, dtype=np.int64)
        self._random = np.random.default_rng(list(seed))

    def assign(self, lengths: np.ndarray) -> np.ndarray:
        """Bin numbers for one block of at most as many documents as there are bins."""
        draw = self._random.permutation(len(self._loads))
        lightest_first = draw[np.argsort(self._loads[draw], kind="stable")]
        longest_first = np.argsort(-lengths, kind="stable")
        assigned = np.empty(len(lengths), dtype=np.int64)
        assigned[longest_first] = lightest_first[: len(lengths)]
        self._loads[assigned] += lengths
        return assigned


class BinWriter:
    """Appends tokenised documents to the scratch files of their bins.

    A record of a scratch file is int32: length, category number, ids, labels.
    """

    def __init__(self, folder: Path, bins: int, seed: int, sub_datasets: int) -> None:
        self._folder = folder
        self._bins = bins
        self._assigners = [BinAssigner(bins, (seed, number)) for number in range(sub_datasets)]
        self._blocks: list[list[TokenizedSample]] = [[] for _ in range(sub_datasets)]
        self._buffers: list[list[bytes]] = [[] for _ in range(bins)]
        self._buffered = 0
        self._categories: dict[str, int] = {}

    def add(self, sub_dataset: int, sample: TokenizedSample) -> None:
        """Add the next document of a sub-dataset."""
        block = self._blocks[sub_dataset]
        block.append(sample)
        if len(block) == self._bins:
            self._deal(sub_dataset)

    def finish(self) -> list[str]:
        """Deal out incomplete blocks, write everything, and return the categories by number."""
        for sub_dataset in range(len(self._blocks)):
            self._deal(sub_dataset)
        self._flush()
        return list(self._categories)

    def _deal(self, sub_dataset: int) -> None:
        block = self._blocks[sub_dataset]
        lengths = np.array([len(sample.input_ids) for sample in block], dtype=np.int64)
        for sample, number in zip(block, self._assigners[sub_dataset].assign(lengths).tolist(), strict=True):
            category = self._categories.setdefault(sample.category, len(self._categories))
            header = np.array([len(sample.input_ids), category], dtype=np.int32)
            record = b"".join((header.tobytes(), sample.input_ids.tobytes(), sample.labels.tobytes()))
            self._buffers[number].append(record)
            self._buffered += len(record)
        block.clear()
        if self._buffered > FLUSH_BYTES:
            self._flush()

    def _flush(self) -> None:
        # Opened per flush: a thousand bins must not need a thousand open files.
        for number, buffer in enumerate(self._buffers):
            with scratch_file(self._folder, number).open("ab") as file:
                file.write(b"".join(buffer))
            buffer.clear()
        self._buffered = 0


def scratch_file(folder: Path, number: int) -> Path:
    """The scratch file of one bin."""
    return folder / f"bin-{number:05d}.int32"


@dataclass(frozen=True, slots=True)
class Piece:
    """A document, or a part of one that is longer than a row; views into the bin's buffer."""

    input_ids: np.ndarray
    labels: np.ndarray
    category: int


def read_scratch(path: Path) -> Iterator[Piece]:
    """The documents of a scratch file, in the order they were added."""
    content = np.fromfile(path, dtype=np.int32)
    position = 0
    while position < len(content):
        length, category = int(content[position]), int(content[position + 1])
        start = position + 2
        yield Piece(content[start : start + length], content[start + length : start + 2 * length], category)
        position = start + 2 * length


def cut_pieces(documents: Iterator[Piece], max_length: int) -> list[Piece]:
    """Cut documents into pieces of at most ``max_length``.

    The first label of every piece is ignored: nothing of its own document stands before it to predict it from
    (at the start of a row there is nothing at all, elsewhere another document).
    """
    pieces = []
    for document in documents:
        start = 0
        for length in split_lengths(len(document.input_ids), max_length):
            end = start + length
            document.labels[start] = IGNORE_INDEX
            pieces.append(Piece(document.input_ids[start:end], document.labels[start:end], document.category))
            start = end
    return pieces


@dataclass(frozen=True)
class PartTask:
    """Everything that makes one part; plain values, so that any process can do it.

    Attributes:
        scratch: the bin's scratch file; removed when the part is written.
        arrow_folder: where the part folder goes.
        jsonl_folder: where its jsonl file goes; None for no jsonl.
        number: of the bin.
        categories: names by number.
        max_length: longest row.
        seed: of the shuffles.
    """

    scratch: str
    arrow_folder: str
    jsonl_folder: str | None
    number: int
    categories: tuple[str, ...]
    max_length: int
    seed: int


def write_part(task: PartTask) -> PartInfo:
    """Read a bin, pack it, shuffle its rows and write them as arrow and jsonl."""
    scratch = Path(task.scratch)
    random = np.random.default_rng([task.seed, 1, task.number])
    pieces = cut_pieces(read_scratch(scratch), task.max_length)
    # Shuffled before packing too: documents of one length would keep their neighbours from the file.
    pieces = [pieces[index] for index in random.permutation(len(pieces))]
    rows = pack([len(piece.input_ids) for piece in pieces], task.max_length)
    rows = [rows[index] for index in random.permutation(len(rows))]
    for row in rows:
        random.shuffle(row)
    packed = [[pieces[index] for index in row] for row in rows]
    table = rows_to_table(packed, task.categories)
    save_table(table, Path(task.arrow_folder) / part_name(task.number))
    if task.jsonl_folder is not None:
        write_jsonl(packed, task.categories, Path(task.jsonl_folder) / f"{part_name(task.number)}.jsonl")
    scratch.unlink()
    return _part_info(part_name(task.number), table)


def rows_to_table(rows: list[list[Piece]], categories: Sequence[str]) -> "pyarrow.Table":
    """Rows as an arrow table: input_ids, labels, seq_lengths (list<int32>) and category (list<string>)."""
    import pyarrow

    batches = [_record_batch(batch, categories) for batch in _batches_of_rows(rows)]
    return pyarrow.Table.from_batches(batches, schema=_schema())


def _schema() -> "pyarrow.Schema":
    import pyarrow

    numbers = pyarrow.list_(pyarrow.int32())
    return pyarrow.schema(
        {
            "input_ids": numbers,
            "labels": numbers,
            "seq_lengths": numbers,
            "category": pyarrow.list_(pyarrow.string()),
        }
    )


def _batches_of_rows(rows: list[list[Piece]]) -> Iterator[list[list[Piece]]]:
    batch: list[list[Piece]] = []
    tokens = 0
    for row in rows:
        length = sum(len(piece.input_ids) for piece in row)
        if batch and tokens + length > BATCH_TOKENS:
            yield batch
            batch, tokens = [], 0
        batch.append(row)
        tokens += length
    if batch:
        yield batch


def _record_batch(rows: list[list[Piece]], categories: Sequence[str]) -> "pyarrow.RecordBatch":
    import pyarrow

    pieces = [piece for row in rows for piece in row]
    lengths = np.array([len(piece.input_ids) for piece in pieces], dtype=np.int32)
    piece_offsets = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int32)
    token_offsets = np.concatenate(([0], np.cumsum(lengths)))[piece_offsets].astype(np.int32)
    columns = [
        pyarrow.ListArray.from_arrays(token_offsets, np.concatenate([piece.input_ids for piece in pieces])),
        pyarrow.ListArray.from_arrays(token_offsets, np.concatenate([piece.labels for piece in pieces])),
        pyarrow.ListArray.from_arrays(piece_offsets, lengths),
        pyarrow.ListArray.from_arrays(
            piece_offsets, pyarrow.array([categories[piece.category] for piece in pieces], pyarrow.string())
        ),
    ]
    return pyarrow.RecordBatch.from_arrays(columns, schema=_schema())


def save_table(table: "pyarrow.Table", folder: Path) -> None:
    """Save a table as a folder for ``datasets.load_from_disk``; an empty table is one too."""
    import datasets

    shown = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        # The fingerprint is random by default, and the same input must give the same files.
        dataset = datasets.Dataset(table, fingerprint=folder.name)
        # Left to itself it writes no file for an empty table, and cannot load that again.
        dataset.save_to_disk(str(folder), num_shards=None if table.num_rows else 1)
    finally:
        if not shown:
            datasets.enable_progress_bars()


def write_jsonl(rows: list[list[Piece]], categories: Sequence[str], path: Path) -> None:
    """Write the rows of the arrow part as JSON lines with the same fields."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            fields = {
                "input_ids": np.concatenate([piece.input_ids for piece in row]).tolist(),
                "labels": np.concatenate([piece.labels for piece in row]).tolist(),
                "seq_lengths": [len(piece.input_ids) for piece in row],
            }
            # repr of a list of ints is JSON too, and nearly twice as fast as json.dumps.
            numbers = ", ".join(f'"{name}": {values!r}' for name, values in fields.items())
            category = json.dumps([categories[piece.category] for piece in row], ensure_ascii=False)
            file.write(f'{{{numbers}, "category": {category}}}\n')


def _part_info(name: str, table: "pyarrow.Table") -> PartInfo:
    """Counts taken from what was written, not from what was meant to be."""
    tokens = targets = pieces = 0
    for chunk in table.column("labels").chunks:
        labels = chunk.flatten().to_numpy()
        tokens += len(labels)
        targets += int((labels != IGNORE_INDEX).sum())
    for chunk in table.column("seq_lengths").chunks:
        pieces += len(chunk.flatten())
    return PartInfo(name, table.num_rows, pieces, tokens, targets)
