"""The order of rows and its division into steps, ranks and micro-batches."""

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama.data.loader import EMPTY_ROW, Row, StepLoader
from colossal_llama.data.prefetch import PREFETCHED_STEPS, Prefetched
from colossal_llama.data.random_rows import RandomRows
from colossal_llama.data.sampler import BucketSampler, GivenOrder
from colossal_llama.errors import UserError
from colossal_llama.schedule import TrainSchedule

BUCKETS = [13, 0, 7, 11]
ROWS = sum(BUCKETS)


class NumberedRows:
    """Row ``i`` is the token ``i``."""

    def __getitem__(self, index: int) -> Row:
        return {"input_ids": np.array([index], np.int32), "labels": np.array([index], np.int32)}


def numbers(rows: Sequence[Row]) -> list[int]:
    """Stands for the collator: the rows' numbers, -1 for an empty row."""
    return [int(row["input_ids"][0]) if len(row["input_ids"]) else -1 for row in rows]


def loaders(dp: int, micro: int, accumulation: int, seed: int = 3) -> list[StepLoader]:
    schedule = TrainSchedule(ROWS, dp, micro, accumulation, num_epochs=2)
    sampler = BucketSampler(BUCKETS, seed)
    return [StepLoader(NumberedRows(), sampler, numbers, schedule, rank) for rank in range(dp)]


def steps_of(ranks: list[StepLoader], epoch: int = 0, consumed: int = 0) -> list[tuple[int, list[list[list[int]]]]]:
    """``(samples, [rank][micro-batch][row])`` of each step."""
    steps: list[Any] = []
    for together in zip(*(rank.epoch(epoch, consumed) for rank in ranks), strict=True):
        assert len({one.samples for one in together}) == 1
        steps.append((together[0].samples, [one.micro_batches for one in together]))
    return steps


LAYOUTS = [(1, 1, 1), (1, 4, 1), (2, 1, 1), (2, 3, 2), (4, 2, 3), (3, 5, 1), (8, 8, 1)]


@pytest.mark.parametrize(("dp", "micro", "accumulation"), LAYOUTS)
def test_an_epoch_has_every_sample_once_whatever_the_layout(dp: int, micro: int, accumulation: int) -> None:
    ranks = loaders(dp, micro, accumulation)
    steps = steps_of(ranks)
    assert len(steps) == -(-ROWS // (dp * micro * accumulation))
    seen = []
    for samples, by_rank in steps:
        assert {len(batches) for batches in by_rank} == {accumulation}
        assert {len(batch) for batches in by_rank for batch in batches} == {micro}
        in_step = [row for batches in by_rank for batch in batches for row in batch if row >= 0]
        assert len(in_step) == samples
        seen += in_step
    assert sorted(seen) == list(range(ROWS))


@pytest.mark.parametrize(("dp", "micro", "accumulation"), [(1, 6, 1), (6, 1, 1), (2, 3, 1), (1, 2, 3), (3, 1, 2)])
def test_layouts_of_one_global_batch_see_the_same_rows_in_each_step(dp: int, micro: int, accumulation: int) -> None:
    def rows_of_steps(ranks: list[StepLoader]) -> list[set[int]]:
        return [
            {row for batches in by_rank for batch in batches for row in batch if row >= 0}
            for _, by_rank in steps_of(ranks, epoch=1)
        ]

    assert rows_of_steps(loaders(dp, micro, accumulation)) == rows_of_steps(loaders(1, 1, 6))


@pytest.mark.parametrize("done", [1, 3, 5])
def test_resuming_from_consumed_samples_goes_on_exactly(done: int) -> None:
    ranks = loaders(2, 1, 2)
    whole = steps_of(ranks)
    consumed = sum(samples for samples, _ in whole[:done])
    assert steps_of(ranks, consumed=consumed) == whole[done:]


layouts = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))


@settings(deadline=None, max_examples=150)
@given(
    buckets=st.lists(st.integers(0, 15), min_size=1, max_size=5).filter(any),
    seed=st.integers(0, 1000),
    runs=st.lists(st.tuples(layouts, st.integers(1, 4)), max_size=8),
)
def test_runs_of_any_layouts_one_after_the_other_take_each_sample_once_in_order(
    buckets: list[int], seed: int, runs: list[tuple[tuple[int, int, int], int]]
) -> None:
    """Each run goes on where the one before has stopped; the last one goes on to the end of the second epoch."""
    sampler = BucketSampler(buckets, seed)
    orders = [sampler.epoch_order(epoch).tolist() for epoch in range(2)]
    epoch = consumed = 0
    taken: list[int] = []
    for (dp, micro, accumulation), steps in [*runs, ((1, 3, 1), 10_000)]:
        schedule = TrainSchedule(sum(buckets), dp, micro, accumulation, num_epochs=2)
        ranks = [StepLoader(NumberedRows(), sampler, numbers, schedule, rank) for rank in range(dp)]
        left = schedule.remaining_steps(epoch, consumed)
        for _ in range(steps):
            if epoch == 2:
                break
            samples, by_rank = steps_of(ranks, epoch, consumed)[0]
            # The order of consumption: micro-batch by micro-batch, rank by rank.
            in_step = [row for k in range(accumulation) for batches in by_rank for row in batches[k] if row >= 0]
            assert len(in_step) == samples
            taken += in_step
            consumed += samples
            if consumed == sum(buckets):
                epoch, consumed = epoch + 1, 0
            left -= 1
            assert schedule.remaining_steps(epoch, consumed) == left
    assert taken == orders[0] + orders[1]


def test_micro_batches_interleave_ranks_in_the_global_order() -> None:
    order = BucketSampler(BUCKETS, 3).epoch_order(0).tolist()
    _, by_rank = steps_of(loaders(2, 2, 2))[0]
    assert by_rank[0] == [order[0:2], order[4:6]]
    assert by_rank[1] == [order[2:4], order[6:8]]


def test_buckets_keep_their_order_and_are_shuffled_inside() -> None:
    order = BucketSampler(BUCKETS, 3).epoch_order(0)
    start = 0
    for size in BUCKETS:
        assert sorted(order[start : start + size]) == list(range(start, start + size))
        start += size
    assert order[:13].tolist() != list(range(13))


def test_order_depends_on_seed_and_epoch_only() -> None:
    first = BucketSampler(BUCKETS, 3)
    assert np.array_equal(first.epoch_order(1), BucketSampler(BUCKETS, 3).epoch_order(1))
    assert not np.array_equal(first.epoch_order(1), first.epoch_order(0))
    assert not np.array_equal(first.epoch_order(1), BucketSampler(BUCKETS, 4).epoch_order(1))
    assert BucketSampler([], 3).epoch_order(0).shape == (0,)


def test_missing_rows_of_the_last_step_are_empty() -> None:
    samples, by_rank = steps_of(loaders(8, 8, 1))[0]
    assert samples == ROWS
    assert sum(row == -1 for batches in by_rank for batch in batches for row in batch) == 64 - ROWS
    assert len(EMPTY_ROW["input_ids"]) == len(EMPTY_ROW["labels"]) == 0


def test_random_rows_are_the_same_for_the_same_seed() -> None:
    rows, again = RandomRows(5, 16, 100, seed=1), RandomRows(5, 16, 100, seed=1)
    assert len(rows) == sum(rows.bucket_sizes) == 5
    assert np.array_equal(rows[3]["input_ids"], again[3]["input_ids"])
    assert not np.array_equal(rows[3]["input_ids"], rows[4]["input_ids"])
    assert np.array_equal(rows[3]["input_ids"], rows[3]["labels"])
    assert rows[0]["input_ids"].max() < 100
    assert rows[0]["seq_lengths"].tolist() == [4, 4, 4, 4]
    assert RandomRows(1, 18, 100, seed=1)[0]["seq_lengths"].sum() == 18


def test_steps_say_which_rows_they_hold_and_how_many_tokens() -> None:
    sampler = BucketSampler(BUCKETS, 3)
    order = sampler.epoch_order(0)
    ranks = loaders(2, 2, 1)
    for start, together in zip(range(0, ROWS, 4), zip(*(rank.epoch(0) for rank in ranks), strict=True), strict=True):
        for loaded in together:
            assert loaded.row_numbers.tolist() == order[start : start + 4].tolist()
        assert sum(loaded.tokens for loaded in together) == together[0].samples


def test_a_row_is_found_in_its_bucket() -> None:
    places = BucketSampler(BUCKETS, 3).places(np.array([12, 13, 0, 30, 20]))
    assert places == {0: [12, 0], 2: [0], 3: [10, 0]}


def test_a_given_order_is_kept() -> None:
    assert GivenOrder([5, 2, 9]).epoch_order(7).tolist() == [5, 2, 9]


def test_prefetching_changes_neither_items_nor_order() -> None:
    steps = Prefetched(iter(range(100)))
    assert list(steps) == list(range(100))
    assert steps.wait_seconds >= 0


def test_prefetching_stays_a_little_ahead_and_stops_when_left() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    before = threading.active_count()
    steps = iter(Prefetched(items()))
    assert [next(steps) for _ in range(5)] == [0, 1, 2, 3, 4]
    steps.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert len(taken) <= 5 + PREFETCHED_STEPS + 1


def test_an_error_comes_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise UserError("row 3 is broken")

    steps = iter(Prefetched(items()))
    assert [next(steps), next(steps)] == [1, 2]
    with pytest.raises(UserError, match="row 3"):
        next(steps)
