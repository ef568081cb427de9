"""``plan.py``: whether a training fits on given GPUs, how long its steps take, and which layouts are fastest."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from colossal_llama.config.cli import parse_config
from colossal_llama.config.plan import PlanConfig
from colossal_llama.errors import UserError, run_command
from colossal_llama.json_records import json_value

if TYPE_CHECKING:
    from colossal_llama.planning.step_time import Cluster

DESCRIPTION = (
    "Estimate memory, communication and time of a training before anything is bought or started; --suggest looks for "
    "the layout that fits and is fastest. Nothing is loaded or run."
)
GIB = 2**30


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command; returns the exit code."""
    return run_command(lambda: plan(parse_config(PlanConfig, argv, DESCRIPTION)))


def plan(config: PlanConfig) -> None:
    """Print the estimate, or the layouts that fit, and write them where asked for.

    Raises:
        UserError: the flags describe nothing that can be trained.
    """
    from colossal_llama.atomic import refuse_existing_file, write_text_atomically
    from colossal_llama.planning.description import as_dict, describe_plan, describe_suggestions
    from colossal_llama.planning.layouts import Model, make_plan, suggest

    if config.output is not None:
        refuse_existing_file(Path(config.output), "--output", overwrite=True)
    model = Model.find(config.model, "--model")
    cluster = build_cluster(config)
    capacity = config.gpu_memory * config.usable_memory * GIB
    if config.suggest:
        fitting, too_large = suggest(model, config.train_config(), cluster, capacity)
        print(describe_suggestions(fitting, too_large, model, cluster, config.top, config.tokens))
        plans = fitting[: config.top]
    else:
        plans = [make_plan(model, config.train_config(), cluster, capacity)]
        print(describe_plan(plans[0], model, cluster, config.tokens))
    if config.output is not None:
        content = {
            "model": model.name,
            "parameters": model.shape.parameters,
            "cluster": dataclasses.asdict(cluster),
            "plans": [as_dict(one, cluster) for one in plans],
        }
        write_text_atomically(Path(config.output), json.dumps(json_value(content), indent=2, allow_nan=False) + "\n")
        print(f"figures: {config.output}")


def build_cluster(config: PlanConfig) -> Cluster:
    """The machines that the flags describe.

    Raises:
        UserError: the GPU's peak is neither given nor known.
    """
    from colossal_llama.metrics.flops import PEAK_TFLOPS, peak_flops
    from colossal_llama.planning.step_time import Cluster

    peak = config.peak_tflops
    if peak is None:
        known = peak_flops(config.gpu, config.mixed_precision)
        if known is None:
            names = ", ".join(name for name, _, _ in PEAK_TFLOPS)
            raise UserError(f"--gpu {config.gpu}: unknown; give --peak_tflops, or one of {names}")
        peak = known / 1e12
    return Cluster(
        devices=config.gpus,
        devices_per_node=config.gpus_per_node,
        peak_tflops=peak,
        efficiency=config.efficiency,
        node_bandwidth=config.node_bandwidth,
        network_bandwidth=config.network_bandwidth,
    )
