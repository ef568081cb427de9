"""Batches: shifted once, padded on the right."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama.data.collator import PackedCollator
from colossal_llama.data.loader import EMPTY_ROW

ROWS: list[dict[str, Any]] = [
    {"input_ids": np.array([5, 6, 7, 2], np.int32), "labels": np.array([-100, 6, 7, 2], np.int32)},
    {"input_ids": np.array([8, 2], np.int32), "labels": np.array([-100, 2], np.int32)},
]


def test_targets_are_the_next_labels() -> None:
    batch = PackedCollator(pad_token_id=2, max_length=6, padding_mode="max_length")(ROWS)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 2, 2, 2], [8, 2, 2, 2, 2, 2]]
    assert batch["targets"].tolist() == [[6, 7, 2, -100, -100, -100], [2] + [-100] * 5]
    assert batch["input_ids"].dtype == batch["targets"].dtype == torch.int64
    assert set(batch) == {"input_ids", "targets"}


@pytest.mark.parametrize(("multiple", "length"), [(1, 4), (3, 6), (8, 8)])
def test_longest_is_rounded_up(multiple: int, length: int) -> None:
    batch = PackedCollator(0, 100, "longest", multiple)(ROWS)
    assert batch["input_ids"].shape == batch["targets"].shape == (2, length)


def test_every_label_but_the_first_becomes_a_target() -> None:
    batch = PackedCollator(0, 8, "longest")(ROWS)
    assert int((batch["targets"] != -100).sum()) == sum(int((row["labels"][1:] != -100).sum()) for row in ROWS)


def test_empty_row_and_wrong_arguments() -> None:
    empty = {"input_ids": np.empty(0, np.int32), "labels": np.empty(0, np.int32)}
    batch = PackedCollator(9, 4, "longest")([empty])
    assert batch["input_ids"].tolist() == [[9]]
    assert batch["targets"].tolist() == [[-100]]
    with pytest.raises(ValueError, match="longer than max_length 3"):
        PackedCollator(0, 3, "longest")(ROWS)
    with pytest.raises(ValueError, match="padding_mode"):
        PackedCollator(0, 3, "left")(ROWS)  # type: ignore[arg-type]


def rows_of(documents: list[list[int]]) -> list[dict[str, Any]]:
    """Rows of documents of these lengths; every token is different and every label is the token."""
    rows, first = [], 0
    for lengths in documents:
        ids = np.arange(first, first + sum(lengths), dtype=np.int32)
        first += sum(lengths)
        rows.append({"input_ids": ids, "labels": ids.copy(), "seq_lengths": np.array(lengths, np.int32)})
    return rows


def test_documents_restart_and_keep_their_targets_to_themselves() -> None:
    batch = PackedCollator(0, 8, "max_length", document_mask=True)(rows_of([[3, 1, 2], [8]]))
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 0, 1, 0, 1], [0, 1, 2, 3, 4, 5, 6, 7]]
    assert batch["targets"].tolist() == [[1, 2, -100, -100, 5, -100, -100, -100], [7, 8, 9, 10, 11, 12, 13, -100]]
    assert batch["position_ids"].dtype == torch.int64
    assert set(batch) == {"input_ids", "targets", "position_ids"}


@given(
    documents=st.lists(st.lists(st.integers(1, 6), max_size=5), min_size=1, max_size=4),
    multiple=st.integers(1, 8),
    mode=st.sampled_from(["max_length", "longest"]),
)
def test_documents_of_any_row(documents: list[list[int]], multiple: int, mode: str) -> None:
    rows = rows_of(documents)
    batch = {
        name: tensor.tolist()
        for name, tensor in PackedCollator(0, 32, mode, multiple, document_mask=True)(rows).items()
    }
    for number, (row, lengths) in enumerate(zip(rows, documents, strict=True)):
        size, start = sum(lengths), 0
        for length in lengths:
            end = start + length
            assert batch["position_ids"][number][start:end] == list(range(length))
            # Predicted are the document's own tokens after its first, and nothing of the next.
            own = row["input_ids"][start + 1 : end].tolist()
            assert batch["targets"][number][start:end] == [*own, -100]
            start = end
        padding = len(batch["input_ids"][number]) - size
        assert batch["position_ids"][number][size:] == list(range(padding))
        assert batch["targets"][number][size:] == [-100] * padding


def test_documents_of_an_empty_row_and_of_a_wrong_one() -> None:
    collate = PackedCollator(9, 4, "max_length", document_mask=True)
    batch = collate([EMPTY_ROW])
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3]]
    assert batch["targets"].tolist() == [[-100] * 4]
    wrong = ROWS[1] | {"seq_lengths": np.array([2, 1], np.int32)}
    with pytest.raises(ValueError, match="seq_lengths add up to 3, but the row has 2 tokens"):
        collate([wrong])
