"""Optimizer states on another layout of ranks than the one that saved them.

Colossal-AI's plugins all store whole fp32 state tensors under the parameter's number in the optimizer, and cut out
their own part when they load them. What is left to do stands here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from colossal_llama.errors import UserError

CHOSEN_BY_FLAGS = ("lr", "initial_lr", "weight_decay")


def innermost_optimizer(optimizer: Any) -> Any:
    """The optimizer itself, without Colossal-AI's wrappers."""
    while hasattr(optimizer, "optim"):
        optimizer = optimizer.optim
    return optimizer


@contextmanager
def keeping_settings(optimizer: Any) -> Iterator[None]:
    """Load states, but keep the settings of this run's flags: the stored parameter groups would replace them."""
    inner = innermost_optimizer(optimizer)
    chosen = [{name: group[name] for name in CHOSEN_BY_FLAGS if name in group} for group in inner.param_groups]
    yield
    for group, settings in zip(inner.param_groups, chosen, strict=True):
        group.update(settings)


def check_reshardable(optimizer_folder: Path, source: Path) -> None:
    """Refuse states that are stored for one layout only.

    Raises:
        UserError: says how to start from the weights instead.
    """
    if not any(optimizer_folder.glob("*.index.json")):
        raise UserError(
            f"--load_checkpoint {source}: the states of this optimizer can only be resumed on the layout that wrote "
            f"them; use its plugin, precision, number of processes and parallel sizes, or start a new run from the "
            f"weights with --load_checkpoint {source / 'modeling'}"
        )


def restore_step_counts(optimizer: Any) -> None:
    """Make Adam's step counts the integers they were: Gemini stores them as fp32 tensors.

    HybridAdam computes its bias corrections from them, in double precision from an integer and in fp32 from a tensor.
    """
    import torch
    from colossalai.nn.optimizer import CPUAdam

    inner = innermost_optimizer(optimizer)
    if not isinstance(inner, CPUAdam):  # HybridAdam is one
        return
    for state in inner.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = int(state["step"].item())
