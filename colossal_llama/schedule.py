"""All step arithmetic of a run, in one place."""

import math
from dataclasses import dataclass

WARMUP_FRACTION = 0.025
"""Share of all steps that warm up when no number is given (upstream's default)."""


@dataclass(frozen=True)
class TrainSchedule:
    """How many optimizer steps a run has and which samples each consumes.

    A step consumes ``global_batch`` samples; the last step of an epoch takes what is left, so an epoch covers
    every sample exactly once.

    Attributes:
        num_samples: rows in one epoch.
        data_parallel_size: number of groups of ranks that see different data.
        micro_batch_size: rows of one forward pass on one such group.
        accumulation_steps: forward passes per step.
        num_epochs: passes over the data.
        warmup_steps: steps of linear warm-up, or None for :data:`WARMUP_FRACTION` of all.
    """

    num_samples: int
    data_parallel_size: int
    micro_batch_size: int
    accumulation_steps: int
    num_epochs: int
    warmup_steps: int | None = None

    @property
    def global_batch(self) -> int:
        """Samples per optimizer step over all ranks."""
        return self.data_parallel_size * self.micro_batch_size * self.accumulation_steps

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one epoch, the shorter last one included."""
        return math.ceil(self.num_samples / self.global_batch)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps_per_epoch * self.num_epochs

    def remaining_steps(self, epoch: int, consumed_samples: int) -> int:
        """Optimizer steps that are left.

        Args:
            epoch: epochs finished.
            consumed_samples: samples consumed in the epoch under way, by steps of this size or any other.
        """
        if epoch >= self.num_epochs:
            return 0
        in_epoch = math.ceil((self.num_samples - consumed_samples) / self.global_batch)
        return in_epoch + (self.num_epochs - epoch - 1) * self.steps_per_epoch

    def position(self, epoch: int, consumed_samples: int) -> int:
        """Where the learning-rate schedule stands: steps done, had all been of this size.

        Counted from the end, so that the schedule ends with the run. A function of the samples alone: while
        the global batch stays the same, it is the number of steps done.
        """
        return self.total_steps - self.remaining_steps(epoch, consumed_samples)

    @property
    def resolved_warmup_steps(self) -> int:
        """Warm-up steps, never more than all but one."""
        wanted = int(self.total_steps * WARMUP_FRACTION) if self.warmup_steps is None else self.warmup_steps
        return max(0, min(wanted, self.total_steps - 1))
