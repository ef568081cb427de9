"""What one contender of a benchmark did, and what follows from it."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class RunFigures:
    """Measurements of one contender; seconds of rank 0, memory of the rank that took most.

    Attributes:
        contender: its name.
        losses: of all steps, in nats for each target token.
        seconds: of each timed step.
        tokens_per_step, rows_per_step: of all ranks.
        devices: that shared the work.
        flops_per_token: see :func:`metrics.flops.flops_per_token`.
        peak_flops: of one device, if known.
        peak_memory_bytes: on a GPU what tensors took, on the host the whole process.
        tensor_bytes: on the host, what tensors took, where it was traced.
        tensor_bytes_between_steps: the same at the end of a step, when nothing but states is left.
        split: mean seconds of each phase of a step, measured in further steps; they add up to ``split_seconds``.
        split_seconds: mean length of these steps.
        sent_bytes: that a rank sent in collectives, in each of these steps.
        note: what a reader has to know.
        failure: why there are no figures.
    """

    contender: str
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    tokens_per_step: int = 0
    rows_per_step: int = 0
    devices: int = 1
    flops_per_token: float | None = None
    peak_flops: float | None = None
    peak_memory_bytes: int = 0
    tensor_bytes: int | None = None
    tensor_bytes_between_steps: int | None = None
    split: dict[str, float] = field(default_factory=dict)
    split_seconds: float | None = None
    sent_bytes: float | None = None
    note: str = ""
    failure: str = ""

    @property
    def tokens_per_second(self) -> float:
        """Tokens of the timed steps by their seconds, all devices together."""
        return self.tokens_per_step * len(self.seconds) / sum(self.seconds)

    @property
    def rows_per_second(self) -> float:
        """The same of rows (samples)."""
        return self.rows_per_step * len(self.seconds) / sum(self.seconds)

    @property
    def median_seconds(self) -> float:
        """Of a timed step."""
        return statistics.median(self.seconds)

    @property
    def tflops_per_device(self) -> float | None:
        """Model TFLOP/s of one device: ``flops_per_token * tokens_per_second / devices``."""
        if self.flops_per_token is None:
            return None
        return self.flops_per_token * self.tokens_per_second / self.devices / 1e12

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation: the share of the peak that :attr:`tflops_per_device` is."""
        tflops = self.tflops_per_device
        return None if tflops is None or self.peak_flops is None else tflops * 1e12 / self.peak_flops

    def as_dict(self) -> dict[str, Any]:
        """Measurements and what follows from them, for JSON."""
        derived = {}
        if self.seconds:
            names = ("tokens_per_second", "rows_per_second", "median_seconds", "tflops_per_device", "mfu")
            derived = {name: getattr(self, name) for name in names}
        return dataclasses.asdict(self) | derived

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> RunFigures:
        """What :meth:`as_dict` gave."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in content.items() if name in names})


def largest_of_ranks(values: Sequence[float], device: str) -> list[int]:
    """The largest of each value over all ranks; collective where there is a process group."""
    import torch.distributed as dist

    from colossal_llama.distributed.gather import gather_figures

    if not dist.is_initialized():
        return [int(value) for value in values]
    return [int(max(column)) for column in zip(*gather_figures(values, device), strict=True)]
