"""Which ways of distributing a training fit, and which of them is fastest."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from colossal_llama.config.train import TrainConfig
from colossal_llama.errors import UserError
from colossal_llama.metrics.flops import is_counted
from colossal_llama.planning.communication import Traffic, estimate_traffic
from colossal_llama.planning.memory import MemoryEstimate, estimate_memory
from colossal_llama.planning.shapes import ModelShape, find_model_config
from colossal_llama.planning.step_time import Cluster, StepTime, estimate_step_time
from colossal_llama.planning.workload import workload_of
from colossal_llama.plugins import PLUGINS, build_options, check_model, read_architecture

PASSES = (1, 2, 4, 8)
"""Rows of a forward pass that are tried."""


@dataclass(frozen=True)
class Plan:
    """One layout and what it would need.

    Attributes:
        settings: its flags of train.py.
        memory: of the fullest rank.
        traffic: that a rank sends in a step.
        time: of a step.
        capacity: bytes that tensors may take on a device.
    """

    settings: TrainConfig
    memory: MemoryEstimate
    traffic: Traffic
    time: StepTime
    capacity: float

    @property
    def needed(self) -> float:
        """Bytes at the peak, on the device."""
        return self.memory.total(self.settings.use_grad_checkpoint)

    @property
    def fits(self) -> bool:
        """Whether it can run at all."""
        return self.needed <= self.capacity


@dataclass(frozen=True)
class Model:
    """What is planned for.

    Attributes:
        config: content of ``config.json``.
        name: for messages.
        shape: its sizes.
        architecture: transformers' configuration.
    """

    config: dict[str, Any]
    name: str
    shape: ModelShape
    architecture: Any

    @classmethod
    def find(cls, name: str, flag: str) -> Model:
        """The model that a flag names, see :func:`.shapes.find_model_config`.

        Raises:
            UserError: there is none, or nothing can be estimated for its kind.
        """
        config = find_model_config(name, flag)
        shape = ModelShape.from_config(config, f"{flag} {name}")
        if not is_counted(config):
            raise UserError(f"{flag} {name}: a mixture of experts; estimates are for dense models only")
        return cls(config, name, shape, read_architecture(name, config))


def make_plan(model: Model, settings: TrainConfig, cluster: Cluster, capacity: float) -> Plan:
    """What one layout would need.

    Raises:
        UserError: the plugin cannot train this model in this layout.
    """
    spec = PLUGINS.get(settings.plugin)
    options = build_options(settings, on_host=False, flash_attention=settings.use_flash_attn)
    spec.check(options, cluster.devices)
    check_model(settings.plugin, spec, options, model.name, model.architecture, settings.max_length)
    workload = workload_of(settings, options)
    memory = estimate_memory(
        model.shape, spec.placement(options, cluster.devices), workload, settings.use_grad_checkpoint
    )
    traffic = estimate_traffic(model.shape, settings, options, workload, cluster.devices)
    return Plan(settings, memory, traffic, estimate_step_time(model.config, settings, traffic, cluster), capacity)


def suggest(model: Model, settings: TrainConfig, cluster: Cluster, capacity: float) -> tuple[list[Plan], list[Plan]]:
    """All layouts that process as many rows in a step as ``settings`` do.

    Of layouts that differ only in rows of a pass and in recomputing, the fastest that fits is kept.

    Returns:
        Those that fit, fastest first, and those that do not, smallest first.
    """
    fitting: dict[tuple[Any, ...], Plan] = {}
    too_large: dict[tuple[Any, ...], Plan] = {}
    for candidate in candidates(model, settings, cluster):
        try:
            plan = make_plan(model, candidate, cluster, capacity)
        except UserError:
            continue
        key = layout_of(candidate)
        if plan.fits:
            best = fitting.get(key)
            if best is None or plan.time.total < best.time.total:
                fitting[key] = plan
        elif key not in too_large or plan.needed < too_large[key].needed:
            too_large[key] = plan
    ordered = sorted(fitting.values(), key=lambda plan: (plan.time.total, plan.needed))
    return ordered, sorted((too_large[key] for key in too_large.keys() - fitting), key=lambda plan: plan.needed)


def layout_of(settings: TrainConfig) -> tuple[Any, ...]:
    """What tells one layout from another."""
    sequence = settings.sp_mode if settings.enable_sequence_parallelism else ""
    zero = settings.zero if settings.plugin == "3d" else 0
    return settings.plugin, settings.tp, settings.pp, settings.sp, sequence, zero


def candidates(model: Model, settings: TrainConfig, cluster: Cluster) -> Iterator[TrainConfig]:
    """The settings to try: plugins, parallel sizes, ZeRO stages, rows of a pass, with and without recomputing."""
    model_ranks = settings.tp * settings.pp * settings.sp
    if cluster.devices % model_ranks:
        raise UserError(f"--tp * --pp * --sp = {model_ranks} does not divide --gpus {cluster.devices}")
    rows = cluster.devices // model_ranks * settings.micro_batch_size * settings.accumulation_steps
    for plugin in PLUGINS.names():
        for layout in _layouts(plugin, model, settings, cluster):
            ranks = layout.get("tp", 1) * layout.get("pp", 1) * layout.get("sp", 1)
            for batch in _batches(rows, cluster.devices // ranks, layout.get("pp", 1)):
                for checkpointing in (False, True):
                    changes = {"use_grad_checkpoint": checkpointing, "plugin": plugin, **_alone(), **layout, **batch}
                    yield dataclasses.replace(settings, **changes)


def _alone() -> dict[str, Any]:
    return {"tp": 1, "pp": 1, "sp": 1, "enable_sequence_parallelism": False, "zero_cpu_offload": False}


def _layouts(plugin: str, model: Model, settings: TrainConfig, cluster: Cluster) -> Iterator[dict[str, Any]]:
    if plugin != "3d":
        if plugin != "gemini_auto":  # places by observed memory: nothing that could be planned
            yield {}
        return
    for tp in _divisors(cluster.devices, min(cluster.devices_per_node, model.shape.heads)):
        for pp in _divisors(cluster.devices // tp, model.shape.layers):
            for zero in (0, 1, 2):
                yield {"tp": tp, "pp": pp, "zero": zero}
                if tp > 1:
                    yield {"tp": tp, "pp": pp, "zero": zero, "enable_sequence_parallelism": True} | {
                        "sp_mode": "split_gather"
                    }
        for sp in _divisors(cluster.devices // tp, model.shape.heads):
            if sp > 1:
                yield {"tp": tp, "sp": sp, "zero": 1, "enable_sequence_parallelism": True, "sp_mode": "all_to_all"}


def _batches(rows: int, data_ranks: int, pp: int) -> Iterator[dict[str, Any]]:
    """The ways of a rank to go through its share of ``rows``; none where it cannot be divided."""
    if rows % data_ranks:
        return
    mine = rows // data_ranks
    for size in PASSES:
        if mine % size:
            continue
        if pp > 1:
            yield {"micro_batch_size": mine, "accumulation_steps": 1, "microbatch_size": size}
        else:
            yield {"micro_batch_size": size, "accumulation_steps": mine // size, "microbatch_size": 1}


def _divisors(number: int, most: int) -> list[int]:
    return [size for size in range(1, min(number, most) + 1) if number % size == 0]
