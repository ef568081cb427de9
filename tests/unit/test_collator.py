"""Batches: shifted once, padded on the right."""

from typing import Any

import numpy as np
import pytest
import torch

from colossal_llama.data.collator import PackedCollator

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
