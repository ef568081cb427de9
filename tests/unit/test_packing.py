"""Cutting long documents, and packing pieces into rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama.data.packing import LONG_DOCUMENTS, PACKINGS, best_fit_rows

LENGTHS = st.lists(st.integers(1, 100), max_size=60)


def random() -> np.random.Generator:
    return np.random.default_rng(3)


def covered(lengths: list[int], way: str, packing: str, max_length: int) -> list[np.ndarray]:
    """How often each token of each document is in a row, after checking the rows themselves."""
    pieces = LONG_DOCUMENTS.get(way)(np.array(lengths, dtype=np.int32), max_length, random())
    packed = PACKINGS.get(packing)(pieces, max_length, random())
    assert packed.row_sizes.sum() == len(packed.pieces)
    assert (packed.row_sizes > 0).all()
    ends = np.cumsum(packed.row_sizes)
    for end, size in zip(ends, packed.row_sizes, strict=True):
        assert 1 <= packed.pieces.lengths[end - size : end].sum() <= max_length
    seen = [np.zeros(length, dtype=int) for length in lengths]
    for document, start, length in zip(
        packed.pieces.documents, packed.pieces.starts, packed.pieces.lengths, strict=True
    ):
        assert length > 0
        assert start + length <= lengths[document]
        seen[document][start : start + length] += 1
    return seen


@pytest.mark.parametrize("packing", ["best_fit", "concat", "none"])
@given(lengths=LENGTHS, max_length=st.integers(1, 40))
def test_split_keeps_every_token_once(packing: str, lengths: list[int], max_length: int) -> None:
    assert all((seen == 1).all() for seen in covered(lengths, "split", packing, max_length))


@pytest.mark.parametrize("packing", ["best_fit", "concat", "none"])
@given(lengths=LENGTHS, max_length=st.integers(1, 40))
def test_truncate_keeps_the_beginning(packing: str, lengths: list[int], max_length: int) -> None:
    for seen in covered(lengths, "truncate", packing, max_length):
        assert (seen[:max_length] == 1).all()
        assert (seen[max_length:] == 0).all()


@given(lengths=LENGTHS, max_length=st.integers(1, 40))
def test_sample_keeps_one_window(lengths: list[int], max_length: int) -> None:
    for seen in covered(lengths, "sample", "best_fit", max_length):
        window = np.flatnonzero(seen)
        assert len(window) == min(len(seen), max_length)
        assert window[-1] - window[0] == len(window) - 1


def test_sample_reaches_every_place() -> None:
    pieces = LONG_DOCUMENTS.get("sample")(np.full(400, 12), 10, random())
    assert set(pieces.starts.tolist()) == {0, 1, 2}


@given(lengths=LENGTHS)
def test_best_fit_cuts_nothing_that_fits(lengths: list[int]) -> None:
    pieces = LONG_DOCUMENTS.get("split")(np.array(lengths, dtype=np.int64), 40, random())
    packed = PACKINGS.get("best_fit")(pieces, 40, random())
    whole = {document for document, length in enumerate(lengths) if length <= 40}
    counts = np.bincount(packed.pieces.documents, minlength=len(lengths))
    assert all(counts[document] == 1 for document in whole)


@given(lengths=LENGTHS)
def test_concatenated_rows_are_full(lengths: list[int]) -> None:
    pieces = LONG_DOCUMENTS.get("split")(np.array(lengths, dtype=np.int64), 40, random())
    packed = PACKINGS.get("concat")(pieces, 40, random())
    assert len(packed.row_sizes) == -(-sum(lengths) // 40)


def test_neighbours_are_parted() -> None:
    pieces = LONG_DOCUMENTS.get("split")(np.full(200, 10), 40, random())
    packed = PACKINGS.get("best_fit")(pieces, 40, random())
    rows = packed.pieces.documents.reshape(50, 4)
    assert (np.abs(np.diff(rows, axis=1)) == 1).mean() < 0.2


def test_little_padding() -> None:
    lengths = np.minimum(random().lognormal(4.5, 1.5, 5000).astype(int) + 1, 2048)
    row_of = best_fit_rows(lengths, 2048)
    assert np.bincount(row_of, lengths).max() <= 2048
    assert 1 - lengths.sum() / (2048 * (row_of.max() + 1)) < 0.01


def test_best_fit_matches_a_plain_implementation() -> None:
    numbers = np.random.default_rng(1)
    for _ in range(30):
        lengths = numbers.integers(1, 50, 60)
        rooms: list[int] = []
        for length in sorted(lengths.tolist(), reverse=True):
            fitting = [number for number, room in enumerate(rooms) if room >= length]
            if fitting:
                rooms[min(fitting, key=lambda number: rooms[number])] -= length
            else:
                rooms.append(50 - length)
        row_of = best_fit_rows(lengths, 50)
        assert sorted((50 - np.bincount(row_of, lengths)).tolist()) == sorted(rooms)


def test_edges() -> None:
    assert best_fit_rows([], 8).tolist() == []
    assert sorted(best_fit_rows([8, 8], 8).tolist()) == [0, 1]
    for wrong in ([9], [0]):
        with pytest.raises(ValueError, match="1 to 8"):
            best_fit_rows(wrong, 8)
