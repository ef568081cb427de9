"""Timing the parts of a step of this project's loop, whatever the plugin."""

from __future__ import annotations

from typing import Any

from colossal_llama.benchmarking.clock import PhaseClock
from colossal_llama.benchmarking.collectives import COMMUNICATION
from colossal_llama.plugins.steps import Boosted, DataParallelStep, PipelineStep, TrainStep

FORWARD, BACKWARD, OPTIMIZER, LOADER = "forward", "backward", "optimizer", "loader"
PHASES = (FORWARD, BACKWARD, OPTIMIZER, COMMUNICATION, LOADER)
"""Of a step; what is left is the loop's own: schedule, metrics, moving rows to the device."""


def time_phases(step: TrainStep, boosted: Boosted, clock: PhaseClock) -> None:
    """Let a step charge its parts to ``clock`` from now on.

    Forward includes the loss; optimizer includes clipping, and zeroing the gradients where the step does so. A
    pipeline's exchange between stages is communication, waiting for the other stage included.
    """
    if isinstance(step, DataParallelStep):
        step._forward = clock.timed(FORWARD, step._forward)  # type: ignore[method-assign]
        step._update = clock.timed(OPTIMIZER, step._update)  # type: ignore[method-assign]
        boosted.booster.backward = clock.timed(BACKWARD, boosted.booster.backward)
    elif isinstance(step, PipelineStep):
        step._guard.step = clock.timed(OPTIMIZER, step._guard.step)  # type: ignore[method-assign]
        schedule = boosted.booster.plugin.scheduler
        schedule.forward_step = clock.timed(FORWARD, schedule.forward_step)
        schedule.backward_step = clock.timed(BACKWARD, schedule.backward_step)
        for name in dir(schedule):
            if name.startswith(("send_forward", "send_backward", "recv_forward", "recv_backward")):
                setattr(schedule, name, clock.timed(COMMUNICATION, getattr(schedule, name)))


def reduce_in_python(model: Any) -> None:
    """Let DDP average its buckets through torch.distributed's function, where it can be timed, as they become full."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    ddp = model
    while ddp is not None and not isinstance(ddp, DistributedDataParallel):
        ddp = getattr(ddp, "module", None)
    if ddp is None:
        return

    def average(group: Any, bucket: Any) -> Any:
        buffer = bucket.buffer().div_(dist.get_world_size(group))
        work = dist.all_reduce(buffer, group=group, async_op=True)
        assert work is not None
        return work.get_future().then(lambda done: done.value()[0])

    # DDP checks these, and wants types instead of their names.
    average.__annotations__ = {"bucket": dist.GradBucket, "return": torch.futures.Future[torch.Tensor]}
    ddp.register_comm_hook(ddp.process_group, average)
