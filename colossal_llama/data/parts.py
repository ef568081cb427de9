"""Turning the documents of a bin into a part: cut, pack, and write as arrow (and jsonl).

A part is made from files only (its bin's document list and the shards), so any process can make it, in any order,
and again after a kill. Rows are written batch by batch: memory holds some 50 bytes for each document of the bin, and
one batch of its tokens.
"""

import json
import os
import shutil
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from colossal_llama.constants import PART_PREFIX
from colossal_llama.data.bins import BinReader
from colossal_llama.data.corpus import firsts_of, gather_ranges
from colossal_llama.data.dataset import labels_of
from colossal_llama.data.manifest import PartInfo, Share, part_info_from
from colossal_llama.data.packing import LONG_DOCUMENTS, PACKINGS, Packing, Pieces
from colossal_llama.data.shard_files import shard_path

if TYPE_CHECKING:
    import pyarrow

BATCH_TOKENS = 1 << 22
"""Tokens per arrow batch, which is what a part's writer holds in memory (several times over)."""

OPEN_SHARDS = 256
"""Shards that a part's writer keeps open: fewer than a process may open files."""

TOKEN_BYTES = 4


def part_name(number: int) -> str:
    """Name of a part folder: ``part-00000``."""
    return f"{PART_PREFIX}{number:05d}"


@dataclass(frozen=True)
class PartTask:
    """Everything that makes one part; plain values, so that any process can do it.

    Attributes:
        name: of the part folder.
        bin_file: the bin's documents, see :mod:`~colossal_llama.data.bins`; what is known of the part is put beside it.
        shard_folder: where the shards are.
        arrow_folder: where the part folder goes.
        jsonl_folder: where its jsonl file goes; None for no jsonl.
        categories, sub_datasets: names by number.
        max_length: longest row.
        long_documents, packing: names of what is done with long documents and how rows are made.
        seed: of the shuffles.
        notes_sub_datasets: also write the sub-dataset of each piece, as a column ``sub_dataset``.
    """

    name: str
    bin_file: str
    shard_folder: str
    arrow_folder: str
    jsonl_folder: str | None
    categories: tuple[str, ...]
    sub_datasets: tuple[str, ...]
    max_length: int
    long_documents: str
    packing: str
    seed: tuple[int, ...]
    notes_sub_datasets: bool = False


def part_info_file(task: PartTask) -> Path:
    """Where a finished part's counts are noted, after everything else."""
    return Path(task.bin_file).with_suffix(".json")


def is_made(task: PartTask) -> bool:
    """Whether the part is complete: noted, and still there."""
    made = [Path(task.arrow_folder) / task.name]
    made += [_jsonl_file(task)] if task.jsonl_folder else []
    return part_info_file(task).exists() and all(path.exists() for path in made)


def _jsonl_file(task: PartTask) -> Path:
    return Path(str(task.jsonl_folder)) / f"{task.name}.jsonl"


def write_part(task: PartTask) -> PartInfo:
    """Make one part, unless it is there; the part folder appears complete or not at all."""
    done = part_info_file(task)
    if is_made(task):
        return part_info_from(json.loads(done.read_text(encoding="utf-8")))
    info = _make_part(task)
    scratch = done.with_suffix(f".tmp-{os.getpid()}")
    scratch.write_text(json.dumps(asdict(info)), encoding="utf-8")
    scratch.rename(done)
    return info


def _make_part(task: PartTask) -> PartInfo:
    documents = BinReader(Path(task.bin_file))
    shares = _shares(documents, task.sub_datasets)
    packing = _pack(documents, task)
    cut = int((np.bincount(packing.pieces.documents) > 1).sum()) if len(packing.pieces) else 0
    sub_datasets = None
    if task.notes_sub_datasets:
        # The name of an input need not be UTF-8, but arrow's strings are.
        sub_datasets = [name.encode(errors="surrogateescape").decode(errors="replace") for name in task.sub_datasets]
    maker = _RowMaker(documents, task.categories, Path(task.shard_folder), sub_datasets)
    folder = Path(task.arrow_folder) / task.name
    scratch = folder.with_name(f".{task.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)  # a killed run's
    scratch.mkdir()
    jsonl = _jsonl_file(task) if task.jsonl_folder else None
    try:
        counted = _write_rows(maker, packing, scratch, jsonl)
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        maker.close()
    return PartInfo(
        name=task.name,
        rows=len(packing.row_sizes),
        pieces=len(packing.pieces),
        tokens=counted["tokens"],
        target_tokens=counted["target_tokens"],
        documents=sum(share.documents for share in shares.values()),
        cut_documents=cut,
        dropped_tokens=sum(share.tokens for share in shares.values()) - counted["tokens"],
        sub_datasets=shares,
    )


def _pack(documents: BinReader, task: PartTask) -> Packing:
    random = np.random.default_rng(list(task.seed))
    cut = LONG_DOCUMENTS.get(task.long_documents)
    return PACKINGS.get(task.packing)(cut(documents.column("length"), task.max_length, random), task.max_length, random)


def _shares(documents: BinReader, names: Sequence[str]) -> dict[str, Share]:
    owners = documents.column("owner")
    heads, tokens = (
        np.bincount(owners, documents.column(name), minlength=len(names)).astype(np.int64).tolist()
        for name in ("head", "length")
    )
    return {name: Share(*share) for name, *share in zip(names, heads, tokens, strict=True)}


@dataclass(slots=True)
class Batch:
    """Some packed rows.

    Attributes:
        input_ids: int32 ``[tokens]``, rows one behind the other.
        row_offsets: where rows begin and end in it, int64 ``[rows + 1]``.
        runs: learned stretches, counted from their row's start, int32 ``[stretches, 2]``.
        run_offsets: stretches before each row, int64 ``[rows + 1]``.
        lengths: of the pieces, int32 ``[pieces]``.
        piece_offsets: pieces before each row, int64 ``[rows + 1]``.
        categories: name of each piece's category.
        sub_datasets: name of each piece's sub-dataset; None where it is not noted.
    """

    input_ids: np.ndarray
    row_offsets: np.ndarray
    runs: np.ndarray
    run_offsets: np.ndarray
    lengths: np.ndarray
    piece_offsets: np.ndarray
    categories: list[str]
    sub_datasets: list[str] | None = None


class _RowMaker:
    """Fetches the tokens of pieces from the shards; ``sub_datasets`` are their names, if pieces are to tell theirs."""

    def __init__(
        self,
        documents: BinReader,
        categories: Sequence[str],
        folder: Path,
        sub_datasets: Sequence[str] | None = None,
    ) -> None:
        self._shards, self._offsets = documents.column("shard"), documents.column("offset")
        self._codes = documents.column("category")
        self._owners = None if sub_datasets is None else documents.column("owner")
        self._first_runs, self._run_counts = documents.column("first_run"), documents.column("runs")
        self._runs = documents.runs()
        self._categories = categories
        self._folder = folder
        self._sub_datasets = sub_datasets
        self._files: OrderedDict[int, int] = OrderedDict()

    @property
    def notes_sub_datasets(self) -> bool:
        """Whether batches name the sub-dataset of each piece."""
        return self._sub_datasets is not None

    def close(self) -> None:
        """Close the shards."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def batch(self, pieces: Pieces, row_sizes: np.ndarray) -> Batch:
        """The rows made of these pieces."""
        offsets = _offsets(pieces.lengths)
        piece_offsets = _offsets(row_sizes)
        row_offsets = offsets[piece_offsets]
        input_ids = np.empty(int(offsets[-1]), dtype=np.int32)
        shards = self._shards[pieces.documents].tolist()
        places = (self._offsets[pieces.documents] + pieces.starts).tolist()
        target = memoryview(input_ids).cast("B")  # type: ignore[arg-type]
        bounds = (offsets * TOKEN_BYTES).tolist()
        for number, (shard, place) in enumerate(zip(shards, places, strict=True)):
            self._read(shard, place * TOKEN_BYTES, target[bounds[number] : bounds[number + 1]])
        in_row = offsets[:-1] - np.repeat(row_offsets[:-1], row_sizes)
        runs, run_counts = self._learned(pieces, in_row)
        names = self._categories
        return Batch(
            input_ids=input_ids,
            row_offsets=row_offsets,
            runs=runs,
            run_offsets=_offsets(run_counts)[piece_offsets],
            lengths=pieces.lengths.astype(np.int32),
            piece_offsets=piece_offsets,
            categories=[names[code] for code in self._codes[pieces.documents].tolist()],
            sub_datasets=self._sub_datasets_of(pieces),
        )

    def _sub_datasets_of(self, pieces: Pieces) -> list[str] | None:
        if self._sub_datasets is None or self._owners is None:
            return None
        return [self._sub_datasets[owner] for owner in self._owners[pieces.documents].tolist()]

    def _learned(self, pieces: Pieces, in_row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Learned stretches of the pieces, counted from the row's start, and their number for each piece.

        The first token of a piece is never learned: nothing of its own document stands before it to predict it from
        (at the start of a row there is nothing at all, elsewhere another document).
        """
        counts = self._run_counts[pieces.documents].astype(np.int64)
        runs = self._runs[gather_ranges(self._first_runs[pieces.documents], counts)].astype(np.int64)
        owner = np.repeat(np.arange(len(pieces)), counts)
        starts = np.maximum(runs[:, 0], (pieces.starts + 1)[owner])
        ends = np.minimum(runs[:, 1], (pieces.starts + pieces.lengths)[owner])
        kept = ends > starts
        shift = (in_row - pieces.starts)[owner[kept]]
        inside = np.stack([starts[kept] + shift, ends[kept] + shift], axis=1).astype(np.int32)
        return inside, np.bincount(owner[kept], minlength=len(pieces))

    def _read(self, shard: int, place: int, target: memoryview) -> None:
        # Not mapped: every bin touches every page of every shard, and mapped pages would count as memory used.
        if os.preadv(self._descriptor(shard), [target], place) != len(target):
            raise OSError(f"{shard_path(self._folder, shard, 'tokens')} is shorter than its index says")

    def _descriptor(self, shard: int) -> int:
        if shard not in self._files:
            if len(self._files) >= OPEN_SHARDS:
                os.close(self._files.popitem(last=False)[1])
            self._files[shard] = os.open(shard_path(self._folder, shard, "tokens"), os.O_RDONLY)
        return self._files[shard]


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _batches(packing: Packing) -> Iterator[tuple[Pieces, np.ndarray]]:
    """Consecutive rows of about ``BATCH_TOKENS`` tokens: their pieces, and the pieces in each row."""
    row_ends = np.cumsum(_row_lengths(packing))
    row = piece = tokens = 0
    while row < len(row_ends):
        next_row = max(int(np.searchsorted(row_ends, tokens + BATCH_TOKENS, side="right")), row + 1)
        sizes = packing.row_sizes[row:next_row]
        pieces = slice(piece, piece + int(sizes.sum(dtype=np.int64)))
        yield packing.pieces.take(pieces), sizes
        row, piece, tokens = next_row, pieces.stop, int(row_ends[next_row - 1])


def _row_lengths(packing: Packing) -> np.ndarray:
    """Tokens of each row: int64."""
    if not len(packing.row_sizes):  # reduceat wants a place to begin at
        return np.zeros(0, dtype=np.int64)
    return np.add.reduceat(packing.pieces.lengths, firsts_of(packing.row_sizes), dtype=np.int64)


def _write_rows(maker: _RowMaker, packing: Packing, folder: Path, jsonl: Path | None) -> dict[str, int]:
    """Write all rows; returns what was written, counted as it was."""
    import pyarrow

    features, schema = _features(maker.notes_sub_datasets)
    file_name = "data-00000-of-00001.arrow"
    tokens = targets = 0
    with ExitStack() as stack:
        writer = stack.enter_context(pyarrow.ipc.new_stream(str(folder / file_name), schema))
        lines = stack.enter_context(jsonl.open("w", encoding="utf-8")) if jsonl else None
        for pieces, row_sizes in _batches(packing):
            batch = maker.batch(pieces, row_sizes)
            writer.write_batch(_record_batch(batch, schema))
            if lines is not None:
                _write_lines(batch, lines)
            tokens += len(batch.input_ids)
            targets += int((batch.runs[:, 1] - batch.runs[:, 0]).sum(dtype=np.int64))
    _describe_folder(folder, file_name, features)
    return {"tokens": tokens, "target_tokens": targets}


def _features(notes_sub_datasets: bool) -> tuple[Any, "pyarrow.Schema"]:
    """Columns of a part as ``datasets`` and as arrow describe them."""
    import datasets

    numbers = datasets.Sequence(datasets.Value("int32"))
    names = datasets.Sequence(datasets.Value("string"))
    columns = {"input_ids": numbers, "learned": numbers, "seq_lengths": numbers, "category": names}
    features = datasets.Features(columns | ({"sub_dataset": names} if notes_sub_datasets else {}))
    return features, features.arrow_schema


def _describe_folder(folder: Path, file_name: str, features: Any) -> None:
    """Write the two files that make a folder one of ``datasets.load_from_disk``.

    ``Dataset.save_to_disk`` would write them too, after taking the whole part into memory.
    """
    import datasets

    datasets.DatasetInfo(features=features).write_to_directory(str(folder))
    state: dict[str, Any] = {
        "_data_files": [{"filename": file_name}],
        "_fingerprint": folder.name.removeprefix(".").removesuffix(".tmp"),
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    (folder / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def _record_batch(batch: Batch, schema: "pyarrow.Schema") -> "pyarrow.RecordBatch":
    import pyarrow

    def lists(offsets: np.ndarray, values: Any) -> "pyarrow.ListArray":
        return pyarrow.ListArray.from_arrays(offsets.astype(np.int32), values)

    columns = [
        lists(batch.row_offsets, batch.input_ids),
        lists(batch.run_offsets * 2, batch.runs.reshape(-1)),
        lists(batch.piece_offsets, batch.lengths),
        lists(batch.piece_offsets, pyarrow.array(batch.categories, pyarrow.string())),
    ]
    if batch.sub_datasets is not None:
        columns.append(lists(batch.piece_offsets, pyarrow.array(batch.sub_datasets, pyarrow.string())))
    return pyarrow.RecordBatch.from_arrays(columns, schema=schema)


def _write_lines(batch: Batch, file: TextIO) -> None:
    """Write rows as JSON lines, with the labels written out."""
    for row in range(len(batch.row_offsets) - 1):
        ids = batch.input_ids[batch.row_offsets[row] : batch.row_offsets[row + 1]]
        learned = batch.runs[batch.run_offsets[row] : batch.run_offsets[row + 1]]
        own = slice(batch.piece_offsets[row], batch.piece_offsets[row + 1])
        # repr of a list of ints is JSON too, and nearly twice as fast as json.dumps.
        numbers = (
            f'"input_ids": {ids.tolist()!r}, "labels": {labels_of(ids, learned).tolist()!r}, '
            f'"seq_lengths": {batch.lengths[own].tolist()!r}'
        )
        category = json.dumps(batch.categories[own], ensure_ascii=False)
        file.write(f'{{{numbers}, "category": {category}}}\n')
