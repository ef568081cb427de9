"""The training loop, the same for every plugin."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from colossal_llama.data.loader import StepLoader
from colossal_llama.errors import UserError
from colossal_llama.metrics.tracker import MetricTracker
from colossal_llama.plugins.steps import StepResult, TrainStep
from colossal_llama.schedule import TrainSchedule
from colossal_llama.state import TrainState


class Trainer:
    """Runs optimizer steps to the end of the schedule, saving as it goes.

    Args:
        step: runs one optimizer step.
        lr_scheduler: stepped once per optimizer step.
        loader: gives each step's micro-batches.
        schedule: the run's step arithmetic.
        state: where the run stands; updated in place.
        tracker: receives the metrics.
        save: writes a checkpoint of the state.
        save_interval: optimizer steps between checkpoints; 0 for none.
        save_each_epoch: also save when an epoch ends.
        stop: called after a step that a rank wanted to stop after, with the state; raises to end the run.
    """

    def __init__(
        self,
        step: TrainStep,
        lr_scheduler: Any,
        loader: StepLoader,
        schedule: TrainSchedule,
        state: TrainState,
        tracker: MetricTracker,
        save: Callable[[TrainState], Any],
        save_interval: int,
        save_each_epoch: bool,
        stop: Callable[[TrainState], None] = lambda state: None,
    ) -> None:
        self._step = step
        self._lr_scheduler = lr_scheduler
        self._loader = loader
        self._schedule = schedule
        self._state = state
        self._tracker = tracker
        self._save = save
        self._save_interval = save_interval
        self._save_each_epoch = save_each_epoch
        self._stop = stop

    def fit(self) -> TrainState:
        """Train from the state to the end of the last epoch; returns the final state."""
        state = self._state
        while state.epoch < self._schedule.num_epochs:
            for samples, micro_batches in self._loader.epoch(state.epoch, state.consumed_samples):
                lr = self._lr_scheduler.get_last_lr()[0]
                result = self._step.run(micro_batches)
                self._lr_scheduler.step()
                state.finish_step(samples, result.target_tokens)
                self._report(result, lr, self._tokens_in(micro_batches))
                if self._save_interval and state.global_step % self._save_interval == 0:
                    self._checkpoint()
                if result.stop:
                    self._stop(state)
            state.finish_epoch()
            if self._save_each_epoch:
                self._checkpoint()
        return state

    def _report(self, result: StepResult, lr: float, tokens: int) -> None:
        state = self._state
        self._tracker.record(
            state.global_step, state.epoch, result.loss, lr, result.grad_norm, tokens, result.target_tokens
        )
        if not math.isfinite(result.loss):
            raise UserError(
                f"the loss became {result.loss} at step {state.global_step}; resume from the last checkpoint in "
                "--save_dir with a lower --lr, or with --mixed_precision bf16"
            )

    def _tokens_in(self, micro_batches: list[Any]) -> int:
        local = sum(batch["input_ids"].numel() for batch in micro_batches)
        return local * self._schedule.data_parallel_size

    def _checkpoint(self) -> None:
        self._save(self._state)
        self._tracker.restart_clock()
