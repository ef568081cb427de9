"""One cell of the table of models and layouts: whether train.py trains the model there as plain PyTorch does."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.distributed.cases import SHARD, SP
from tests.distributed.test_plugins import BF16_LOSS_TOLERANCE, load_weights
from tests.helpers.launching import read_grad_norms, read_losses, run_training
from tests.helpers.reference import Reference

STEPS = 3
GLOBAL_BATCH = 4
LR = 1e-3

LAYOUTS: dict[str, tuple[str, ...]] = {
    "ddp": ("--plugin", "ddp", "--batch_size", "2"),
    "zero2": ("--plugin", "zero2", "--batch_size", "2"),
    "gemini": ("--plugin", "gemini", "--batch_size", "2"),
    "3d": ("--plugin", "3d", "--zero", "0", "--batch_size", "2"),
    "tp2": ("--plugin", "3d", "--zero", "0", "--tp", "2", "--batch_size", "4"),
    "pp2": ("--plugin", "3d", "--zero", "0", "--pp", "2", "--batch_size", "4"),
    "split_gather": ("--plugin", "3d", "--zero", "0", "--tp", "2", *SP, "split_gather", "--batch_size", "4"),
    "ring": ("--plugin", "3d", "--zero", "0", "--tp", "2", *SP, "ring", "--batch_size", "4"),
    "all_to_all": ("--plugin", "3d", "--zero", "0", "--sp", "2", *SP, "all_to_all", "--batch_size", "4"),
}
"""Flags of the table's columns, for two processes."""


@dataclass(frozen=True)
class Tolerances:
    """How far a run may be from fp32 PyTorch.

    Attributes:
        loss: nats, of about 6.
        grad_norm: relative.
        update: norm of the difference of the weights over the norm of their change. Adam's steps have the size of the
            learning rate even where a gradient is rounding noise, so this is coarse.
    """

    loss: float
    grad_norm: float
    update: float


TOLERANCES = {"fp32": Tolerances(2e-4, 2e-3, 0.2), "bf16": Tolerances(BF16_LOSS_TOLERANCE, 0.05, 0.6)}


def cell_precision(layout: str) -> str:
    """fp32, the sharper check, where Colossal-AI has it."""
    return "bf16" if layout == "gemini" else "fp32"


def measure_cell(
    folder: Path, model: Path, rows: Path, layout: str, reference: Reference, environment: dict[str, str]
) -> str:
    """Train :data:`STEPS` steps on two processes in ``folder``, and compare with the reference.

    Args:
        environment: hooks of the worker; ``UNDO=policies`` lets Colossal-AI try what train.py refuses.

    Returns:
        An empty string where losses, gradient norms and weights agree and the export opens with transformers; else
        what went wrong, in one line.
    """
    precision = cell_precision(layout)
    arguments = ["--pretrained", str(model), "--dataset", str(rows), "--lr", str(LR), "--max_length", "32"]
    arguments += ["--skip_save_each_epoch", "--mixed_precision", precision, "--save_dir", str(folder / "checkpoints")]
    arguments += ["--tensorboard_dir", str(folder / "logs"), "--config_file", str(folder / "config.json")]
    done = run_training([*arguments, *LAYOUTS[layout]], environment=SHARD | environment)
    if done.returncode != 0:
        return last_error(done.stderr)
    losses, norms, limits = read_losses(folder), read_grad_norms(folder), TOLERANCES[precision]
    if len(losses) != STEPS or not close(losses, reference.losses, limits.loss):
        return f"losses {rounded(losses)} instead of {rounded(reference.losses)}"
    if not close([mine / one for mine, one in zip(norms, reference.grad_norms, strict=True)], [1.0], limits.grad_norm):
        return f"gradient norms {rounded(norms)} instead of {rounded(reference.grad_norms)}"
    return export_problem(folder / "checkpoints" / "modeling", load_weights(model), reference, limits.update)


def close(found: list[float], expected: list[float], tolerance: float) -> bool:
    """Whether every number is near its counterpart; a single expected number stands for all."""
    expected = expected * len(found) if len(expected) == 1 else expected
    return all(abs(mine - one) <= tolerance for mine, one in zip(found, expected, strict=True))


def rounded(numbers: list[float]) -> str:
    """Numbers for a message."""
    return ", ".join(f"{number:.4f}" for number in numbers)


def export_problem(folder: Path, before: dict[str, torch.Tensor], reference: Reference, tolerance: float) -> str:
    """What is wrong with an exported model, or an empty string."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(str(folder), torch_dtype="auto", output_loading_info=True)
    lacking = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if lacking:
        return f"the export does not fit the model: {lacking[:3]}"
    after = model.state_dict()
    error = moved = 0.0
    for name, expected in reference.weights.items():
        if name in before:
            error += (after[name].float() - expected).square().sum().item()
            moved += (before[name] - expected).square().sum().item()
    if not error**0.5 <= tolerance * moved**0.5:
        return f"the exported weights differ by {(error / moved) ** 0.5:.2f} of their update"
    return ""


def last_error(text: str) -> str:
    """The line of a failed run's output that says why."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in lines:
        if line.startswith("error: "):
            return line.removeprefix("error: ")
    named = [line for line in lines if line.split(":")[0].endswith(("Error", "Exception"))]
    peers = ("Connection closed by peer", "Connection reset by peer")
    own = [line for line in named if not any(text in line for text in peers)]
    message = (own or named or lines or ["no output"])[-1][:300]
    return re.sub(r"Auto policy for \S+ \(\S+\)", "Auto policy for the model", message)
