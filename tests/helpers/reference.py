"""The reference: one process, plain PyTorch and transformers, fp32, no Colossal-AI."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from colossal_llama.constants import IGNORE_INDEX
from colossal_llama.data.collator import PackedCollator
from colossal_llama.data.dataset import PackedDataset
from colossal_llama.data.loader import StepLoader
from colossal_llama.data.sampler import BucketSampler
from colossal_llama.optim import ADAM_BETAS, build_lr_scheduler
from colossal_llama.schedule import TrainSchedule


@dataclass
class Reference:
    """Losses and gradient norms (before clipping) of all steps, and the weights after the last."""

    losses: list[float]
    grad_norms: list[float]
    weights: dict[str, torch.Tensor]


def train_reference(
    model_dir: Path,
    part: Path,
    global_batch: int,
    lr: float,
    max_norm: float = 1.0,
    weight_decay: float = 0.1,
    trainable: tuple[str, ...] = (),
    dropped: tuple[int, ...] = (),
    epochs: int = 1,
    make_optimizer: Callable[[Any], Any] | None = None,
) -> Reference:
    """Train on ``part`` in the order that train.py uses, the whole global batch in one forward pass.

    Args:
        trainable: substrings of the names of the trained parameters; empty for all.
        dropped: steps, from 1, whose update is not made.
        epochs: passes over the part.
        make_optimizer: makes the optimizer of the model, instead of AdamW over all trained parameters.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(model_dir), torch_dtype=torch.float32)
    model.train()
    for name, param in model.named_parameters():
        param.requires_grad = not trainable or any(text in name for text in trainable)
    rows = PackedDataset([str(part)])
    schedule = TrainSchedule(len(rows), 1, global_batch, 1, epochs)
    params = [param for param in model.parameters() if param.requires_grad]
    if make_optimizer is None:
        optimizer = torch.optim.AdamW(params, lr=lr, betas=ADAM_BETAS, weight_decay=weight_decay)
    else:
        optimizer = make_optimizer(model)
    scheduler = build_lr_scheduler(optimizer, schedule.total_steps, schedule.resolved_warmup_steps)
    loader = StepLoader(rows, BucketSampler(rows.bucket_sizes, 42), PackedCollator(1, 32, "max_length"), schedule, 0)
    losses, grad_norms = [], []
    steps = (step for epoch in range(epochs) for step in loader.epoch(epoch))
    for number, loaded in enumerate(steps, start=1):
        (batch,) = loaded.micro_batches
        logits = model(input_ids=batch["input_ids"]).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch["targets"].flatten())
        loss.backward()
        grad_norms.append(torch.nn.utils.clip_grad_norm_(params, max_norm).item())
        if number not in dropped:
            optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        losses.append(loss.item())
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return Reference(losses, grad_norms, weights)


def reference_gradients(model_dir: Path, documents: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Gradients of the mean loss over all target tokens, in float64, each document alone in its forward pass.

    Args:
        documents: token ids and labels of each, not shifted, int ``[length]`` each.

    Returns:
        float64 tensors by parameter name.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(model_dir), torch_dtype=torch.float64, attn_implementation="eager")
    targets = sum(int((labels[1:] != IGNORE_INDEX).sum()) for _, labels in documents)
    for ids, labels in documents:
        logits = model(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0, :-1]
        wanted = torch.from_numpy(labels.astype(np.int64))[1:]
        loss = torch.nn.functional.cross_entropy(logits, wanted, reduction="sum", ignore_index=IGNORE_INDEX)
        (loss / targets).backward()
    return {name: param.grad for name, param in model.named_parameters()}
