"""Learning-rate schedules: the share of the peak learning rate at each step, as a function of the step alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from colossal_llama.registry import Registry

DEFAULT_FLOOR = 0.1
"""Share of the peak learning rate at the end of a run (upstream's floor)."""

DEFAULT_DECAY_FRACTION = 0.1
"""Share of all steps in which ``wsd`` decays; MiniCPM finds a tenth enough."""

Curve = Callable[[int, int, float, float], float]
"""From (steps done since the warm-up, steps after the warm-up, floor, decay fraction) to a share of the peak: 1 at the
first of these steps. The number of steps done may exceed the number of steps."""

LR_SCHEDULES: Registry[Curve] = Registry("learning-rate schedule")


@LR_SCHEDULES.register("cosine")
def cosine(done: int, steps: int, floor: float, decay_fraction: float) -> float:
    """Half a cosine from the peak to the floor, as Colossal-AI's ``CosineAnnealingWarmupLR`` falls."""
    progress = min(1.0, done / max(1, steps))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


@LR_SCHEDULES.register("wsd")
def warmup_stable_decay(done: int, steps: int, floor: float, decay_fraction: float) -> float:
    """The peak, and an exponential fall to the floor in the last part of the run.

    MiniCPM (Hu et al. 2024, arXiv:2404.06395, section 4.3). The floor must be positive.
    """
    decay_steps = max(1, round(steps * decay_fraction))
    progress = min(1.0, max(0, done - (steps - decay_steps)) / decay_steps)
    return float(floor**progress)


@LR_SCHEDULES.register("linear")
def linear(done: int, steps: int, floor: float, decay_fraction: float) -> float:
    """A straight line from the peak to the floor."""
    return 1 - (1 - floor) * min(1.0, done / max(1, steps))


@LR_SCHEDULES.register("constant")
def constant(done: int, steps: int, floor: float, decay_fraction: float) -> float:
    """The peak to the end; the floor plays no part."""
    return 1.0


def lr_factor(
    schedule: str,
    total_steps: int,
    warmup_steps: int,
    floor: float = DEFAULT_FLOOR,
    decay_fraction: float = DEFAULT_DECAY_FRACTION,
) -> Callable[[int], float]:
    """Share of the peak learning rate at each step: linear warm-up, then the curve of ``schedule``.

    Step 0 already learns, at 1 / ``warmup_steps``. A function of the step alone, so that a run resumes exactly.

    Args:
        schedule: a name in :data:`LR_SCHEDULES`.
        total_steps, warmup_steps: optimizer steps of the run, and of the warm-up at its start.
        floor: share of the peak that the schedule ends at.
        decay_fraction: share of all steps after the warm-up that ``wsd`` decays in.
    """
    curve = LR_SCHEDULES.get(schedule)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return curve(step - warmup_steps, total_steps - warmup_steps, floor, decay_fraction)

    return factor


def build_lr_scheduler(
    optimizer: Any,
    total_steps: int,
    warmup_steps: int,
    schedule: str = "cosine",
    floor: float = DEFAULT_FLOOR,
    decay_fraction: float = DEFAULT_DECAY_FRACTION,
) -> Any:
    """Scales the learning rate of every parameter group by :func:`lr_factor`; stepped once per optimizer step."""
    from torch.optim.lr_scheduler import LambdaLR

    return LambdaLR(optimizer, lr_factor(schedule, total_steps, warmup_steps, floor, decay_fraction))


def seek_lr_scheduler(lr_scheduler: Any, step: int) -> None:
    """Put a schedule of :func:`build_lr_scheduler` where ``step`` steps are done.

    The peaks are those that the optimizer's groups were made with, so that a resumed run takes its own ``--lr``.
    """
    lr_scheduler.base_lrs = [group["initial_lr"] for group in lr_scheduler.optimizer.param_groups]
    lr_scheduler.last_epoch = step - 1
    lr_scheduler.step()
