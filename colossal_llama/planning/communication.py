"""How much a rank sends in one optimizer step, by what the plugins do.

Ring algorithms are assumed, as NCCL's tests count them: with n ranks an all-reduce sends 2 (n - 1) / n of its tensor, a
reduce-scatter or all-gather (n - 1) / n of the whole, an all-to-all (n - 1) / n of what a rank holds. Data parallelism
and ZeRO: Rajbhandari et al. 2019 (arXiv:1910.02054, section 7); tensor and sequence parallelism: Korthikanti et al.
2022 (arXiv:2205.05198, section 4.2.2); pipelines: Narayanan et al. 2021 (arXiv:2104.04473).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from colossal_llama.config.train import TrainConfig
from colossal_llama.planning.memory import Workload, parameters_of_stage
from colossal_llama.planning.shapes import ModelShape
from colossal_llama.plugins import PluginOptions
from colossal_llama.plugins.base import FP32_BYTES, PRECISION_BYTES


@dataclass(frozen=True)
class Traffic:
    """Bytes that the fullest rank sends in one optimizer step.

    Attributes:
        data: gradients and weights, between ranks that see different rows.
        tensor: activations, between tensor parallel ranks.
        sequence: activations, between ranks of ``all_to_all`` sequence parallelism.
        pipeline: activations and their gradients, to the neighbouring stages.
    """

    data: float = 0.0
    tensor: float = 0.0
    sequence: float = 0.0
    pipeline: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return self.data + self.tensor + self.sequence + self.pipeline


def estimate_traffic(
    shape: ModelShape, settings: TrainConfig, options: PluginOptions, workload: Workload, processes: int
) -> Traffic:
    """The traffic of the rank that sends most: of a pipeline's first or last stage.

    Args:
        shape: of the model.
        settings: the training's flags.
        options, workload: of the same, see :func:`.workload.workload_of`.
        processes: ranks of the run.
    """
    passes = options.rows_per_step // settings.microbatch_size if settings.pp > 1 else settings.accumulation_steps
    width = workload.element_bytes
    # What a layer hands on: rows * length * hidden, of one forward pass.
    stream = workload.rows * workload.length * shape.hidden_size * width
    layers = math.ceil(shape.layers / settings.pp)
    return Traffic(
        data=_data_bytes(shape, settings, workload, processes, passes),
        tensor=passes * _tensor_bytes(shape, settings, workload, stream, layers),
        sequence=passes * _sequence_bytes(shape, settings, workload, layers),
        pipeline=_neighbours(settings) * passes * stream / settings.sp,
    )


def _neighbours(settings: TrainConfig) -> int:
    """Stages that a stage sends to: activations to the next, gradients to the one before."""
    return min(settings.pp - 1, 2)


def _share(ranks: int) -> float:
    return (ranks - 1) / ranks


def _data_bytes(shape: ModelShape, settings: TrainConfig, workload: Workload, processes: int, passes: int) -> float:
    ranks = processes // (settings.tp * settings.pp)
    share = _share(ranks)
    stages = [(True, settings.pp == 1)] if settings.pp == 1 else [(True, False), (False, True)]
    trained = max(parameters_of_stage(shape, workload, first, last)[1] for first, last in stages)
    width = PRECISION_BYTES[settings.mixed_precision]
    if settings.plugin == "ddp":
        return 2 * share * FP32_BYTES * trained  # accumulated, then reduced once
    if settings.plugin in ("gemini", "gemini_auto"):
        return passes * 3 * share * width * trained  # gathered twice, reduced once
    # A pipeline reduces when all of its micro-batches are through, the others after each pass.
    reductions = 1 if settings.pp > 1 else passes
    stage = settings.zero if settings.plugin == "3d" else 2
    if stage == 0:
        return reductions * 2 * share * width * trained
    reduce = 2 if stage == 1 else 1
    return (reductions * reduce + 1) * share * width * trained


def _tensor_bytes(shape: ModelShape, settings: TrainConfig, workload: Workload, stream: float, layers: int) -> float:
    """Of one pass: two all-reduces a layer forward, five backward, and two more forward where it is recomputed.

    Backward, the gradient of each column-parallel projection's input is reduced apart: of query, key, value, gate, up.
    """
    if settings.tp == 1:
        return 0.0
    all_reduces = 7 + (2 if settings.use_grad_checkpoint else 0)
    embeddings = 2 if settings.pp == 1 else 1  # of the input embedding's output, and of the output embedding's input
    return (layers * all_reduces + embeddings) * 2 * _share(settings.tp) * stream / settings.sp


def _sequence_bytes(shape: ModelShape, settings: TrainConfig, workload: Workload, layers: int) -> float:
    """Of one pass: queries, keys, values and the attention's output change hands, forward and backward."""
    split = workload.own_sequence_split
    if split == 1:
        return 0.0
    heads = 2 * shape.heads + 2 * shape.kv_heads
    held = workload.rows * workload.length / split * heads * shape.head_size / settings.tp * workload.element_bytes
    return layers * (3 if settings.use_grad_checkpoint else 2) * _share(split) * held
