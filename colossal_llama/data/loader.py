"""The micro-batches of each optimizer step on one data-parallel rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from colossal_llama.data.sampler import BucketSampler
from colossal_llama.schedule import TrainSchedule

Row = dict[str, np.ndarray]
"""``input_ids`` and ``labels``: int32 ``[length]`` each; perhaps ``seq_lengths``: int32 ``[documents]``."""

EMPTY_ROW: Row = {name: np.zeros(0, np.int32) for name in ("input_ids", "labels", "seq_lengths")}


class RowSource(Protocol):
    """Anything that gives rows by number."""

    def __getitem__(self, index: int) -> Row:
        """The row with this number."""
        ...


class StepLoader:
    """Cuts the sampler's order into optimizer steps and this rank's share of each.

    Step ``s`` consumes positions ``s * global_batch`` onward; micro-batch ``k`` of data-parallel rank ``r`` takes
    ``micro_batch_size`` of them from ``(k * data_parallel_size + r) * micro_batch_size``. The last step of an
    epoch may lack rows: empty rows without targets take their places, so that every rank runs the same number of
    forward passes and no sample is dropped or repeated.

    Args:
        rows: where rows come from.
        sampler: their order.
        collate: makes a batch of ``micro_batch_size`` rows.
        schedule: the run's step arithmetic.
        data_rank: this rank's place among the ``schedule.data_parallel_size`` groups with different rows.
    """

    def __init__(
        self,
        rows: RowSource,
        sampler: BucketSampler,
        collate: Callable[[Sequence[Row]], Any],
        schedule: TrainSchedule,
        data_rank: int,
    ) -> None:
        self._rows = rows
        self._sampler = sampler
        self._collate = collate
        self._schedule = schedule
        self._data_rank = data_rank

    def epoch(self, epoch: int, consumed_samples: int = 0) -> Iterator[tuple[int, list[Any]]]:
        """Yield ``(samples in the step on all ranks, this rank's micro-batches)`` for each step.

        Args:
            epoch: index of the epoch.
            consumed_samples: samples of this epoch that earlier steps have consumed.
        """
        order = self._sampler.epoch_order(epoch)
        for start in range(consumed_samples, len(order), self._schedule.global_batch):
            in_step = order[start : start + self._schedule.global_batch]
            yield (
                len(in_step),
                [self._micro_batch(in_step, k) for k in range(self._schedule.accumulation_steps)],
            )

    def _micro_batch(self, in_step: np.ndarray, k: int) -> Any:
        size = self._schedule.micro_batch_size
        start = (k * self._schedule.data_parallel_size + self._data_rank) * size
        rows = [self._rows[int(index)] for index in in_step[start : start + size]]
        return self._collate(rows + [EMPTY_ROW] * (size - len(rows)))
