"""Turns step results into metrics and hands them to the writers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from colossal_llama.metrics.writers import Metrics, MetricWriter


@dataclass(frozen=True)
class StepFigures:
    """What is known of one optimizer step, over all ranks.

    Attributes:
        step: optimizer step of the run, from 1.
        epoch: index of the epoch.
        bucket: index of the bucket that the step's first row is from.
        loss: mean loss per target token in nats.
        lr: learning rate that the step used.
        grad_norm: gradient norm before clipping, if known.
        tokens: token positions processed, padding included.
        text_tokens: of them without padding.
        target_tokens: tokens with loss.
        loader_wait_seconds: what the slowest rank waited for its rows.
        peak_memory_bytes: of the rank that has taken most so far.
        consumed_samples, consumed_tokens: rows and tokens (without padding) of the whole run so far.
        skipped_steps: steps of the run so far whose update was dropped.
        loss_scale_skip: the fp16 loss scaler left this step out.
    """

    step: int
    epoch: int
    bucket: int
    loss: float
    lr: float
    grad_norm: float | None
    tokens: int
    text_tokens: int
    target_tokens: int
    loader_wait_seconds: float
    peak_memory_bytes: int
    consumed_samples: int
    consumed_tokens: int
    skipped_steps: int = 0
    loss_scale_skip: bool = False


class MetricTracker:
    """Times steps and counts tokens; writes on the ranks that were given writers, costs nothing elsewhere.

    Args:
        writers: where metrics go; empty on all ranks but one.
        devices: that share the work.
        flops_per_token: see :mod:`.flops`; None for no MFU.
        peak_flops: of one device; None for no MFU.
    """

    def __init__(
        self,
        writers: Sequence[MetricWriter],
        devices: int = 1,
        flops_per_token: float | None = None,
        peak_flops: float | None = None,
    ) -> None:
        self._writers = writers
        self._devices = devices
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops
        self._last = time.perf_counter()
        self._started = self._last
        self._tokens = 0
        self._steps = 0
        self._between: Metrics = {}

    @property
    def writes(self) -> bool:
        """Whether anything is written by this process."""
        return bool(self._writers)

    def restart_clock(self) -> None:
        """Do not charge what happened since the last step (a checkpoint, say) to the next one."""
        self._last = time.perf_counter()

    def record(self, figures: StepFigures) -> None:
        """Write the metrics of one optimizer step, and what was done since the step before."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        self._tokens += figures.tokens
        self._steps += 1
        rate = figures.tokens / seconds
        metrics: Metrics = {
            "loss": figures.loss,
            "lr": figures.lr,
            "epoch": figures.epoch,
            "bucket": figures.bucket,
            "tokens": figures.tokens,
            "text_tokens": figures.text_tokens,
            "target_tokens": figures.target_tokens,
            "seconds": seconds,
            "tokens_per_second": rate,
            "tokens_per_second_per_device": rate / self._devices,
            "loader_wait_seconds": figures.loader_wait_seconds,
            "peak_memory_bytes": figures.peak_memory_bytes,
            "consumed_samples": figures.consumed_samples,
            "consumed_tokens": figures.consumed_tokens,
            "skipped_steps": figures.skipped_steps,
        }
        if figures.grad_norm is not None:
            metrics["grad_norm"] = figures.grad_norm
        if figures.loss_scale_skip:
            metrics["loss_scale_skip"] = 1
        if self._flops_per_token and self._peak_flops:
            metrics["mfu"] = self._flops_per_token * rate / self._devices / self._peak_flops
        for writer in self._writers:
            writer.write(figures.step, metrics | self._between)
        self._between = {}

    def evaluated(self, step: int, scores: dict[str, dict[str, float]], seconds: float) -> None:
        """Write the scores of a held-out evaluation after ``step``; the next step's metrics say how long it took."""
        self._count(step, "evaluation", seconds, scores=scores)

    def checkpointed(self, step: int, name: str, seconds: float, size: int) -> None:
        """Write that a checkpoint of ``size`` bytes was made after ``step``; the next step's metrics say so too."""
        self._between["checkpoint_bytes"] = self._between.get("checkpoint_bytes", 0) + size
        self._count(step, "checkpoint", seconds, name=name, bytes=size)

    def note(self, step: int, kind: str, **content: Any) -> None:
        """Write that something happened at ``step``."""
        for writer in self._writers:
            writer.note(step, {"kind": kind, **content})

    def _count(self, step: int, kind: str, seconds: float, **content: Any) -> None:
        self.note(step, kind, seconds=seconds, **content)
        self._between[f"{kind}_seconds"] = self._between.get(f"{kind}_seconds", 0) + seconds
        self.restart_clock()

    def summary(self) -> str:
        """One line on the whole run so far."""
        seconds = time.perf_counter() - self._started
        rate = self._tokens / seconds if seconds else 0.0
        return (
            f"{self._steps} steps, {self._tokens} tokens in {seconds:.1f} s ({rate:.0f} tokens/s, saving and "
            "evaluation included)"
        )

    def close(self) -> None:
        """Close all writers."""
        for writer in self._writers:
            writer.close()
