"""Plans for the terminal and for JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from colossal_llama.config.train import TrainConfig
from colossal_llama.planning.layouts import Model, Plan
from colossal_llama.planning.memory import MemoryEstimate
from colossal_llama.planning.step_time import Cluster, StepTime

GIB, MIB, GB = 2**30, 2**20, 1e9


def in_units(amount: float) -> str:
    """Bytes in GiB, or in MiB below one."""
    return f"{amount / GIB:,.2f} GiB" if amount >= GIB else f"{amount / MIB:,.2f} MiB"


def memory_parts(memory: MemoryEstimate) -> dict[str, float]:
    """What memory is for, in words, and bytes; parts that take nothing are left out."""
    parts = {
        "weights": memory.weights,
        "half-precision copies": memory.casts,
        "gradients": memory.gradients,
        "buckets": memory.buckets,
        "optimizer": memory.optimizer,
        "optimizer in host memory": memory.host_optimizer,
        "activations": memory.activations,
        "with gradient checkpointing": memory.checkpointed_activations + memory.recomputed_layer,
        "logits and loss": memory.logits,
        "update": memory.update,
    }
    return {name: amount for name, amount in parts.items() if amount}


def describe_plan(plan: Plan, model: Model, cluster: Cluster, tokens: float | None) -> str:
    """What one layout needs, and whether it fits."""
    settings, time, traffic = plan.settings, plan.time, plan.traffic
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    parts = ", ".join(f"{name} {in_units(amount)}" for name, amount in memory_parts(plan.memory).items())
    sends = {"data": traffic.data, "tensor": traffic.tensor, "sequence": traffic.sequence, "pipeline": traffic.pipeline}
    sent = ", ".join(f"{name} parallel {amount / GB:,.2f} GB" for name, amount in sends.items() if amount)
    lines = [
        f"{model.name}: {model.shape.parameters:,} parameters; {flags_of(settings)} on {cluster.devices} GPUs",
        f"   memory of the fullest rank: {parts}",
        f"   {in_units(plan.needed)} at the peak {_with(settings)} gradient checkpointing of {in_units(plan.capacity)} "
        f"that tensors may take: {verdict}",
        f"   a rank sends in a step: {sent or 'nothing'}",
        f"   a step of {time.tokens:,} tokens: {time.total:.3f} s = computing {time.compute:.3f} s, pipeline bubble "
        f"{time.bubble:.3f} s, communication {time.communication:.3f} s",
        f"   {time.tokens / time.total / cluster.devices:,.0f} tokens/s a GPU, MFU {time.mfu(cluster):.1%}",
    ]
    if tokens is not None:
        lines.append(f"   {tokens:,.0f} tokens: {_days(time, tokens)}")
    return "\n".join([*lines, assumptions(cluster)])


def _days(time: StepTime, tokens: float) -> str:
    return f"{tokens / time.tokens * time.total / 86_400:,.2f} days"


def assumptions(cluster: Cluster) -> str:
    """What the times rest on."""
    return (
        f"   assumed: {cluster.peak_tflops:g} TFLOP/s x {cluster.efficiency:g} while computing, "
        f"{cluster.node_bandwidth:g} GB/s in a machine of {cluster.devices_per_node} GPUs, "
        f"{cluster.network_bandwidth:g} GB/s between machines, no communication hidden behind computing"
    )


def describe_suggestions(
    fitting: Sequence[Plan],
    too_large: Sequence[Plan],
    model: Model,
    cluster: Cluster,
    top: int,
    tokens: float | None = None,
) -> str:
    """The fastest layouts, how long ``tokens`` take with the first of them, and the least that the others lack."""
    if not fitting:
        return f"{model.name}: no layout fits on {cluster.devices} GPUs\n{_nearest(too_large)}"
    rows = fitting[0].time.tokens // fitting[0].settings.max_length
    lines = [
        f"{model.name} on {cluster.devices} GPUs, {rows} rows of {fitting[0].settings.max_length} tokens a step: "
        f"{len(fitting)} layouts fit, {len(too_large)} do not",
        "",
        "| | flags | memory | step (s) | computing | bubble | communication | MFU | why it is here |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for place, plan in enumerate(fitting[:top], start=1):
        time = plan.time
        lines.append(
            f"| {place} | `{flags_of(plan.settings)}` | {in_units(plan.needed)} | {time.total:.3f} | "
            f"{time.compute:.3f} | {time.bubble:.3f} | {time.communication:.3f} | {time.mfu(cluster):.1%} | "
            f"{reason(plan, fitting[0])} |"
        )
    lines.append("")
    if tokens is not None:
        lines.append(f"   {tokens:,.0f} tokens with the fastest: {_days(fitting[0].time, tokens)}")
    lines.append(assumptions(cluster))
    if too_large:
        lines.append(_nearest(too_large))
    return "\n".join(lines)


def _nearest(too_large: Sequence[Plan]) -> str:
    if not too_large:
        return "   nothing can be laid out with these rows: change --micro_batch_size or --accumulation_steps"
    plan = too_large[0]
    return (
        f"   of those that do not fit, `{flags_of(plan.settings)}` needs least: {in_units(plan.needed)} of "
        f"{in_units(plan.capacity)}"
    )


def reason(plan: Plan, best: Plan) -> str:
    """What costs a layout its time, in a few words."""
    time, settings = plan.time, plan.settings
    costs = {
        "recomputing": time.compute - best.time.compute,
        "pipeline bubble": time.bubble - best.time.bubble,
        "communication": time.communication - best.time.communication,
    }
    if plan is best:
        parts = [f"{time.communication / time.total:.0%} of the step communicates"]
        if time.bubble:
            parts.append(f"{time.bubble / time.total:.0%} waits in the pipeline")
        if settings.use_grad_checkpoint:
            parts.append("recomputes to fit")
        return "fastest: " + ", ".join(parts)
    name, seconds = max(costs.items(), key=lambda item: item[1])
    return f"{name} costs {seconds:.3f} s more" if seconds > 0 else "as fast, needs more memory"


def flags_of(settings: TrainConfig) -> str:
    """The flags of train.py that make the layout."""
    flags = [f"--plugin {settings.plugin}"]
    flags += [f"--{name} {getattr(settings, name)}" for name in ("tp", "pp", "sp") if getattr(settings, name) > 1]
    if settings.enable_sequence_parallelism:
        flags.append(f"--enable_sequence_parallelism --sp_mode {settings.sp_mode}")
    if settings.plugin == "3d":
        flags.append(f"--zero {settings.zero}")
        if settings.zero_cpu_offload:
            flags.append("--zero_cpu_offload")
    flags.append(f"--micro_batch_size {settings.micro_batch_size}")
    if settings.accumulation_steps > 1:
        flags.append(f"--accumulation_steps {settings.accumulation_steps}")
    if settings.pp > 1:
        flags.append(f"--microbatch_size {settings.microbatch_size}")
    if settings.use_grad_checkpoint:
        flags.append("--use_grad_checkpoint")
    if settings.use_flash_attn:
        flags.append("--use_flash_attn")
    return " ".join(flags)


def _with(settings: TrainConfig) -> str:
    return "with" if settings.use_grad_checkpoint else "without"


def as_dict(plan: Plan, cluster: Cluster) -> dict[str, Any]:
    """One plan for JSON: bytes and seconds."""
    return {
        "flags": flags_of(plan.settings),
        "fits": plan.fits,
        "needed_bytes": plan.needed,
        "capacity_bytes": plan.capacity,
        "memory": dataclasses.asdict(plan.memory),
        "sent_bytes": dataclasses.asdict(plan.traffic),
        "step": dataclasses.asdict(plan.time) | {"seconds": plan.time.total, "mfu": plan.time.mfu(cluster)},
    }
