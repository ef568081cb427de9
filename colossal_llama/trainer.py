"""The training loop, the same for every plugin."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colossal_llama.data.loader import LoadedStep, StepLoader
from colossal_llama.data.prefetch import Prefetched
from colossal_llama.data.sampler import BucketSampler
from colossal_llama.distributed.gather import gather_figures
from colossal_llama.errors import UserError
from colossal_llama.metrics.device import peak_memory_bytes
from colossal_llama.metrics.loss_watch import LossWatch
from colossal_llama.metrics.tracker import MetricTracker, StepFigures
from colossal_llama.plugins.steps import StepResult, TrainStep
from colossal_llama.plugins.update_guard import NOT_FINITE, OVERFLOW
from colossal_llama.schedule import TrainSchedule
from colossal_llama.state import TrainState

MOST_SKIPPED_IN_A_ROW = 8
"""With ``--on_nan skip``, a run whose every step is lost is stopped after so many."""

ROWS_NAMED = 8
"""Rows of a conspicuous step that its message names; the events file has all of them."""

Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Intervals:
    """When what is due, in optimizer steps.

    Attributes:
        save: between checkpoints; 0 for none.
        save_each_epoch: a checkpoint when an epoch ends.
        evaluate: between evaluations, and one after the last step; 0 for none.
        evaluate_first: one before the first step too.
    """

    save: int = 0
    save_each_epoch: bool = False
    evaluate: int = 0
    evaluate_first: bool = True


class Trainer:
    """Runs optimizer steps to the end of the schedule, evaluating and saving as it goes.

    Args:
        step: runs one optimizer step.
        lr_scheduler: stepped once per optimizer step.
        loader: gives each step's micro-batches.
        sampler: says which bucket a row is from.
        schedule: the run's step arithmetic.
        state: where the run stands; updated in place.
        tracker: receives the metrics.
        intervals: when what is due.
        save: writes a checkpoint of the state and returns its folder.
        stop: called after a step that a rank wanted to stop after, with the state; raises to end the run.
        evaluate: scores the model on held-out rows, see :mod:`.evaluation.held_out`.
        goes_on_after_nan: steps whose loss or gradient is not finite are dropped and counted instead of ending the run.
        bucket_names: for messages; numbers by default.
        device: that the process computes on.
    """

    def __init__(
        self,
        step: TrainStep,
        lr_scheduler: Any,
        loader: StepLoader,
        sampler: BucketSampler,
        schedule: TrainSchedule,
        state: TrainState,
        tracker: MetricTracker,
        intervals: Intervals,
        save: Callable[[TrainState], Path],
        stop: Callable[[TrainState], None] = lambda state: None,
        evaluate: Callable[[TrainStep], Scores] | None = None,
        goes_on_after_nan: bool = False,
        bucket_names: list[str] | None = None,
        device: str = "cpu",
    ) -> None:
        self._step = step
        self._lr_scheduler = lr_scheduler
        self._loader = loader
        self._sampler = sampler
        self._schedule = schedule
        self._state = state
        self._tracker = tracker
        self._intervals = intervals
        self._save = save
        self._stop = stop
        self._evaluate = evaluate
        self._goes_on_after_nan = goes_on_after_nan
        self._bucket_names = bucket_names
        self._device = device
        self._loss_watch = LossWatch()
        self._skipped_in_a_row = 0
        # Not the schedule's total: a run that is resumed with another global batch has another number of steps.
        self._last_step = state.global_step + schedule.remaining_steps(state.epoch, state.consumed_samples)

    def fit(self) -> TrainState:
        """Train from the state to the end of the last epoch; returns the final state."""
        state = self._state
        if state.global_step == 0 and self._intervals.evaluate_first:
            self._run_evaluation()
        self._tracker.restart_clock()
        while state.epoch < self._schedule.num_epochs:
            steps = Prefetched(self._loader.epoch(state.epoch, state.consumed_samples))
            for loaded in steps:
                lr = self._lr_scheduler.get_last_lr()[0]
                result = self._step.run(loaded.micro_batches)
                self._lr_scheduler.step()
                self._finish_step(loaded, result, lr, steps.wait_seconds)
                self._evaluate_if_due()
                self._checkpoint_if_due()
                if result.stop:
                    self._stop(state)
            state.finish_epoch()
            if self._intervals.save_each_epoch:
                self._checkpoint()
        return state

    def _finish_step(self, loaded: LoadedStep, result: StepResult, lr: float, wait_seconds: float) -> None:
        state = self._state
        positions = sum(batch["input_ids"].numel() for batch in loaded.micro_batches)
        figures = gather_figures(
            (positions, loaded.tokens, wait_seconds, peak_memory_bytes(self._device)), self._device
        )
        # Each group of ranks with the same rows says the same.
        replicas = len(figures) // self._schedule.data_parallel_size
        tokens, text_tokens = (int(sum(rank[place] for rank in figures)) // replicas for place in (0, 1))
        state.finish_step(loaded.samples, result.target_tokens, text_tokens)
        state.skipped_steps += self._goes_on_after_nan and result.update == NOT_FINITE
        self._tracker.record(
            StepFigures(
                step=state.global_step,
                epoch=state.epoch,
                bucket=next(iter(self._sampler.places(loaded.row_numbers[:1]))),
                loss=result.loss,
                lr=lr,
                grad_norm=result.grad_norm,
                tokens=tokens,
                text_tokens=text_tokens,
                target_tokens=result.target_tokens,
                loader_wait_seconds=max(rank[2] for rank in figures),
                peak_memory_bytes=int(max(rank[3] for rank in figures)),
                consumed_samples=state.samples,
                consumed_tokens=state.tokens,
                skipped_steps=state.skipped_steps,
                loss_scale_skip=result.update == OVERFLOW,
            )
        )
        self._judge(loaded, result)

    def _judge(self, loaded: LoadedStep, result: StepResult) -> None:
        """Stop, count or warn where the step is conspicuous."""
        if result.update != NOT_FINITE:
            self._skipped_in_a_row = 0
            usual = self._loss_watch.sees_spike(result.loss)
            if usual is not None:
                self._tell(loaded, "spike", result, f"the loss jumped to {result.loss:.4f} from about {usual:.4f}")
            return
        step = self._state.global_step
        what = f"the loss became {result.loss}" if not math.isfinite(result.loss) else "the gradient is not finite"
        if not self._goes_on_after_nan:
            raise UserError(
                f"{what} at step {step}; resume from the last checkpoint in --save_dir with a lower --lr, or with "
                "--mixed_precision bf16"
            )
        self._skipped_in_a_row += 1
        self._tell(loaded, "skipped", result, f"{what}; its update was dropped")
        if self._skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise UserError(
                f"--on_nan skip: the loss or gradient of {self._skipped_in_a_row} steps in a row, up to {step}, was "
                "not finite; resume from an earlier checkpoint with a lower --lr, or with --mixed_precision bf16"
            )

    def _tell(self, loaded: LoadedStep, kind: str, result: StepResult, what: str) -> None:
        """Note what happened, and the rows to look at."""
        if not self._tracker.writes:
            return
        names = self._bucket_names
        places = [
            (names[bucket] if names else f"bucket {bucket}", rows)
            for bucket, rows in self._sampler.places(loaded.row_numbers).items()
        ]
        shown = "; ".join(
            f"inspect_dataset.py {name} --row {' '.join(map(str, rows[:ROWS_NAMED]))}"
            + (f" (and {len(rows) - ROWS_NAMED} more)" if len(rows) > ROWS_NAMED else "")
            for name, rows in places
        )
        self._tracker.note(
            self._state.global_step,
            kind,
            loss=result.loss,
            grad_norm=result.grad_norm,
            rows=dict(places),
            message=f"{what}; its rows: {shown}",
        )

    def _evaluate_if_due(self) -> None:
        step, interval = self._state.global_step, self._intervals.evaluate
        if interval and (step % interval == 0 or step == self._last_step):
            self._run_evaluation()

    def _run_evaluation(self) -> None:
        if self._evaluate is None:
            return
        started = time.perf_counter()
        scores = self._evaluate(self._step)
        self._tracker.evaluated(self._state.global_step, scores, time.perf_counter() - started)

    def _checkpoint_if_due(self) -> None:
        if self._intervals.save and self._state.global_step % self._intervals.save == 0:
            self._checkpoint()

    def _checkpoint(self) -> None:
        started = time.perf_counter()
        folder = self._save(self._state)
        seconds = time.perf_counter() - started
        size = sum(file.stat().st_size for file in folder.rglob("*")) if self._tracker.writes else 0
        self._tracker.checkpointed(self._state.global_step, folder.name, seconds, size)
