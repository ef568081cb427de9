"""Telling a loss that jumps from one that merely wobbles."""

from __future__ import annotations

import statistics
from collections import deque
from itertools import pairwise

WINDOW = 64
"""Steps whose changes say how much the loss wobbles."""
LEAST_STEPS = 16
"""The median of so many says what is usual; before so many there is no telling."""
DEVIATIONS = 8.0
"""A spike lies so many standard deviations above what is usual."""
LEAST_RISE = 0.1
"""Nats that a spike rises at least: losses of steps that are all alike deviate by next to nothing."""


class LossWatch:
    """Looks at the loss of each step.

    The deviation is 1.4826 times the median of the absolute changes from step to step (the usual estimate from a median
    absolute deviation, Rousseeuw and Croux 1993): neither the spikes themselves nor a loss that falls make it large.
    """

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._in_spike = False

    def sees_spike(self, loss: float) -> float | None:
        """The usual loss where a spike begins with this one, else None.

        Args:
            loss: of the next step, finite.
        """
        usual = statistics.median(list(self._losses)[-LEAST_STEPS:]) if len(self._losses) >= LEAST_STEPS else None
        is_high = usual is not None and loss > usual + self._margin()
        begins = is_high and not self._in_spike
        self._in_spike = is_high
        self._losses.append(loss)
        return usual if begins else None

    def _margin(self) -> float:
        changes = [abs(after - before) for before, after in pairwise(self._losses)]
        return max(DEVIATIONS * 1.4826 * statistics.median(changes), LEAST_RISE)
