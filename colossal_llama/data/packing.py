"""Packing documents into rows: long ones are cut, none is lost, none that fits is cut."""

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from colossal_llama.data.shuffles import permutation
from colossal_llama.registry import Registry

_AT_ONCE = 1 << 16
"""Pieces that are looked at as Python's numbers at a time: those take nine times the room."""


@dataclass(slots=True)
class Pieces:
    """Documents after cutting: stretches of tokens, none longer than a row.

    Attributes:
        documents: number of the document, int32.
        starts: first token in the document, int32.
        lengths: tokens, int32, each 1 to the length of a row.
    """

    documents: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, index: np.ndarray | slice) -> "Pieces":
        """The pieces with these numbers, in this order."""
        return Pieces(self.documents[index], self.starts[index], self.lengths[index])


LONG_DOCUMENTS: Registry[Callable[[np.ndarray, int, np.random.Generator], Pieces]] = Registry("way with long documents")
"""What happens to documents longer than a row; functions of lengths, row length and random numbers."""


def _whole(lengths: np.ndarray) -> Pieces:
    sizes = np.asarray(lengths, dtype=np.int32)
    return Pieces(np.arange(len(sizes), dtype=np.int32), np.zeros(len(sizes), dtype=np.int32), sizes)


def split_long(lengths: np.ndarray, max_length: int, random: np.random.Generator) -> Pieces:
    """Full rows and the rest: nothing is lost."""
    sizes = np.asarray(lengths, dtype=np.int32)
    counts = -(-sizes // max_length)
    documents = np.repeat(np.arange(len(sizes), dtype=np.int32), counts)
    firsts = np.cumsum(counts, dtype=np.int32) - counts
    starts = (np.arange(len(documents), dtype=np.int32) - firsts[documents]) * max_length
    return Pieces(documents, starts, np.minimum(sizes[documents] - starts, max_length))


def truncate_long(lengths: np.ndarray, max_length: int, random: np.random.Generator) -> Pieces:
    """The first row's worth; the rest is dropped and counted."""
    pieces = _whole(lengths)
    pieces.lengths = np.minimum(pieces.lengths, max_length)
    return pieces


def sample_long(lengths: np.ndarray, max_length: int, random: np.random.Generator) -> Pieces:
    """One window at a random place (as for Gopher, Rae et al. 2021); the rest is dropped and counted."""
    pieces = truncate_long(lengths, max_length, random)
    # Ends in eight bytes: others would be drawn for smaller ones.
    ends = np.asarray(lengths, dtype=np.int64) - pieces.lengths + 1
    pieces.starts = random.integers(0, ends).astype(np.int32)
    return pieces


LONG_DOCUMENTS.add("split", split_long)
LONG_DOCUMENTS.add("truncate", truncate_long)
LONG_DOCUMENTS.add("sample", sample_long)


@dataclass(slots=True)
class Packing:
    """Rows of pieces.

    Attributes:
        pieces: in the order in which they stand in the rows, row by row.
        row_sizes: pieces in each row, int32.
    """

    pieces: Pieces
    row_sizes: np.ndarray


PACKINGS: Registry[Callable[[Pieces, int, np.random.Generator], Packing]] = Registry("packing")
"""How pieces become rows; functions of pieces, row length and random numbers."""


def pack_best_fit(pieces: Pieces, max_length: int, random: np.random.Generator) -> Packing:
    """Best-fit-decreasing bin packing ("Fewer Truncations Improve Language Modeling", Ding et al., ICML 2024).

    No piece is cut. Rows come in random order, and so do the pieces of a row.
    """
    # Shuffled before packing too: documents of one length would keep their neighbours from the file.
    pieces = pieces.take(permutation(len(pieces), random))
    row_of = best_fit_rows(pieces.lengths, max_length)
    rows = int(row_of.max()) + 1 if len(row_of) else 0
    place = permutation(rows, random)[row_of]
    del row_of
    order = np.lexsort((random.random(len(pieces)), place))
    return Packing(pieces.take(order), np.bincount(place, minlength=rows).astype(np.int32))


def pack_concatenated(pieces: Pieces, max_length: int, random: np.random.Generator) -> Packing:
    """Pieces in random order as one stream, cut every ``max_length`` tokens: full rows, but documents are cut."""
    pieces = pieces.take(permutation(len(pieces), random))
    ends = np.cumsum(pieces.lengths, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.union1d(ends, np.arange(max_length, total, max_length))
    starts = np.concatenate([[0], cuts[:-1]]).astype(np.int64) if total else np.empty(0, np.int64)
    owner = np.searchsorted(ends, starts, side="right")
    begin = pieces.starts[owner] + starts - (ends - pieces.lengths)[owner]
    chunks = Pieces(pieces.documents[owner], begin.astype(np.int32), (cuts - starts).astype(np.int32))
    sizes = np.bincount(starts // max_length)
    # Rows are shuffled as well: else a document's rows would follow each other.
    place = permutation(len(sizes), random)
    order = np.argsort(place[starts // max_length], kind="stable") if total else starts
    return Packing(chunks.take(order), sizes[np.argsort(place)].astype(np.int32))


def pack_none(pieces: Pieces, max_length: int, random: np.random.Generator) -> Packing:
    """One piece a row, in random order."""
    return Packing(pieces.take(permutation(len(pieces), random)), np.ones(len(pieces), dtype=np.int32))


PACKINGS.add("best_fit", pack_best_fit)
PACKINGS.add("concat", pack_concatenated)
PACKINGS.add("none", pack_none)


def best_fit_rows(lengths: Sequence[int] | np.ndarray, max_length: int) -> np.ndarray:
    """Row of each piece by best-fit-decreasing.

    Each piece, longest first, goes to the row with the least room that still takes it. Rows are found by
    their free room, of which there are at most ``max_length`` values, so a piece costs one bisection.

    Args:
        lengths: lengths of the pieces, each 1 to ``max_length``.
        max_length: room of a row.

    Returns:
        int32 ``[pieces]``, rows numbered from 0; the same input gives the same rows.

    Raises:
        ValueError: a length is outside of 1 to ``max_length``.
    """
    sizes = np.asarray(lengths, dtype=np.int32)
    if sizes.size and (sizes.min() < 1 or sizes.max() > max_length):
        raise ValueError(f"lengths must be 1 to {max_length}, found {sizes.min()} to {sizes.max()}")
    # Numbers of two bytes are sorted without comparing them.
    order = np.argsort((max_length - sizes).astype(np.min_scalar_type(max_length)), kind="stable")
    result = np.empty(len(sizes), dtype=np.int32)
    rows_by_room: dict[int, list[int]] = {}
    rooms: list[int] = []  # sorted keys of rows_by_room
    rows = 0
    for start in range(0, len(order), _AT_ONCE):
        some = order[start : start + _AT_ONCE]
        chosen: list[int] = []
        for size in sizes[some].tolist():
            position = bisect_left(rooms, size)
            if position == len(rooms):
                row, room = rows, max_length
                rows += 1
            else:
                room = rooms[position]
                stack = rows_by_room[room]
                row = stack.pop()
                if not stack:
                    del rows_by_room[room], rooms[position]
            chosen.append(row)
            left = room - size
            if left in rows_by_room:
                rows_by_room[left].append(row)
            elif left:
                rows_by_room[left] = [row]
                insort(rooms, left)
        result[some] = chosen
    return result
