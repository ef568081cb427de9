"""Signals with which a scheduler announces that it will end the job: noted, to be acted on after the step."""

from __future__ import annotations

import signal
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""SIGTERM comes from Kubernetes, ``scancel`` and torchrun; SIGUSR1 is what Slurm's ``--signal`` usually sends."""


class SignalWatch(AbstractContextManager["SignalWatch"]):
    """While entered, the process lives on when one of :data:`SIGNALS` comes, and remembers the first.

    To be entered in the main thread, where Python delivers signals. Further signals change nothing: launchers pass on
    what a scheduler has sent to the whole job already.

    Attributes:
        received: name of the first signal, or None.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> SignalWatch:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number).name
