"""``--dry_run``: what each stage would run, and what it would need, from the files that exist so far."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colossal_llama.config.recipe import StageRecipe, train_flags
from colossal_llama.config.train import TrainConfig
from colossal_llama.constants import MANIFEST_FILE
from colossal_llama.data.manifest import read_manifest
from colossal_llama.errors import UserError
from colossal_llama.metrics.flops import flops_per_token
from colossal_llama.planning.description import in_units, memory_parts
from colossal_llama.planning.duration import training_seconds
from colossal_llama.planning.memory import MemoryEstimate
from colossal_llama.planning.workload import training_memory
from colossal_llama.schedule import TrainSchedule
from colossal_llama.stages.launcher import TRAIN_SCRIPT
from colossal_llama.stages.plan import StagePlan, missing_inputs, model_config


@dataclass(frozen=True)
class DataSize:
    """Rows and tokens of a stage's data, and where the figures come from."""

    rows: int
    tokens: int
    source: str


@dataclass(frozen=True)
class Forecast:
    """What a stage would run and need.

    Attributes:
        stage: its name.
        command: program and arguments.
        missing: what the recipe names and is not there yet, a line each.
        model: content of the model's ``config.json``, and where it comes from.
        memory: of the fullest rank, or None without a model.
        data: of the stage, or None while it is neither prepared nor expected.
        schedule: the step arithmetic, or None without data.
        checkpointing: whether activations are recomputed.
        tokens: that the stage processes in all epochs, padding included.
        flops: of all of them, or None.
        seconds: that they take, or None without a stated peak.
        efficiency: devices, peak and MFU in words.
    """

    stage: str
    command: list[str]
    missing: list[str]
    model: str | None
    memory: MemoryEstimate | None
    data: DataSize | None
    schedule: TrainSchedule | None
    checkpointing: bool
    tokens: int
    flops: float | None
    seconds: float | None
    efficiency: str


def forecast_plan(plan: StagePlan, peak_tflops: float | None, mfu: float | None) -> list[Forecast]:
    """The forecast of every stage.

    Args:
        plan: what would run.
        peak_tflops: peak of one device; None: the recipe's.
        mfu: share of it that is reached; None: the recipe's.
    """
    model, source = model_config(plan.recipe)
    peak = peak_tflops or plan.recipe.file.peak_tflops
    share = mfu or plan.recipe.file.mfu
    # One port for all stages: each binds it anew.
    command = plan.launcher.command(str(TRAIN_SCRIPT), [])
    return [_forecast(plan, stage, model, source, peak, share, command) for stage in plan.recipe.stages]


def _forecast(
    plan: StagePlan,
    stage: StageRecipe,
    model: dict[str, Any] | None,
    source: str,
    peak: float | None,
    mfu: float,
    command: list[str],
) -> Forecast:
    settings, processes = stage.settings, plan.launcher.processes
    data = data_size(stage)
    schedule = None if data is None else build_schedule(settings, data.rows, processes)
    tokens = 0
    if data is not None:
        row = settings.max_length if settings.padding_mode == "max_length" else data.tokens / data.rows
        tokens = math.ceil(row * data.rows) * settings.num_epochs
    missing = missing_inputs(stage)
    try:
        memory = None if model is None else training_memory(settings, model, source, processes)
    except UserError as error:  # a model of another kind: everything else can be said all the same
        missing.append(f"estimates of memory and time: {error}")
        model = memory = None
    flops = None
    if model is not None and tokens:
        flops = tokens * flops_per_token(model, settings.max_length, settings.freeze_non_embeds_params)
    seconds = None if flops is None or peak is None else training_seconds(flops, processes, peak, mfu)
    if plan.missing_hostfile is not None:
        missing.append(f"launcher: hostfile {plan.missing_hostfile}: no such file")
    return Forecast(
        stage=stage.name,
        command=[*command, *(shlex.quote(flag) for flag in train_flags(stage, resume=False))],
        missing=missing,
        model=source or None,
        memory=memory,
        data=data,
        schedule=schedule,
        checkpointing=settings.use_grad_checkpoint,
        tokens=tokens,
        flops=flops,
        seconds=seconds,
        efficiency="" if peak is None else f"{processes} x {peak:g} TFLOP/s x MFU {mfu:g}",
    )


def data_size(stage: StageRecipe) -> DataSize | None:
    """Rows and tokens of a stage's data: from the manifests, else from ``expected_tokens`` in full rows; None unknown.

    Raises:
        UserError: a manifest is broken.
    """
    sizes = [_manifest_size(Path(folder), stage.name) for folder in stage.settings.dataset]
    known = [size for size in sizes if size is not None and size[0]]
    if known and len(known) == len(sizes):
        return DataSize(sum(rows for rows, _ in known), sum(tokens for _, tokens in known), MANIFEST_FILE)
    if stage.expected_tokens is None:
        return None
    tokens = int(stage.expected_tokens)
    return DataSize(math.ceil(tokens / stage.settings.max_length), tokens, "expected_tokens, full rows")


def _manifest_size(folder: Path, stage: str) -> tuple[int, int] | None:
    flag = f"stage {stage}: dataset"
    manifest = read_manifest(folder, flag)
    if manifest is not None:
        return manifest.rows, manifest.tokens
    manifest = read_manifest(folder.resolve().parent, flag)
    for part in manifest.parts if manifest is not None else ():
        if part.name == folder.resolve().name:
            return part.rows, part.tokens
    return None


def build_schedule(settings: TrainConfig, rows: int, processes: int) -> TrainSchedule:
    """The step arithmetic of a stage."""
    return TrainSchedule(
        num_samples=rows,
        data_parallel_size=processes // (settings.tp * settings.pp * settings.sp),
        micro_batch_size=settings.micro_batch_size,
        accumulation_steps=settings.accumulation_steps,
        num_epochs=settings.num_epochs,
        warmup_steps=settings.warmup_steps,
    )


def describe(forecast: Forecast) -> str:
    """A forecast in lines for the terminal."""
    lines = [f"== stage {forecast.stage}"]
    lines += [f"   missing: {what}" for what in forecast.missing]
    lines += _data_lines(forecast)
    if forecast.memory is None:
        lines.append("   memory: unknown; while pretrained does not exist, give the recipe a 'model:' of known sizes")
    else:
        lines += _memory_lines(forecast.memory, forecast.checkpointing, forecast.model or "")
    lines.append(f"   time: {_time(forecast)}")
    lines.append("   $ " + shlex.join(forecast.command))
    return "\n".join(lines)


def _data_lines(forecast: Forecast) -> list[str]:
    data, schedule = forecast.data, forecast.schedule
    if data is None or schedule is None:
        return ["   data: rows and tokens unknown; prepare it, or give the stage expected_tokens"]
    return [
        f"   data: {data.rows:,} rows, {data.tokens:,} tokens ({data.source})",
        f"   steps: {schedule.total_steps:,} of {schedule.global_batch:,} rows ({schedule.data_parallel_size} data "
        f"parallel * {schedule.micro_batch_size} rows * {schedule.accumulation_steps} accumulation), "
        f"{schedule.num_epochs} epoch(s), {forecast.tokens:,} tokens with padding",
    ]


def _memory_lines(memory: MemoryEstimate, checkpointing: bool, source: str) -> list[str]:
    shown = ", ".join(f"{name} {in_units(amount)}" for name, amount in memory_parts(memory).items())
    with_without = ("with", "without") if checkpointing else ("without", "with")
    return [
        f"   memory per rank, from {source}: {shown}",
        f"   total {in_units(memory.total(checkpointing))} {with_without[0]} gradient checkpointing as the stage says, "
        f"{in_units(memory.total(not checkpointing))} {with_without[1]} it",
    ]


def _time(forecast: Forecast) -> str:
    if forecast.flops is None:
        return "unknown without model and data"
    amount = f"{forecast.flops:.3g} FLOPs"
    if forecast.seconds is None:
        return f"{amount}; unknown without a peak, give --peak_tflops or the recipe's peak_tflops"
    seconds = forecast.seconds
    shown = f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else f"{seconds:,.0f} seconds"
    return f"{shown} for {amount} at {forecast.efficiency}"


def describe_plan(forecasts: Sequence[Forecast]) -> str:
    """All forecasts and their sum."""
    lines = [describe(forecast) for forecast in forecasts]
    seconds = [forecast.seconds for forecast in forecasts]
    if len(forecasts) > 1 and all(value is not None for value in seconds):
        total = sum(value for value in seconds if value is not None)
        lines.append(f"all stages: {total / 3600:,.2f} hours of training, starting and saving not counted")
    return "\n".join(lines)
