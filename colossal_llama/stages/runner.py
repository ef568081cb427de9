"""Runs a plan's stages in order: finished ones are skipped, a killed one goes on from its newest checkpoint."""

from __future__ import annotations

import fcntl
import shlex
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from colossal_llama.checkpoint.folders import discard_checkpoints, existing_checkpoints
from colossal_llama.checkpoint.manager import MODELING
from colossal_llama.config.recipe import StageRecipe, train_flags
from colossal_llama.errors import UserError
from colossal_llama.stages.launcher import (
    TRAIN_SCRIPT,
    command_environment,
    run_logged,
    training_environment,
    training_exit_code,
)
from colossal_llama.stages.marker import (
    Marker,
    differences,
    fingerprint,
    read_marker,
    stage_inputs,
    stage_settings,
    write_marker,
)
from colossal_llama.stages.plan import StagePlan
from colossal_llama.stages.summary import StageSummary, summarise, write_summaries

LOG_FILE = "train.log"
LOCK_FILE = ".run_stages.lock"


class PlanRunner:
    """Runs what of a plan is not done yet.

    Args:
        plan: what to run.
        overwrite: train stages again whose settings or inputs changed.
    """

    def __init__(self, plan: StagePlan, overwrite: bool) -> None:
        self._plan = plan
        self._overwrite = overwrite
        self._output_dir = Path(plan.recipe.file.output_dir)
        self._lock = -1

    def run(self) -> list[StageSummary]:
        """Run every stage to its end; returns their figures.

        Raises:
            UserError: a stage changed since it was trained, or failed; names the stage.
            SystemExit: a signal came and was passed on; the code is 128 and the signal's number, as a shell gives it.
        """
        self._output_dir.mkdir(parents=True, exist_ok=True)
        summaries: list[StageSummary] = []
        with lock_folder(self._output_dir) as self._lock:
            start = fingerprint(Path(self._plan.recipe.file.pretrained))
            for stage in self._plan.recipe.stages:
                marker = self._run_stage(stage, start)
                start = f"{stage.name}, run {marker.run}"
                summaries.append(StageSummary(**marker.summary))
                write_summaries(summaries, self._output_dir)
        return summaries

    def _run_stage(self, stage: StageRecipe, start: str) -> Marker:
        folder = Path(stage.settings.save_dir)
        settings = stage_settings(stage, self._plan.launcher.processes)
        inputs = stage_inputs(stage, start)
        marker = read_marker(folder)
        self._refuse_strangers(stage, folder, marker)
        if marker is not None:
            marker = self._unless_changed(stage, folder, marker, settings, inputs)
        if marker is not None and marker.finished:
            print(f"== stage {stage.name}: done before", flush=True)
            return marker
        run = uuid.uuid4().hex if marker is None else marker.run
        marker = Marker(run, finished=False, settings=settings, inputs=inputs)
        write_marker(marker, folder)
        self._train(stage, folder)
        marker.finished, marker.summary = True, asdict(summarise(stage.name, folder))
        write_marker(marker, folder)
        return marker

    def _refuse_strangers(self, stage: StageRecipe, folder: Path, marker: Marker | None) -> None:
        """Refuse to train into a folder that something else wrote."""
        if marker is None and (existing_checkpoints(folder) or (folder / MODELING).exists()):
            raise UserError(
                f"stage {stage.name}: {folder} holds a training that this plan did not start; choose another "
                "output_dir or name, or move the folder away"
            )

    def _unless_changed(
        self, stage: StageRecipe, folder: Path, marker: Marker, settings: dict, inputs: dict[str, str]
    ) -> Marker | None:
        """The marker of a stage that is still the same one, or None when it is to be trained from its start."""
        changed = differences(marker, settings, inputs)
        if marker.finished and not (folder / MODELING).is_dir():
            changed.append(f"{folder / MODELING} is gone")
        if not changed:
            return marker
        worth_keeping = marker.finished or existing_checkpoints(folder)
        if worth_keeping and not self._overwrite:
            state = "trained" if marker.finished else "begun"
            raise UserError(
                f"stage {stage.name}: changed since it was {state}: {'; '.join(changed)}. Undo that, choose another "
                "output_dir, or add --overwrite to train it again, and the stages after it"
            )
        discard_checkpoints(folder)
        shutil.rmtree(folder / MODELING, ignore_errors=True)
        return None

    def _train(self, stage: StageRecipe, folder: Path) -> None:
        resumed = bool(existing_checkpoints(folder))
        launcher = self._plan.launcher
        flags = train_flags(stage, resumed)
        command = launcher.command(str(TRAIN_SCRIPT), flags)
        log = folder / LOG_FILE
        print(f"== stage {stage.name}: {'goes on' if resumed else 'starts'}", flush=True)
        print("$ " + shlex.join(command), flush=True)
        started, log_start = time.perf_counter(), log.stat().st_size if log.exists() else 0
        environment = command_environment(training_environment(launcher.nproc_per_node))
        ended = run_logged(command, log, environment, keep_open=[self._lock])
        if ended.signal is not None:
            print(f"== stage {stage.name}: stopped by signal {ended.signal}; run the same command to go on", flush=True)
            raise SystemExit(128 + ended.signal)
        if ended.code:
            code = training_exit_code(log, log_start) or ended.code
            raise UserError(
                f"stage {stage.name} failed with exit code {code} after {time.perf_counter() - started:.0f} seconds; "
                f"log: {log}. Mend it and run the same command to go on"
            )
        if not (folder / MODELING).is_dir():
            raise UserError(f"stage {stage.name} ended without writing {folder / MODELING}; log: {log}")


@contextmanager
def lock_folder(folder: Path) -> Iterator[int]:
    """Hold a lock on a folder; yields its file descriptor, which a launched training inherits.

    So the lock also holds while a training lives whose run_stages.py was killed.

    Raises:
        UserError: something else holds it.
    """
    with (folder / LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"output_dir {folder}: a run_stages.py or a training that it started is still at work there; wait for "
                "it or end it"
            ) from error
        yield file.fileno()
