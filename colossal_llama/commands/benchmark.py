"""``benchmark.py``: speed and memory of training steps, and how other loops do on the same."""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colossal_llama.config.benchmark import OWN_LOOP, BenchmarkConfig
from colossal_llama.config.cli import parse_config
from colossal_llama.config.io import write_config
from colossal_llama.errors import USER_ERROR_EXIT_CODE, UserError, run_command

if TYPE_CHECKING:
    from colossal_llama.benchmarking.figures import RunFigures
    from colossal_llama.planning.memory import MemoryEstimate

DESCRIPTION = (
    "Measure training steps on random weights and rows: speed, FLOP/s, memory, and where the time goes. Start it as "
    "train.py is started (colossalai run, torchrun), or with python as one process."
)
GIB = 2**30


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command; returns the exit code."""
    return run_command(lambda: benchmark(parse_config(BenchmarkConfig, argv, DESCRIPTION)))


def benchmark(config: BenchmarkConfig) -> None:
    """Measure this project's loop and its peers, print a table and write the figures."""
    from colossal_llama.atomic import refuse_existing_file
    from colossal_llama.model.config_values import check_types
    from colossal_llama.planning.shapes import ModelShape, find_model_config

    if config.output is not None:
        refuse_existing_file(Path(config.output), "--output", overwrite=True)
    model_config = find_model_config(config.model, "--model")
    ModelShape.from_config(model_config, f"--model {config.model}")
    check_types(model_config, Path(config.model))
    contenders = [OWN_LOOP, *config.compare]
    if config.compare:
        figures = [measure_apart(config, contender) for contender in contenders]
    else:
        figures = [measure(config, OWN_LOOP)]
    if os.environ.get("RANK", "0") == "0":
        report(config, figures)


def measure(config: BenchmarkConfig, contender: str) -> RunFigures:
    """Measure one contender in this process.

    Raises:
        UserError: it cannot run here, or does not fit.
    """
    import torch

    from colossal_llama.planning.shapes import find_model_config

    model_config = find_model_config(config.model, "--model")
    check_attention(config)
    if contender == OWN_LOOP:
        check_layout(config)
    check_memory(config, contender, model_config)
    try:
        figures = measure_own(config, model_config) if contender == OWN_LOOP else measure_peer(config, contender)
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(
            f"--model {config.model}: {contender} ran out of GPU memory; recompute activations (-g), take fewer rows "
            "(-b), or another layout (scripts/plan.py --suggest)"
        ) from error
    return with_flops(figures, config, model_config)


def measure_peer(config: BenchmarkConfig, contender: str) -> RunFigures:
    """Measure another loop in this process."""
    from colossal_llama.benchmarking import peers
    from colossal_llama.planning.shapes import find_model_config

    return peers.measure_peer(contender, config, find_model_config(config.model, "--model"))


def measure_own(config: BenchmarkConfig, model_config: dict[str, Any]) -> RunFigures:
    """Measure this project's loop in this process."""
    import gc

    from colossal_llama.commands.benchmark_run import measure_own_loop
    from colossal_llama.distributed.launch import launch, shut_down

    env = launch(config.seed)
    try:
        return measure_own_loop(config, model_config, env)
    finally:
        # Leaving the process group waits for gloo's threads, which hang while a dead cycle still holds their work.
        gc.collect()
        shut_down()


def check_layout(config: BenchmarkConfig) -> None:
    """Refuse what the plugin cannot run with, before anything is launched.

    Raises:
        UserError: names the flag.
    """
    from colossal_llama.distributed.launch import world_size_from_environment
    from colossal_llama.plugins import PLUGINS, build_options

    options = build_options(config.train_config(), on_host=True, flash_attention=False)
    PLUGINS.get(config.plugin).check(options, world_size_from_environment())


def check_attention(config: BenchmarkConfig) -> None:
    """Refuse flash attention where it cannot run: figures of something else would carry its name.

    Raises:
        UserError: there is no GPU, or the package is missing.
    """
    import importlib.util

    import torch

    if not config.use_flash_attn:
        return
    if not torch.cuda.is_available():
        raise UserError("--use_flash_attn needs a GPU, and there is none here; leave it away to measure PyTorch's SDPA")
    if importlib.util.find_spec("flash_attn") is None:
        raise UserError("--use_flash_attn needs the package flash-attn: pip install 'colossal_llama[flash]'")


def check_memory(config: BenchmarkConfig, contender: str, model_config: dict[str, Any]) -> None:
    """Refuse what will not fit, before anything is allocated.

    Raises:
        UserError: says how much is missing.
    """
    import torch

    from colossal_llama.benchmarking.machine import free_memory_bytes

    if not config.check_memory:
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    estimate = estimated_memory(config, contender, model_config)
    needed = estimate.total(config.use_grad_checkpoint) + (estimate.host_optimizer if device == "cpu" else 0)
    free = free_memory_bytes(device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if needed > free:
        who = f"--plugin {config.plugin}" if contender == OWN_LOOP else contender
        raise UserError(
            f"--model {config.model} with {who} on {os.environ.get('WORLD_SIZE', '1')} process(es) needs about "
            f"{needed / GIB:,.1f} GiB in each, and {free / GIB:,.1f} GiB are free; scripts/plan.py --suggest lists "
            "layouts that fit, --check_memory false tries all the same"
        )


def estimated_memory(config: BenchmarkConfig, contender: str, model_config: dict[str, Any]) -> MemoryEstimate:
    """What the planner says of a contender's fullest rank. Peers keep fp32 weights, FSDP a part of them."""
    from colossal_llama.planning.workload import training_memory

    plugin = {OWN_LOOP: config.plugin, "torch_fsdp2": "gemini"}.get(contender, "ddp")
    alone = {"tp": 1, "pp": 1, "sp": 1, "enable_sequence_parallelism": False, "plugin": plugin}
    changes = {} if contender == OWN_LOOP else alone
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    return training_memory(config.train_config(**changes), model_config, f"--model {config.model}", processes)


def with_flops(figures: RunFigures, config: BenchmarkConfig, model_config: dict[str, Any]) -> RunFigures:
    """The figures with what FLOP/s and MFU are computed from."""
    import torch

    from colossal_llama.metrics.device import device_name
    from colossal_llama.metrics.flops import flops_per_token, is_counted, peak_flops

    if is_counted(model_config):
        figures.flops_per_token = flops_per_token(model_config, config.max_length, config.freeze_non_embeds_params)
    stated = config.peak_tflops * 1e12 if config.peak_tflops else None
    name = device_name("cuda" if torch.cuda.is_available() else "cpu")
    figures.peak_flops = stated or peak_flops(name, config.mixed_precision)
    return figures


def measure_apart(config: BenchmarkConfig, contender: str) -> RunFigures:
    """Measure one contender in a process of its own, so that none finds what another left behind.

    The processes of all ranks meet as this process would have met the others: at the launcher's address.

    Raises:
        UserError: this project's loop failed, or a peer of several processes, whose others would wait for it.
    """
    import subprocess

    from colossal_llama.benchmarking.figures import RunFigures
    from colossal_llama.benchmarking.processes import contender_environment

    with tempfile.TemporaryDirectory() as folder:
        config_file, output = Path(folder) / "config.json", Path(folder) / "figures.json"
        write_config(config, config_file)
        order = [OWN_LOOP, *config.compare].index(contender)
        command = [sys.executable, "-m", "colossal_llama.commands.benchmark_worker"]
        done = subprocess.run(
            [*command, str(config_file), contender, str(output)],
            env=contender_environment(os.environ, order),
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode == 0:
            is_main = output.is_file()
            return RunFigures.from_dict(json.loads(output.read_text())) if is_main else RunFigures(contender)
    reason = failure_of(done.stderr)
    if not reason.startswith("error: "):
        sys.stderr.write(done.stderr)
    reason = reason.removeprefix("error: ")
    refused = done.returncode == USER_ERROR_EXIT_CODE  # by every rank, before they meet
    if contender == OWN_LOOP or (int(os.environ.get("WORLD_SIZE", "1")) > 1 and not refused):
        raise UserError(f"{contender}: {reason}")
    return RunFigures(contender, failure=reason)


def failure_of(stderr: str) -> str:
    """The last line that a failed process wrote, which says why."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["ended without a word"])[-1][:500]


def report(config: BenchmarkConfig, figures: list[RunFigures]) -> None:
    """Print the table, and write the figures where asked for."""
    import torch

    from colossal_llama.atomic import write_text_atomically
    from colossal_llama.benchmarking.machine import describe_machine
    from colossal_llama.benchmarking.table import describe
    from colossal_llama.json_records import json_value

    content: dict[str, Any] = {
        "command": shlex.join(sys.argv),
        "machine": describe_machine("cuda" if torch.cuda.is_available() else "cpu"),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "settings": vars(config),
        "contenders": [one.as_dict() for one in figures],
    }
    print(describe(content["command"], content["machine"], config, figures), flush=True)
    if config.output is not None:
        write_text_atomically(Path(config.output), json.dumps(json_value(content), indent=2, allow_nan=False) + "\n")
        print(f"figures: {config.output}", flush=True)
