"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

ADAM_BETAS = (0.9, 0.95)
"""Upstream's betas for continual pretraining."""

FINAL_LR_FRACTION = 0.1
"""The cosine ends at this share of the peak learning rate (upstream's floor)."""


def build_optimizer(parameters: Iterable[Any], lr: float, weight_decay: float) -> Any:
    """Colossal-AI's HybridAdam (AdamW) over the parameters that require gradients."""
    from colossalai.nn.optimizer import HybridAdam

    trainable = [param for param in parameters if param.requires_grad]
    return HybridAdam(trainable, lr=lr, betas=ADAM_BETAS, weight_decay=weight_decay, adamw_mode=True)


def cosine_with_warmup(total_steps: int, warmup_steps: int) -> Callable[[int], float]:
    """Share of the peak learning rate at each step: linear warm-up, then a cosine to the floor.

    The curve of Colossal-AI's ``CosineAnnealingWarmupLR`` (step 0 already learns, at 1 / ``warmup_steps``) as a
    function of the step alone, so that it resumes exactly.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return FINAL_LR_FRACTION + (1 - FINAL_LR_FRACTION) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def build_lr_scheduler(optimizer: Any, total_steps: int, warmup_steps: int) -> Any:
    """The schedule of :func:`cosine_with_warmup`; stepped once per optimizer step."""
    from torch.optim.lr_scheduler import LambdaLR

    return LambdaLR(optimizer, cosine_with_warmup(total_steps, warmup_steps))


def seek_lr_scheduler(lr_scheduler: Any, step: int) -> None:
    """Put a schedule of :func:`build_lr_scheduler` where ``step`` steps are done.

    The peaks are those that the optimizer's groups were made with, so that a resumed run takes its own ``--lr``.
    """
    lr_scheduler.base_lrs = [group["initial_lr"] for group in lr_scheduler.optimizer.param_groups]
    lr_scheduler.last_epoch = step - 1
    lr_scheduler.step()
