"""The training loop that anyone would write first."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from colossal_llama.benchmarking.clock import device_synchronizer
from colossal_llama.constants import IGNORE_INDEX


def ddp_sync_only_last(model: Any, is_last: bool) -> Any:
    """DDP averages gradients in the last of the accumulated passes only."""
    return contextlib.nullcontext() if is_last or not hasattr(model, "no_sync") else model.no_sync()


@dataclass(frozen=True)
class BareLoop:
    """What the loop works on.

    Attributes:
        model: gives logits; wrapped for data parallelism or not.
        optimizer: over its parameters.
        device: that batches are moved to.
        autocast_dtype: of the forward pass, or None without autocast.
        max_norm: gradient norm to clip to.
        accumulate: the context of one of several passes of a step.
        backward: of a loss; its own method by default.
        after_step: called after each update, for a learning-rate schedule.
    """

    model: Any
    optimizer: Any
    device: str
    autocast_dtype: Any
    max_norm: float
    accumulate: Callable[[Any, bool], Any] = ddp_sync_only_last
    backward: Callable[[Any], None] | None = None
    after_step: Callable[[], Any] = lambda: None


def run_bare(loop: BareLoop, steps: Sequence[Sequence[Any]]) -> tuple[list[float], list[float]]:
    """Train on micro-batches that lie ready; returns loss and seconds of each step.

    Rows are full and equally long, so that the mean over micro-batches and ranks is the mean over tokens.
    """
    import time

    synchronize = device_synchronizer(loop.device)
    parameters = [param for group in loop.optimizer.param_groups for param in group["params"]]
    losses, seconds = [], []
    loop.model.train()
    for micro_batches in steps:
        synchronize()
        started = time.perf_counter()
        losses.append(run_step(loop, micro_batches, parameters))
        synchronize()
        seconds.append(time.perf_counter() - started)
    return losses, seconds


def run_step(loop: BareLoop, micro_batches: Sequence[Any], parameters: Sequence[Any]) -> float:
    """One optimizer step; returns its mean loss over all ranks."""
    import torch
    import torch.distributed as dist

    total = torch.zeros((), device=loop.device)
    for number, batch in enumerate(micro_batches):
        with loop.accumulate(loop.model, number == len(micro_batches) - 1):
            loss = mean_loss(loop, batch) / len(micro_batches)
            if loop.backward is None:
                loss.backward()
            else:
                loop.backward(loss)
        total += loss.detach()
    torch.nn.utils.clip_grad_norm_(parameters, loop.max_norm)
    loop.optimizer.step()
    loop.optimizer.zero_grad()
    loop.after_step()
    if dist.is_initialized():
        dist.all_reduce(total)
        total /= dist.get_world_size()
    return total.item()


def mean_loss(loop: BareLoop, batch: Any) -> Any:
    """Mean cross entropy of one micro-batch in fp32."""
    import torch

    dtype = loop.autocast_dtype
    with torch.autocast(loop.device.split(":")[0], dtype=dtype) if dtype else contextlib.nullcontext():
        logits = loop.model(input_ids=batch["input_ids"].to(loop.device), use_cache=False)["logits"]
    targets = batch["targets"].to(loop.device).flatten()
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets, ignore_index=IGNORE_INDEX)
