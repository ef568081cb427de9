"""Telling a loss that jumps from one that merely wobbles."""

from __future__ import annotations

import statistics
from collections import deque

WINDOW = 64
"""Steps that say what is usual."""
LEAST_STEPS = 16
"""Before so many there is no telling."""
DEVIATIONS = 8.0
"""A spike lies so many standard deviations above the median; one estimates them by 1.4826 median absolute deviations
(Rousseeuw and Croux 1993), which the spikes themselves hardly change."""
LEAST_RISE = 0.1
"""Nats that a spike rises at least: losses of steps that are all alike deviate by next to nothing."""


class LossWatch:
    """Looks at the loss of each step."""

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._in_spike = False

    def sees_spike(self, loss: float) -> float | None:
        """The usual loss where a spike begins with this one, else None.

        Args:
            loss: of the next step, finite.
        """
        usual = statistics.median(self._losses) if len(self._losses) >= LEAST_STEPS else None
        is_high = usual is not None and loss > usual + self._margin(usual)
        begins = is_high and not self._in_spike
        self._in_spike = is_high
        self._losses.append(loss)
        return usual if begins else None

    def _margin(self, usual: float) -> float:
        spread = 1.4826 * statistics.median(abs(loss - usual) for loss in self._losses)
        return max(DEVIATIONS * spread, LEAST_RISE)
