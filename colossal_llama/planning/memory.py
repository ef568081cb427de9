"""How much memory a rank of a training needs.

Weights, gradients and optimizer states are counted; the ways of placing them are those of ZeRO (Rajbhandari et al.
2019, arXiv:1910.02054). Activations are counted the way of Korthikanti et al. 2022 (arXiv:2205.05198, section 4): the
tensors that the backward pass keeps, per layer, but for the operations that transformers' Llama runs (RMSNorm, rotary
embeddings, repeated key and value heads, gated MLP, no dropout). Where layers are frozen fewer are kept, so the figure
is then too high.

Not everything is there at once, so the peak is that of the fullest moment: the end of the forward pass, when all
activations are kept and the loss is computed but nothing has a gradient yet; with gradient checkpointing the first
layer that is computed again; or the update, when the gradients are whole and activations are gone (with tied embeddings
perhaps the end of the backward pass, when the two gradients of one matrix are summed). In between,
activations are freed as fast as gradients come. ``benchmarks/plan_check.py`` compares with what trainings really take.

Not counted: what the allocator wastes, communication buffers of fixed size, workspaces of kernels, masks, and CUDA's
own context.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from colossal_llama.planning.shapes import ModelShape
from colossal_llama.plugins.base import FP32_BYTES, Placement


@dataclass(frozen=True)
class Workload:
    """What a rank computes in one forward and backward pass.

    Attributes:
        rows: of one forward pass on one rank; in a pipeline, of one of its micro-batches.
        length: tokens of a row.
        element_bytes: of activations: 4 in fp32, 2 in bf16 and fp16.
        tp, pp: ranks that split matrices and layers.
        sequence_split: ranks that split what tensor parallelism leaves whole; 1 without sequence parallelism.
        own_sequence_split: ranks of ``all_to_all`` sequence parallelism, which split every activation.
        in_flight: pipeline micro-batches whose activations the first stage holds at once.
        stored_scores: attention keeps its scores (eager attention), ``length ** 2`` for each head.
        accumulates: gradients of earlier passes of the step, or of a pipeline's earlier micro-batches, are there in the
            forward pass.
        state_bytes: of the optimizer for each trained parameter; AdamW has two fp32 moments.
        trained: parameters that are trained: ``all``, ``embeddings`` or ``adapters``.
        lora_rank: of the adapters.
    """

    rows: int
    length: int
    element_bytes: int
    tp: int = 1
    pp: int = 1
    sequence_split: int = 1
    own_sequence_split: int = 1
    in_flight: int = 1
    stored_scores: bool = False
    accumulates: bool = False
    state_bytes: float = 8
    trained: str = "all"
    lora_rank: int = 0


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of the fullest rank.

    Attributes:
        weights: parameters.
        casts: their half-precision copies under autocast, until the end of the backward pass.
        gradients: of the step.
        buckets: that gradients are reduced in, where they stay from step to step.
        optimizer: moments and fp32 masters on the device.
        host_optimizer: the same where they are kept in host memory.
        activations: kept for the backward pass.
        checkpointed_activations: the same with gradient checkpointing: the inputs of all layers.
        recomputed_layer: with gradient checkpointing, what the layer under way keeps.
        logits: and what the loss keeps beside them.
        tied_gradients: what the sum of the two gradients of tied embeddings takes when the backward pass ends.
        update: what the optimizer makes of the gradients and frees again.
        accumulates: gradients of earlier passes are there in the forward pass.
    """

    weights: float
    casts: float
    gradients: float
    buckets: float
    optimizer: float
    host_optimizer: float
    activations: float
    checkpointed_activations: float
    recomputed_layer: float
    logits: float
    tied_gradients: float
    update: float
    accumulates: bool = False

    @property
    def between_steps(self) -> float:
        """Bytes that stay from step to step."""
        return self.weights + self.buckets + self.optimizer

    def total(self, checkpointing: bool) -> float:
        """Bytes at the peak, with or without gradient checkpointing."""
        earlier = self.gradients if self.accumulates else 0.0
        kept = self.checkpointed_activations if checkpointing else self.activations
        moments = [self.casts + earlier + kept + self.logits, self.gradients + max(self.tied_gradients, self.update)]
        if checkpointing:
            moments.append(self.casts + earlier + kept + self.recomputed_layer)
        return self.between_steps + max(moments)


def estimate_memory(
    shape: ModelShape, placement: Placement, workload: Workload, checkpointing: bool = False
) -> MemoryEstimate:
    """The estimate for the fullest rank: of a pipeline, the first or the last stage.

    ``checkpointing`` says with which activations the fullest rank is chosen; the estimate holds both.
    """
    estimates = [_of_stage(shape, placement, workload, first=True, last=workload.pp == 1)]
    if workload.pp > 1:
        estimates.append(_of_stage(shape, placement, workload, first=False, last=True))
    return max(estimates, key=lambda estimate: estimate.total(checkpointing))


def _of_stage(shape: ModelShape, placement: Placement, workload: Workload, first: bool, last: bool) -> MemoryEstimate:
    total, trained = parameters_of_stage(shape, workload, first, last)
    frozen = total - trained
    weights = placement.weight_bytes * (trained / placement.weights_over + frozen)
    gradients = placement.gradient_bytes * trained / placement.gradients_over
    # Rows of the input embedding are looked up, which autocast leaves in fp32.
    embedding = shape.embedding_parameters / workload.tp
    looked_up = 0.0 if shape.tied or not first else embedding
    summed = embedding if shape.tied and first and last and workload.trained != "adapters" else 0.0
    states = (placement.master_bytes + workload.state_bytes) * trained / placement.optimizer_over
    layers = math.ceil(shape.layers / workload.pp)
    tokens = workload.rows * workload.length / workload.own_sequence_split
    in_flight = workload.in_flight if first else 1
    layer = layer_activation_bytes(shape, placement, workload)
    stored_input = max(placement.residual_bytes, workload.element_bytes) * tokens * shape.hidden_size
    stored_input /= workload.sequence_split
    return MemoryEstimate(
        weights=weights,
        casts=placement.cast_bytes * (total - looked_up),
        gradients=gradients,
        buckets=placement.bucket_bytes * trained,
        optimizer=0.0 if placement.optimizer_on_host else states,
        host_optimizer=states if placement.optimizer_on_host else 0.0,
        activations=in_flight * layers * layer,
        checkpointed_activations=in_flight * layers * stored_input,
        recomputed_layer=layer,
        logits=head_bytes(shape, placement, workload) + logit_bytes(shape, workload) if last else 0.0,
        # The second gradient and the sum, beside the first.
        tied_gradients=2 * placement.weight_bytes * summed,
        update=placement.update_bytes * trained / placement.optimizer_over,
        accumulates=workload.accumulates,
    )


def parameters_of_stage(shape: ModelShape, workload: Workload, first: bool, last: bool) -> tuple[float, float]:
    """All and the trained parameters on one rank before any data-parallel sharding."""
    layers = math.ceil(shape.layers / workload.pp)
    matrices = shape.layer_matrix_parameters / workload.tp
    embedding = shape.embedding_parameters / workload.tp
    copies = first + last - (1 if shape.tied and first and last else 0)
    total = layers * (matrices + 2 * shape.hidden_size) + copies * embedding + last * shape.hidden_size
    if workload.trained == "embeddings":
        return total, copies * embedding
    if workload.trained == "adapters":
        adapters = shape.lora_parameters(workload.lora_rank) / workload.pp
        return total + adapters, adapters
    return total, total


def layer_activation_bytes(shape: ModelShape, placement: Placement, workload: Workload) -> float:
    """Bytes that one layer keeps for its backward pass.

    For each token, with element size e, residual stream of element size r and width h, queries of width q = heads *
    head size, and MLP of width i: two norms keep their fp32 input and the normalised value in r; the projections keep
    two inputs of width h; attention keeps queries, keys and values repeated to all heads, and its output twice (as the
    kernel and as the output projection see it); the MLP keeps the gate before and after SiLU, the other factor and the
    product. Tensor parallelism splits all but the norms and the projections' inputs (Korthikanti et al., equation 2),
    sequence parallelism the norms too. Of the projections' inputs it keeps more than equation 4 says: Colossal-AI
    gathers the input of query, key, value, gate and up apart, and keeps each of them whole. Attention that stores its
    scores keeps them in fp32 and in e.
    """
    size = workload.element_bytes
    residual = max(placement.residual_bytes, size)
    tokens = workload.rows * workload.length / workload.own_sequence_split
    hidden, query = shape.hidden_size, shape.heads * shape.head_size
    norms = 2 * (FP32_BYTES + residual) * hidden
    inputs = size * hidden * (2 if workload.sequence_split == 1 else 5)
    attention = 5 * size * query
    mlp = 4 * size * shape.intermediate_size
    if workload.stored_scores:
        scores = FP32_BYTES if size == FP32_BYTES else FP32_BYTES + size
        attention += scores * shape.heads * workload.length
    return tokens * (norms / workload.sequence_split + inputs + (attention + mlp) / workload.tp)


def head_bytes(shape: ModelShape, placement: Placement, workload: Workload) -> float:
    """Bytes that the last norm keeps, fp32 input and normalised value, and the output embedding, its input."""
    tokens = workload.rows * workload.length / workload.own_sequence_split / workload.sequence_split
    residual = max(placement.residual_bytes, workload.element_bytes)
    return tokens * shape.hidden_size * (FP32_BYTES + residual + workload.element_bytes)


def logit_bytes(shape: ModelShape, workload: Workload) -> float:
    """Bytes of three fp32 values for each logit, whatever the precision: the loss is computed in fp32.

    They are the log-probabilities, their gradient and that of the logits, when the backward pass begins. Before, the
    logits themselves and their fp32 copy are there, which is less.
    """
    tokens = workload.rows * workload.length / workload.own_sequence_split
    return tokens * shape.vocab_size / workload.tp * 3 * FP32_BYTES
