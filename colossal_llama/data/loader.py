"""The micro-batches of each optimizer step on one data-parallel rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from colossal_llama.schedule import TrainSchedule

Row = dict[str, np.ndarray]
"""``input_ids`` and ``labels``: int32 ``[length]`` each; perhaps ``seq_lengths``: int32 ``[documents]``."""

EMPTY_ROW: Row = {name: np.zeros(0, np.int32) for name in ("input_ids", "labels", "seq_lengths")}


class RowSource(Protocol):
    """Anything that gives rows by number."""

    def __getitem__(self, index: int) -> Row:
        """The row with this number."""
        ...


class RowOrder(Protocol):
    """Anything that says in which order the rows of an epoch come."""

    def epoch_order(self, epoch: int) -> np.ndarray:
        """Row numbers: int64 ``[rows]``."""
        ...


@dataclass(frozen=True)
class LoadedStep:
    """What one optimizer step is given on one rank.

    Attributes:
        row_numbers: rows of the step on all ranks, in the order of consumption: int64 ``[samples]``.
        tokens: of this rank's rows, padding not counted.
        micro_batches: this rank's, one for each accumulation step.
    """

    row_numbers: np.ndarray
    tokens: int
    micro_batches: list[Any]

    @property
    def samples(self) -> int:
        """Rows of the step on all ranks."""
        return len(self.row_numbers)


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
        sampler: RowOrder,
        collate: Callable[[Sequence[Row]], Any],
        schedule: TrainSchedule,
        data_rank: int,
    ) -> None:
        self._rows = rows
        self._sampler = sampler
        self._collate = collate
        self._schedule = schedule
        self._data_rank = data_rank

    def epoch(self, epoch: int, consumed_samples: int = 0) -> Iterator[LoadedStep]:
        """Yield each step of an epoch.

        Args:
            epoch: index of the epoch.
            consumed_samples: samples of this epoch that earlier steps have consumed.
        """
        order = self._sampler.epoch_order(epoch)
        for start in range(consumed_samples, len(order), self._schedule.global_batch):
            in_step = order[start : start + self._schedule.global_batch]
            rows = [self._rows_of(in_step, k) for k in range(self._schedule.accumulation_steps)]
            yield LoadedStep(
                row_numbers=in_step,
                tokens=sum(len(row["input_ids"]) for micro_batch in rows for row in micro_batch),
                micro_batches=[self._collate(micro_batch) for micro_batch in rows],
            )

    def _rows_of(self, in_step: np.ndarray, k: int) -> list[Row]:
        size = self._schedule.micro_batch_size
        start = (k * self._schedule.data_parallel_size + self._data_rank) * size
        rows = [self._rows[int(index)] for index in in_step[start : start + size]]
        return rows + [EMPTY_ROW] * (size - len(rows))
