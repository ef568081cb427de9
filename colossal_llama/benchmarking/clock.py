"""Where the time of a step goes: every moment is charged to exactly one phase."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

OTHER = "other"
"""What belongs to no phase."""


class PhaseClock:
    """Splits the time of each step into phases that add up to it.

    Phases may lie inside each other: a collective inside the backward pass is charged to its own phase and not to the
    backward pass. Time outside all phases goes to :data:`OTHER`. Not for several threads at once.

    Args:
        synchronize: waits until the device has finished what it was given; called at every change of phase, so that
            work is charged to the phase that gave it.
        now: seconds from any origin.
    """

    def __init__(
        self, synchronize: Callable[[], None] = lambda: None, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self.steps: list[dict[str, float]] = []
        self._synchronize = synchronize
        self._now = now
        self._spent: dict[str, float] = {}
        self._stack = [OTHER]
        self._last = now()

    def start(self) -> None:
        """Begin a step here; what was measured since the last one ended is dropped."""
        self._charge()
        self._spent = {}

    def end_step(self) -> dict[str, float]:
        """End the step and begin the next; returns the seconds of its phases."""
        self._charge()
        step, self._spent = self._spent, {}
        self.steps.append(step)
        return step

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charge what runs inside to ``name``."""
        self._charge()
        self._stack.append(name)
        try:
            yield
        finally:
            self._charge()
            self._stack.pop()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, charging its time to the phase ``name``."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return function(*args, **kwargs)

        return wrapped

    def _charge(self) -> None:
        self._synchronize()
        now = self._now()
        phase = self._stack[-1]
        self._spent[phase] = self._spent.get(phase, 0.0) + now - self._last
        self._last = now


def device_synchronizer(device: str) -> Callable[[], None]:
    """What :class:`PhaseClock` has to wait with on a device."""
    if not device.startswith("cuda"):
        return lambda: None
    import torch

    return torch.cuda.synchronize
