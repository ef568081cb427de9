"""The document lists of the bins: files that say which documents make a part, and where in the shards they lie.

They are written while the shards' indexes are read one after the other, and read one column at a time. A list is two
files: its entries, and the learned stretches of its documents beside them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from colossal_llama.data.allotment import Allotment
from colossal_llama.data.corpus import Corpus, ShardDocuments, firsts_of, gather_ranges, rows_by
from colossal_llama.data.shard_files import NOT_FIRST

ENTRY = np.dtype(
    [
        ("shard", "<i4"),
        ("offset", "<i8"),
        ("length", "<i4"),
        ("category", "<i4"),
        ("owner", "<i4"),
        ("turn", "<i8"),
        ("head", "?"),
        ("first_run", "<i8"),
        ("runs", "<i4"),
    ]
)
"""A document of a bin: number of its shard, its first token there, tokens, index of the category, number of the
sub-dataset, what the list is ordered by before the corpus (the sub-dataset and the pass over it; nothing in the
validation set), whether it is no later piece of a conversation, and its learned stretches: the first one's number in
the list, and how many."""

_RUN = np.dtype(("<i4", 2))

_WAITING = 1 << 17
"""Documents that wait in memory to be written."""

_AT_ONCE = 1 << 16
"""Entries that are read together."""


@dataclass(slots=True)
class DealtTokens:
    """Tokens that were put on lists (``taken``), of them a second time or more often, and those put on none."""

    taken: int = 0
    repeated: int = 0
    left_out: int = 0


def write_bins(corpus: Corpus, allotment: Allotment, paths: Sequence[Path | None]) -> DealtTokens:
    """Write the document lists of bins.

    Args:
        corpus: all documents.
        allotment: where they go.
        paths: a file for each bin and, where there is one, for the validation set; None for a list that is not needed.

    Returns:
        Tokens of all lists, also of those that were not needed.
    """
    writer, dealt = _ListWriter(paths), DealtTokens()
    done = [0] * len(allotment.names)
    for shard in corpus.shard_documents():
        times = np.zeros(len(shard.owners), dtype=np.int64)
        found = []
        for owner, rows in rows_by(shard.owners, shard.kept):
            places = allotment.destinations[owner][:, done[owner] : done[owner] + len(rows)]
            done[owner] += len(rows)
            copies, which = np.nonzero(places != allotment.nowhere)
            times[rows] = np.bincount(which, minlength=len(rows))
            bins = places[copies, which]
            turns = np.where(bins == allotment.validation, 0, (owner << 32) + copies)
            found.append((rows[which], bins, np.full(len(which), owner), turns))
        lengths = shard.columns.lengths.astype(np.int64)
        dealt.taken += int((times * lengths).sum())
        dealt.repeated += int((np.maximum(times - 1, 0) * lengths).sum())
        dealt.left_out += int(lengths[times == 0].sum())
        if found:
            writer.add(shard, *map(np.concatenate, zip(*found, strict=True)))
    writer.flush()
    return dealt


class _ListWriter:
    """Appends to the lists of all bins."""

    def __init__(self, paths: Sequence[Path | None]) -> None:
        self._paths = paths
        self._runs_written = [0] * len(paths)
        self._waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for path in filter(None, paths):  # a killed run may have left some
            path.write_bytes(b"")
            _runs_file(path).write_bytes(b"")

    def add(
        self, shard: ShardDocuments, rows: np.ndarray, bins: np.ndarray, owners: np.ndarray, turns: np.ndarray
    ) -> None:
        """Put documents of a shard on lists: their rows in its index, and for each the list, sub-dataset and turn."""
        columns = shard.columns
        order = np.argsort(rows, kind="stable")
        rows, bins, owners, turns = rows[order], bins[order], owners[order], turns[order]
        entries = np.empty(len(rows), dtype=ENTRY)
        entries["shard"] = shard.number
        entries["offset"] = firsts_of(columns.lengths)[rows]
        entries["length"] = columns.lengths[rows]
        entries["category"] = shard.categories[rows]
        entries["owner"], entries["turn"] = owners, turns
        entries["head"] = columns.characters[rows] != NOT_FIRST
        entries["runs"] = columns.run_counts[rows]
        runs = columns.runs[gather_ranges(firsts_of(columns.run_counts)[rows], columns.run_counts[rows])]
        self._waiting.append((bins, entries, runs))
        if sum(len(bins) for bins, _, _ in self._waiting) >= _WAITING:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if not self._waiting:
            return
        bins, entries, runs = (np.concatenate(arrays) for arrays in zip(*self._waiting, strict=True))
        self._waiting = []
        first_runs = firsts_of(entries["runs"])
        for number, rows in rows_by(bins, np.arange(len(bins))):
            path, own = self._paths[number], entries[rows]
            own["first_run"] = self._runs_written[number] + firsts_of(own["runs"])
            self._runs_written[number] += int(own["runs"].sum(dtype=np.int64))
            if path is not None:
                _append(path, own)
                _append(_runs_file(path), runs[gather_ranges(first_runs[rows], own["runs"])])


def _append(path: Path, array: np.ndarray) -> None:
    with path.open("ab") as file:
        file.write(array.tobytes())


def _runs_file(path: Path) -> Path:
    return path.with_suffix(".runs")


class BinReader:
    """The documents of a bin in the order of sub-datasets, passes and the corpus; of the validation set, of the corpus.

    Args:
        path: one of :func:`write_bins`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._order: np.ndarray | None = None
        turns = self.column("turn")
        if (turns[1:] < turns[:-1]).any():
            self._order = np.argsort(turns, kind="stable").astype(np.int32)

    def column(self, name: str) -> np.ndarray:
        """A field of :data:`ENTRY` of all documents."""
        values = np.empty(self._path.stat().st_size // ENTRY.itemsize, dtype=ENTRY[name])
        with self._path.open("rb") as file:
            for start in range(0, len(values), _AT_ONCE):
                values[start : start + _AT_ONCE] = np.fromfile(file, ENTRY, _AT_ONCE)[name]
        return values if self._order is None else values[self._order]

    def runs(self) -> np.ndarray:
        """The stretches that ``first_run`` counts: start and end in their document, int32 ``[stretches, 2]``."""
        return np.fromfile(_runs_file(self._path), _RUN)
