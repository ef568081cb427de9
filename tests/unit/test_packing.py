"""Best-fit-decreasing packing."""

import time

import numpy as np
import pytest

from colossal_llama.data.packing import pack, split_lengths


def test_every_piece_once_and_no_row_too_long() -> None:
    random = np.random.default_rng(0)
    lengths = np.minimum(random.lognormal(4.5, 1.5, 5000).astype(int) + 1, 2048)
    rows = pack(lengths, 2048)
    assert sorted(index for row in rows for index in row) == list(range(5000))
    assert max(int(lengths[row].sum()) for row in rows) <= 2048
    assert 1 - lengths.sum() / (2048 * len(rows)) < 0.01
    assert rows == pack(lengths.tolist(), 2048)


def test_best_fit_matches_a_plain_implementation() -> None:
    random = np.random.default_rng(1)
    for _ in range(30):
        lengths = random.integers(1, 50, 60)
        rooms: list[int] = []
        for length in sorted(lengths.tolist(), reverse=True):
            fitting = [number for number, room in enumerate(rooms) if room >= length]
            if fitting:
                rooms[min(fitting, key=lambda number: rooms[number])] -= length
            else:
                rooms.append(50 - length)
        rows = pack(lengths, 50)
        assert sorted(50 - int(lengths[row].sum()) for row in rows) == sorted(rooms)


def test_edges() -> None:
    assert pack([], 8) == []
    assert pack([8, 8], 8) == [[0], [1]]
    for wrong in ([9], [0]):
        with pytest.raises(ValueError, match="1 to 8"):
            pack(wrong, 8)
    assert split_lengths(20, 8) == [8, 8, 4]
    assert split_lengths(16, 8) == [8, 8]
    assert split_lengths(3, 8) == [3]


def test_speed() -> None:
    lengths = np.minimum(np.random.default_rng(2).lognormal(4.5, 1.5, 66_000).astype(int) + 1, 2048)
    started = time.process_time()
    pack(lengths, 2048)
    assert time.process_time() - started < 1
