"""Packing documents into rows: long ones are cut, none is lost, none that fits is cut."""

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np


def split_lengths(length: int, max_length: int) -> list[int]:
    """Lengths of the pieces of one document: full pieces, then the rest."""
    full, rest = divmod(length, max_length)
    return [max_length] * full + ([rest] if rest else [])


def pack(lengths: Sequence[int] | np.ndarray, max_length: int) -> list[list[int]]:
    """Best-fit-decreasing bin packing.

    Each piece, longest first, goes to the row with the least room that still takes it. Rows are found by
    their free room, of which there are at most ``max_length`` values, so a piece costs one bisection.

    Args:
        lengths: lengths of the pieces, each 1 to ``max_length``.
        max_length: room of a row.

    Returns:
        Rows as lists of indices into ``lengths``; the same input gives the same rows.

    Raises:
        ValueError: a length is outside of 1 to ``max_length``.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if sizes.size and (sizes.min() < 1 or sizes.max() > max_length):
        raise ValueError(f"lengths must be 1 to {max_length}, found {sizes.min()} to {sizes.max()}")
    rows: list[list[int]] = []
    rows_by_room: dict[int, list[int]] = {}
    rooms: list[int] = []  # sorted keys of rows_by_room
    order = np.argsort(-sizes, kind="stable")
    for index, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        position = bisect_left(rooms, size)
        if position == len(rooms):
            row, room = len(rows), max_length
            rows.append([])
        else:
            room = rooms[position]
            row = rows_by_room[room].pop()
            if not rows_by_room[room]:
                del rows_by_room[room], rooms[position]
        rows[row].append(index)
        left = room - size
        if left in rows_by_room:
            rows_by_room[left].append(row)
        elif left:
            rows_by_room[left] = [row]
            insort(rooms, left)
    return rows
