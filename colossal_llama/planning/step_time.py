"""How long an optimizer step takes, from stated speeds of computing and sending."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from colossal_llama.config.train import TrainConfig
from colossal_llama.metrics.flops import flops_per_token
from colossal_llama.planning.communication import Traffic


@dataclass(frozen=True)
class Cluster:
    """The machines.

    Attributes:
        devices, devices_per_node: GPUs of all machines and of one.
        peak_tflops: of one GPU in the precision that is trained in.
        efficiency: share of it that computing reaches while nothing is waited for.
        node_bandwidth, network_bandwidth: GB/s that a GPU sends inside a machine and between machines.
    """

    devices: int
    devices_per_node: int
    peak_tflops: float
    efficiency: float
    node_bandwidth: float
    network_bandwidth: float


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step; nothing is hidden behind anything else, so a real step may be shorter.

    Attributes:
        compute: forward and backward pass, with what gradient checkpointing computes again.
        bubble: waiting in a pipeline that fills and drains.
        communication: sending.
        model_flops: of the step, recomputing not counted.
        tokens: of the step.
    """

    compute: float
    bubble: float
    communication: float
    model_flops: float
    tokens: int

    @property
    def total(self) -> float:
        """Of the step."""
        return self.compute + self.bubble + self.communication

    def mfu(self, cluster: Cluster) -> float:
        """Model FLOPs utilisation that follows."""
        return self.model_flops / self.total / cluster.devices / cluster.peak_tflops / 1e12


def estimate_step_time(model: dict[str, Any], settings: TrainConfig, traffic: Traffic, cluster: Cluster) -> StepTime:
    """The time of one optimizer step.

    Args:
        model: content of ``config.json``.
        settings: the training's flags.
        traffic: of the step.
        cluster: that it runs on.
    """
    data_ranks = cluster.devices // (settings.tp * settings.pp * settings.sp)
    rows = data_ranks * settings.micro_batch_size * settings.accumulation_steps
    tokens = rows * settings.max_length
    flops = tokens * flops_per_token(model, settings.max_length, settings.freeze_non_embeds_params)
    # Of six parts, the forward pass is two; recomputed, it is done twice.
    computed = flops * (4 / 3 if settings.use_grad_checkpoint else 1)
    compute = computed / (cluster.devices * cluster.peak_tflops * 1e12 * cluster.efficiency)
    micro_batches = settings.micro_batch_size * settings.accumulation_steps // settings.microbatch_size
    # 1F1B: a stage idles for pp - 1 micro-batches of the ones that it computes (Narayanan et al. 2021, section 2.2.1).
    bubble = compute * (settings.pp - 1) / micro_batches if settings.pp > 1 else 0.0
    return StepTime(compute, bubble, _seconds(traffic, settings, cluster), flops, tokens)


def _seconds(traffic: Traffic, settings: TrainConfig, cluster: Cluster) -> float:
    """Sending, at the speed of the links that each kind of group has to cross.

    Colossal-AI's mesh numbers ranks by data, pipeline, sequence and tensor coordinate, the last fastest: tensor
    parallel ranks are neighbours, and a group spans as many devices as the dimensions inside it take.
    """
    per_node = cluster.devices_per_node
    inside = settings.tp * settings.sp
    spans = (
        (traffic.tensor, settings.tp),
        (traffic.sequence, inside),
        (traffic.pipeline, inside * settings.pp),
        (traffic.data, cluster.devices),
    )
    return sum(
        amount / (cluster.node_bandwidth if span <= per_node else cluster.network_bandwidth) / 1e9
        for amount, span in spans
    )
