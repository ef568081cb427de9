"""What a plugin is to the trainer: a :class:`PluginSpec` in :data:`PLUGINS`, the one place to add one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from colossal_llama.constants import WHOLE
from colossal_llama.errors import UserError
from colossal_llama.registry import Registry

if TYPE_CHECKING:
    from colossal_llama.config.train import TrainConfig


@dataclass(frozen=True)
class PluginOptions:
    """Plain values that plugins are built from.

    Attributes:
        precision: ``fp32``, ``bf16`` or ``fp16``.
        max_norm: gradient norm to clip to; 0 for none.
        tp, pp, sp: sizes of the parallel dimensions.
        sp_mode: kind of sequence parallelism, or None.
        zero_stage: ZeRO stage inside ``3d``.
        cpu_offload: keep optimizer states in host memory (``3d``).
        rows_per_step: rows that one data-parallel rank consumes per optimizer step.
        microbatch_size: rows of one pipeline micro-batch.
        accumulation_steps: forward passes per optimizer step.
        flash_attention: use flash attention kernels.
        lora: adapters are trained instead of the weights.
        on_host: no GPU; gloo and host memory.
    """

    precision: str
    max_norm: float
    tp: int = 1
    pp: int = 1
    sp: int = 1
    sp_mode: str | None = None
    zero_stage: int = 0
    cpu_offload: bool = False
    rows_per_step: int = 1
    microbatch_size: int = 1
    accumulation_steps: int = 1
    flash_attention: bool = False
    lora: bool = False
    on_host: bool = True


@dataclass(frozen=True)
class ParallelLayout:
    """Which ranks share data and which share a token's loss.

    Attributes:
        data_rank, data_size: this rank's place among the groups of ranks that see different rows.
        token_group: process group over which target tokens are spread and gradients averaged: data parallel
            times sequence parallel ranks. None stands for all ranks.
        sp_rank, sp_size: this rank's slice of a sequence where the logits come out split (``all_to_all``).
        tp_group: group over which the vocabulary is split, or None.
        pp_group: pipeline group, or None.
        is_last_stage: whether this rank computes the loss.
        vocab_size: rows of the model's embeddings. Logits of this width are whole although there is a ``tp_group``:
            some of Colossal-AI's policies gather them (Mixtral's).
    """

    data_rank: int
    data_size: int
    token_group: Any = None
    sp_rank: int = 0
    sp_size: int = 1
    tp_group: Any = None
    pp_group: Any = None
    is_last_stage: bool = True
    vocab_size: int = 0


@dataclass(frozen=True)
class Placement:
    """What a plugin keeps in memory, for estimates before anything runs.

    Attributes:
        weight_bytes, gradient_bytes: for each parameter.
        master_bytes: for each trained parameter, of the fp32 weights that the optimizer holds; its states come on top.
        weights_over, gradients_over, optimizer_over: ranks that share one copy of them; frozen weights are whole on
            every rank.
        bucket_bytes: for each trained parameter, of buffers that gradients are reduced in and that stay.
        update_bytes: for each trained parameter of the optimizer's share, of what the update makes besides.
        cast_bytes: for each parameter, of half-precision copies that autocast makes.
        residual_bytes: for each element of the residual stream, if wider than the precision (autocast adds in fp32).
        optimizer_on_host: optimizer states are in host memory.
    """

    weight_bytes: int
    gradient_bytes: int
    master_bytes: int = 0
    weights_over: int = 1
    gradients_over: int = 1
    optimizer_over: int = 1
    bucket_bytes: int = 0
    update_bytes: int = 0
    cast_bytes: int = 0
    residual_bytes: int = 0
    optimizer_on_host: bool = False


PRECISION_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
"""Bytes of an element of weights, gradients and activations."""

FP32_BYTES = 4

MASTER_BYTES = FP32_BYTES
"""Bytes of an fp32 master weight."""


def whole_placement(options: PluginOptions, world_size: int) -> Placement:
    """The placement of plain data parallelism: everything whole on every rank, fp32 weights under autocast."""
    autocast = options.precision != "fp32"
    return Placement(
        weight_bytes=4,
        gradient_bytes=4,
        bucket_bytes=4,
        cast_bytes=2 if autocast else 0,
        residual_bytes=4,
    )


def world_layout(plugin: Any, options: PluginOptions) -> ParallelLayout:
    """The layout of plain data parallelism: every rank has its own rows."""
    import torch.distributed as dist

    return ParallelLayout(data_rank=dist.get_rank(), data_size=dist.get_world_size())


def first_replica(layout: ParallelLayout) -> int:
    """The first of the ranks with the same weights as this one, where nothing is sharded over data-parallel ranks.

    They are the ranks over which gradients are averaged.
    """
    import torch.distributed as dist

    return dist.get_global_rank(layout.token_group, 0) if layout.token_group is not None else 0


def shows_whole_weights(options: PluginOptions) -> str:
    """The form of weights of a plugin whose optimizer sees whole matrices."""
    return WHOLE


def accept_any(options: PluginOptions, world_size: int) -> None:
    """The check of a plugin that runs with every precision and any number of processes."""


@dataclass(frozen=True)
class PluginSpec:
    """One way of distributing a model, and how it differs from the others.

    Attributes:
        summary: one line for the documentation.
        make: builds the Colossal-AI plugin from :class:`PluginOptions`.
        check: refuses options it cannot run with, given the world size; raises UserError.
        layout: reads the :class:`ParallelLayout` off the built plugin.
        keeps_fp32_weights: the model itself stays in fp32 and the forward pass runs under autocast.
        clips_gradients: the plugin clips; otherwise the step does.
        can_skip_sync: supports ``no_sync``, so that accumulation communicates once.
        shards_attention: Colossal-AI replaces the attention and brings its own flash attention.
        placement: what it keeps in memory, given the world size.
        evaluates_untrained: the model can be evaluated before its first training step.
        rewrites_model: Colossal-AI changes the model by a policy for its architecture.
        cannot_train: architectures (``model_type``) that fail in the plugin, in every layout.
        weight_form: what the optimizer sees of a weight matrix: :data:`constants.WHOLE` and its like.
    """

    summary: str
    make: Callable[[PluginOptions], Any]
    check: Callable[[PluginOptions, int], None] = accept_any
    layout: Callable[[Any, PluginOptions], ParallelLayout] = world_layout
    keeps_fp32_weights: bool = False
    clips_gradients: bool = True
    can_skip_sync: bool = False
    shards_attention: bool = False
    placement: Callable[[PluginOptions, int], Placement] = whole_placement
    evaluates_untrained: bool = True
    rewrites_model: bool = False
    cannot_train: frozenset[str] = frozenset()
    weight_form: Callable[[PluginOptions], str] = shows_whole_weights


PLUGINS: Registry[PluginSpec] = Registry("plugin")


def build_options(config: TrainConfig, on_host: bool, flash_attention: bool) -> PluginOptions:
    """The plugin's part of a training configuration."""
    return PluginOptions(
        precision=config.mixed_precision,
        max_norm=config.gradient_clipping,
        tp=config.tp,
        pp=config.pp,
        sp=config.sp,
        sp_mode=config.sp_mode if config.enable_sequence_parallelism else None,
        zero_stage=config.zero,
        cpu_offload=config.zero_cpu_offload,
        rows_per_step=config.micro_batch_size * config.accumulation_steps,
        microbatch_size=config.microbatch_size,
        accumulation_steps=config.accumulation_steps,
        flash_attention=flash_attention,
        lora=config.lora_rank > 0,
        on_host=on_host,
    )


def build_booster(plugin: Any, spec: PluginSpec, options: PluginOptions) -> Any:
    """The Booster of a plugin; fp16 with weights kept in fp32 needs torch's AMP for its loss scale."""
    from colossalai.booster import Booster

    amp = "fp16" if spec.keeps_fp32_weights and options.precision == "fp16" else None
    return Booster(plugin=plugin, mixed_precision=amp)


def refuse_lora(where: str, options: PluginOptions) -> None:
    """Refuse LoRA where Colossal-AI cannot wrap the adapters."""
    if options.lora:
        raise UserError(
            f"--lora_rank does not work with {where}: Colossal-AI 0.5.0 cannot train adapters there; use zero2, "
            "zero2_cpu, ddp, or 3d with data parallelism only"
        )


def refuse_fp32(plugin: str, options: PluginOptions) -> None:
    """Refuse fp32 for a plugin of Colossal-AI that asserts fp16 or bf16."""
    if options.precision == "fp32":
        raise UserError(
            f"--mixed_precision fp32 does not work with --plugin {plugin}: Colossal-AI supports only fp16 and bf16 "
            "there; use bf16, or zero2, ddp or 3d with --zero 0 for fp32"
        )
