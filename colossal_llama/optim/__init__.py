"""Optimizers, learning-rate schedules and parameter groups."""

from colossal_llama.optim.groups import EMBEDDINGS, GroupOptions, parameter_groups, parameter_roles
from colossal_llama.optim.optimizers import ADAM_BETAS, OPTIMIZERS, OptimizerSpec, check_optimizer
from colossal_llama.optim.schedules import DEFAULT_FLOOR, LR_SCHEDULES, build_lr_scheduler, lr_factor, seek_lr_scheduler

__all__ = [
    "ADAM_BETAS",
    "DEFAULT_FLOOR",
    "EMBEDDINGS",
    "LR_SCHEDULES",
    "OPTIMIZERS",
    "GroupOptions",
    "OptimizerSpec",
    "build_lr_scheduler",
    "check_optimizer",
    "lr_factor",
    "parameter_groups",
    "parameter_roles",
    "seek_lr_scheduler",
]
