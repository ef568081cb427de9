"""Turning the documents of a bin into a part: cut, pack, and write as arrow (and jsonl).

A part is made from files only (its bin's document list and the shards), so any process can make it, in any order,
and again after a kill. Rows are written batch by batch: memory holds a bin's lengths and one batch of its tokens.
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
from colossal_llama.data.allotment import Corpus, Documents, gather_ranges
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
        bin_file: the bin's documents, see :func:`write_bin`; what is known of the part is put beside it.
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


def write_bin(path: Path, corpus: Corpus, owners: np.ndarray, numbers: np.ndarray) -> None:
    """Write the document list of a bin.

    Args:
        path: a new ``.npz`` file.
        corpus: all documents.
        owners: number of each document's sub-dataset.
        numbers: the bin's documents; one can be there more than once.
    """
    chosen = corpus.documents.take(numbers)
    runs = corpus.runs[gather_ranges(chosen.run_firsts, chosen.run_counts)]
    chosen.run_firsts = np.cumsum(chosen.run_counts, dtype=np.int64) - chosen.run_counts
    with path.open("wb") as file:
        np.savez(file, owners=owners[numbers], runs=runs, **asdict(chosen))


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
    with np.load(task.bin_file) as arrays:
        content = dict(arrays.items())
    owners, runs = content.pop("owners"), content.pop("runs")
    documents = Documents(**content)
    random = np.random.default_rng(list(task.seed))
    pieces = LONG_DOCUMENTS.get(task.long_documents)(documents.lengths, task.max_length, random)
    packing = PACKINGS.get(task.packing)(pieces, task.max_length, random)
    sub_datasets = None
    if task.notes_sub_datasets:
        # The name of an input need not be UTF-8, but arrow's strings are.
        names = [name.encode(errors="surrogateescape").decode(errors="replace") for name in task.sub_datasets]
        sub_datasets = [names[owner] for owner in owners.tolist()]
    maker = _RowMaker(documents, runs, task.categories, Path(task.shard_folder), sub_datasets)
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
    produced = int(documents.lengths.sum(dtype=np.int64))
    return PartInfo(
        name=task.name,
        rows=len(packing.row_sizes),
        pieces=len(packing.pieces),
        tokens=counted["tokens"],
        target_tokens=counted["target_tokens"],
        documents=documents.count(),
        cut_documents=int((np.bincount(packing.pieces.documents) > 1).sum()) if len(packing.pieces) else 0,
        dropped_tokens=produced - counted["tokens"],
        sub_datasets=_shares(documents, owners, task.sub_datasets),
    )


def _shares(documents: Documents, owners: np.ndarray, names: Sequence[str]) -> dict[str, Share]:
    shares = {}
    for number, name in enumerate(names):
        own = documents.take(np.flatnonzero(owners == number))
        shares[name] = Share(own.count(), int(own.lengths.sum(dtype=np.int64)))
    return shares


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
    """Fetches the tokens of pieces from the shards; ``sub_datasets`` are the names of the documents' ones."""

    def __init__(
        self,
        documents: Documents,
        runs: np.ndarray,
        categories: Sequence[str],
        folder: Path,
        sub_datasets: Sequence[str] | None = None,
    ) -> None:
        self._documents = documents
        self._runs = runs
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
        shards = self._documents.shards[pieces.documents].tolist()
        places = (self._documents.offsets[pieces.documents] + pieces.starts).tolist()
        target = memoryview(input_ids).cast("B")  # type: ignore[arg-type]
        bounds = (offsets * TOKEN_BYTES).tolist()
        for number, (shard, place) in enumerate(zip(shards, places, strict=True)):
            self._read(shard, place * TOKEN_BYTES, target[bounds[number] : bounds[number + 1]])
        in_row = offsets[:-1] - np.repeat(row_offsets[:-1], row_sizes)
        runs, run_counts = self._learned(pieces, in_row)
        names, owners = self._categories, self._sub_datasets
        return Batch(
            input_ids=input_ids,
            row_offsets=row_offsets,
            runs=runs,
            run_offsets=_offsets(run_counts)[piece_offsets],
            lengths=pieces.lengths.astype(np.int32),
            piece_offsets=piece_offsets,
            categories=[names[code] for code in self._documents.categories[pieces.documents].tolist()],
            sub_datasets=None if owners is None else [owners[document] for document in pieces.documents.tolist()],
        )

    def _learned(self, pieces: Pieces, in_row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Learned stretches of the pieces, counted from the row's start, and their number for each piece.

        The first token of a piece is never learned: nothing of its own document stands before it to predict it from
        (at the start of a row there is nothing at all, elsewhere another document).
        """
        counts = self._documents.run_counts[pieces.documents].astype(np.int64)
        runs = self._runs[gather_ranges(self._documents.run_firsts[pieces.documents], counts)].astype(np.int64)
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
    piece_offsets = _offsets(packing.row_sizes)
    row_tokens = _offsets(packing.pieces.lengths)[piece_offsets]
    first, rows = 0, len(packing.row_sizes)
    while first < rows:
        last = int(np.searchsorted(row_tokens, row_tokens[first] + BATCH_TOKENS, side="right")) - 1
        last = max(last, first + 1)
        chosen = np.arange(piece_offsets[first], piece_offsets[last])
        yield packing.pieces.take(chosen), packing.row_sizes[first:last]
        first = last


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
