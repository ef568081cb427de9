"""Counts of prepared rows and their documents, taken from the arrow files."""

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from colossal_llama.constants import IGNORE_INDEX
from colossal_llama.data.dataset import LABELS, LEARNED
from colossal_llama.data.inspection import PreparedPart

if TYPE_CHECKING:
    import pyarrow

_BATCH_ROWS = 4096


@dataclass
class PartStatistics:
    """Counts of one part, or of several added up.

    Attributes:
        rows: number of rows.
        tokens: in them.
        learned_tokens: those with a label.
        pieces: documents, after those longer than a row were cut.
        row_lengths: number of rows by length in tokens.
        piece_lengths: number of pieces by length in tokens.
        category_pieces: number of pieces by category.
        category_tokens: their tokens.
    """

    rows: int = 0
    tokens: int = 0
    learned_tokens: int = 0
    pieces: int = 0
    row_lengths: Counter[int] = field(default_factory=Counter)
    piece_lengths: Counter[int] = field(default_factory=Counter)
    category_pieces: Counter[str] = field(default_factory=Counter)
    category_tokens: Counter[str] = field(default_factory=Counter)

    def add(self, other: "PartStatistics") -> None:
        """Add another part's counts to these."""
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, name).update(value)
            else:
                setattr(self, name, getattr(self, name) + value)


def part_statistics(part: PreparedPart) -> PartStatistics:
    """Count a part; memory holds one batch of rows."""
    result = PartStatistics()
    for batch in part.table.to_batches(max_chunksize=_BATCH_ROWS):
        lengths = np.diff(batch.column("input_ids").offsets.to_numpy())
        result.rows += len(lengths)
        result.tokens += int(lengths.sum())
        result.learned_tokens += _learned_tokens(batch)
        _count(result.row_lengths, lengths)
        if {"seq_lengths", "category"} <= set(part.table.column_names):
            _count_pieces(result, batch)
    return result


def _learned_tokens(batch: "pyarrow.RecordBatch") -> int:
    if LEARNED in batch.schema.names:
        runs = batch.column(LEARNED).flatten().to_numpy().reshape(-1, 2)
        return int((runs[:, 1] - runs[:, 0]).sum(dtype=np.int64))
    return int((batch.column(LABELS).flatten().to_numpy() != IGNORE_INDEX).sum())


def _count_pieces(result: PartStatistics, batch: "pyarrow.RecordBatch") -> None:
    lengths = batch.column("seq_lengths").flatten().to_numpy()
    categories = batch.column("category").flatten().dictionary_encode()
    numbers, names = categories.indices.to_numpy(), categories.dictionary.to_pylist()
    result.pieces += len(lengths)
    _count(result.piece_lengths, lengths)
    pieces = np.bincount(numbers, minlength=len(names))
    tokens = np.bincount(numbers, weights=lengths, minlength=len(names))
    for name, some_pieces, some_tokens in zip(names, pieces.tolist(), tokens.tolist(), strict=True):
        result.category_pieces[name] += some_pieces
        result.category_tokens[name] += int(some_tokens)


def _count(counter: Counter[int], lengths: np.ndarray) -> None:
    values, counts = np.unique(lengths, return_counts=True)
    counter.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
