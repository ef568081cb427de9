"""The benchmark's run of this project's loop: ``train.py``'s parts on random weights and rows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colossal_llama.commands import train
from colossal_llama.config.benchmark import OWN_LOOP, BenchmarkConfig

if TYPE_CHECKING:
    from colossal_llama.benchmarking.clock import PhaseClock
    from colossal_llama.benchmarking.figures import RunFigures
    from colossal_llama.benchmarking.memory_trace import MemoryTrace
    from colossal_llama.benchmarking.recorder import StepRecorder
    from colossal_llama.distributed.launch import DistEnv
    from colossal_llama.plugins.steps import Boosted, TrainStep


def measure_own_loop(config: BenchmarkConfig, model_config: dict[str, Any], env: DistEnv) -> RunFigures:
    """Train a model of random weights on random rows through the trainer. All ranks run it.

    Raises:
        UserError: the plugin cannot train this model in this layout, or it will not fit.
    """
    from colossal_llama.benchmarking.clock import PhaseClock, device_synchronizer
    from colossal_llama.benchmarking.collectives import settled_collectives
    from colossal_llama.benchmarking.figures import RunFigures
    from colossal_llama.benchmarking.memory_trace import traced_memory
    from colossal_llama.benchmarking.recorder import StepRecorder
    from colossal_llama.plugins import PLUGINS

    train_config = config.train_config()
    inputs = train.Inputs(
        model_config=model_config, weights=Path(os.devnull), weights_flag="--model", adapter=None, resume_from=None
    )
    spec = PLUGINS.get(config.plugin)
    clock = PhaseClock(device_synchronizer(env.device))
    recorder = StepRecorder(clock)
    traces = config.trace_memory and env.device == "cpu"
    with traced_memory(traces) as trace, settled_collectives(traces):
        setting = build_setting(train_config, spec, inputs, env, config.total_steps)
        step, boosted, lr_scheduler = build_step(setting)
        run_steps(setting, step, lr_scheduler, recorder, config.ignore_steps + config.num_steps, seed=config.seed)
        timed = recorder.taken()
        figures = RunFigures(OWN_LOOP, losses=timed.losses, seconds=timed.seconds[config.ignore_steps :])
        if config.split_steps:
            measure_split(setting, step, boosted, lr_scheduler, clock, recorder, figures, config)
    fill_in(figures, setting, trace, env)
    return figures


def build_setting(
    config: train.TrainConfig, spec: Any, inputs: train.Inputs, env: DistEnv, steps: int
) -> train.Setting:
    """The setting of a training on random rows, without a tokenizer."""
    from colossal_llama.data.random_rows import RandomRows

    options, plugin, layout = train.build_parallelism(config, spec, inputs, env)
    rows_per_step = train.build_train_schedule(config, 1, layout).global_batch
    rows = RandomRows(steps * rows_per_step, config.max_length, inputs.model_config["vocab_size"], config.seed)
    schedule = train.build_train_schedule(config, len(rows), layout)
    return train.Setting(
        config, inputs, env, spec, options, plugin, layout, None, 0, rows, document_mask=False, schedule=schedule
    )


def build_step(setting: train.Setting) -> tuple[TrainStep, Boosted, Any]:
    """The optimizer step of a model of random weights, what it works on, and the learning-rate schedule."""
    from colossal_llama.benchmarking.random_model import build_random_model
    from colossal_llama.distributed.lazy import lazy_initialisation
    from colossal_llama.plugins import attention_for, build_booster, read_architecture
    from colossal_llama.plugins import steps as plugin_steps

    config, env, spec, options = setting.config, setting.env, setting.spec, setting.options
    architecture = read_architecture(config.pretrained, setting.inputs.model_config)
    model = build_random_model(
        architecture,
        "fp32" if spec.keeps_fp32_weights else config.mixed_precision,
        attention_for(spec, options, architecture.model_type),
        config.seed,
        env.device,
        lazy_initialisation(env.device) if spec.shards_attention else None,
    )
    train.choose_trained(setting, model)
    booster = build_booster(setting.plugin, spec, options)
    model, optimizer, lr_scheduler = train.boost(setting, booster, model)
    boosted = plugin_steps.Boosted(booster, model, optimizer, setting.layout, spec, options, env.device)
    return plugin_steps.build_step(boosted), boosted, lr_scheduler


def run_steps(
    setting: train.Setting, step: TrainStep, lr_scheduler: Any, recorder: StepRecorder, steps: int, seed: int
) -> None:
    """So many optimizer steps through the trainer, on rows that follow from ``seed``."""
    from colossal_llama.benchmarking.rows import random_rows
    from colossal_llama.data.loader import StepLoader
    from colossal_llama.data.sampler import BucketSampler
    from colossal_llama.metrics.tracker import MetricTracker
    from colossal_llama.state import TrainState
    from colossal_llama.trainer import Intervals, Trainer

    config, layout = setting.config, setting.layout
    rows = random_rows(setting.inputs.model_config, config.max_length, steps * setting.schedule.global_batch, seed)
    schedule = train.build_train_schedule(config, len(rows), layout)
    sampler = BucketSampler(rows.bucket_sizes, seed)
    tracker = MetricTracker([recorder], setting.env.world_size)
    Trainer(
        step=step,
        lr_scheduler=lr_scheduler,
        loader=StepLoader(rows, sampler, train.build_collator(setting), schedule, layout.data_rank),
        sampler=sampler,
        schedule=schedule,
        state=TrainState(),
        tracker=tracker,
        intervals=Intervals(),
        save=lambda state: Path(os.devnull),
        device=setting.env.device,
    ).fit()


def measure_split(
    setting: train.Setting,
    step: TrainStep,
    boosted: Boosted,
    lr_scheduler: Any,
    clock: PhaseClock,
    recorder: StepRecorder,
    figures: RunFigures,
    config: BenchmarkConfig,
) -> None:
    """Time the phases of further steps, in which the device is waited for at every change of phase."""
    from colossal_llama.benchmarking.collectives import CollectiveMeter
    from colossal_llama.benchmarking.split import reduce_in_python, time_phases

    time_phases(step, boosted, clock)
    reduce_in_python(boosted.model)
    meter = CollectiveMeter(clock)
    with meter.installed():
        clock.start()
        run_steps(setting, step, lr_scheduler, recorder, config.split_steps, seed=config.seed + 1)
    split = recorder.taken()
    figures.split, figures.split_seconds = split.mean_phases()
    figures.sent_bytes = meter.sent_bytes / config.split_steps


def fill_in(figures: RunFigures, setting: train.Setting, trace: MemoryTrace, env: DistEnv) -> None:
    """What is known besides times and losses; collective."""
    from colossal_llama.benchmarking.figures import largest_of_ranks
    from colossal_llama.metrics.device import peak_memory_bytes

    config = setting.config
    figures.devices = env.world_size
    figures.rows_per_step = setting.schedule.global_batch
    figures.tokens_per_step = setting.schedule.global_batch * config.max_length
    figures.peak_memory_bytes, tensors, between = largest_of_ranks(
        [peak_memory_bytes(env.device), trace.peak, trace.at_marks.get("between_steps", 0)], env.device
    )
    if trace.peak:
        figures.tensor_bytes, figures.tensor_bytes_between_steps = tensors, between
