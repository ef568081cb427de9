"""Hugging Face's Trainer on the benchmark's rows."""

from __future__ import annotations

import tempfile
import time
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from colossal_llama.benchmarking.clock import device_synchronizer
from colossal_llama.constants import IGNORE_INDEX

if TYPE_CHECKING:
    from colossal_llama.benchmarking.peers import PeerJob


class OrderedRows(torch.utils.data.Dataset):
    """The rows in the order in which this project's loader consumes them."""

    def __init__(self, rows: Any, order: Any) -> None:
        self._rows = rows
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.from_numpy(self._rows[int(self._order[index])]["input_ids"]).long()
        labels = ids.clone()
        # Nothing predicts the first token, but the Trainer would divide by its number of labels.
        labels[0] = IGNORE_INDEX
        return {"input_ids": ids, "labels": labels}


class InOrder(Trainer):
    """A trainer that does not shuffle."""

    def _get_train_sampler(self, *args: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


class StepTimer(TrainerCallback):
    """Seconds from the end of each step to the end of the next."""

    def __init__(self, device: str) -> None:
        self.seconds: list[float] = []
        self._synchronize = device_synchronizer(device)
        self._last = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin the first step."""
        self._synchronize()
        self._last = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End a step."""
        self._synchronize()
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now


def run_hf_trainer(job: PeerJob, model: Any, optimizer: Any, max_norm: float) -> tuple[list[float], list[float]]:
    """Train; returns loss and seconds of each step. The Trainer rounds losses to four places."""
    from colossal_llama.data.sampler import BucketSampler

    config = job.config
    rows = job.rows
    order = BucketSampler(rows.bucket_sizes, config.seed).epoch_order(0)
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    timer = StepTimer(job.device)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=config.micro_batch_size,
            gradient_accumulation_steps=config.accumulation_steps,
            max_steps=job.schedule.total_steps,
            bf16=config.mixed_precision == "bf16",
            use_cpu=job.device == "cpu",
            ddp_backend="gloo" if job.device == "cpu" and job.world_size > 1 else None,
            ddp_find_unused_parameters=False if job.world_size > 1 else None,
            gradient_checkpointing=config.use_grad_checkpoint,
            gradient_checkpointing_kwargs={"use_reentrant": False} if config.use_grad_checkpoint else None,
            max_grad_norm=max_norm,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=config.seed,
        )
        trainer = InOrder(
            model=model,
            args=arguments,
            train_dataset=OrderedRows(rows, order),
            optimizers=(optimizer, constant),
            callbacks=[timer],
        )
        trainer.remove_callback(next(c for c in trainer.callback_handler.callbacks if "Printer" in type(c).__name__))
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], timer.seconds
