"""Turns step results into metrics and hands them to the writers."""

from __future__ import annotations

import time
from collections.abc import Sequence

from colossal_llama.metrics.writers import Metrics, MetricWriter


class MetricTracker:
    """Times steps and counts tokens; writes on the ranks that were given writers, costs nothing elsewhere.

    Args:
        writers: where metrics go; empty on all ranks but one.
    """

    def __init__(self, writers: Sequence[MetricWriter]) -> None:
        self._writers = writers
        self._last = time.perf_counter()
        self._started = self._last
        self._tokens = 0
        self._steps = 0

    def restart_clock(self) -> None:
        """Do not charge what happened since the last step (a checkpoint, say) to the next one."""
        self._last = time.perf_counter()

    def record(
        self,
        step: int,
        epoch: int,
        loss: float,
        lr: float,
        grad_norm: float | None,
        tokens: int,
        target_tokens: int,
    ) -> None:
        """Write the metrics of one optimizer step.

        Args:
            step: optimizer step of the run, from 1.
            epoch: index of the epoch.
            loss: mean loss per target token in nats.
            lr: learning rate that the step used.
            grad_norm: gradient norm before clipping, if known.
            tokens: token positions processed on all ranks, padding included.
            target_tokens: tokens with loss on all ranks.
        """
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        self._tokens += tokens
        self._steps += 1
        metrics: Metrics = {
            "loss": loss,
            "lr": lr,
            "epoch": epoch,
            "tokens": tokens,
            "target_tokens": target_tokens,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
        }
        if grad_norm is not None:
            metrics["grad_norm"] = grad_norm
        for writer in self._writers:
            writer.write(step, metrics)

    def summary(self) -> str:
        """One line on the whole run so far."""
        seconds = time.perf_counter() - self._started
        rate = self._tokens / seconds if seconds else 0.0
        return f"{self._steps} steps, {self._tokens} tokens in {seconds:.1f} s ({rate:.0f} tokens/s, saving included)"

    def close(self) -> None:
        """Close all writers."""
        for writer in self._writers:
            writer.close()
