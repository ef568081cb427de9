"""Plugin ``3d``: tensor, pipeline, sequence and data parallelism, with ZeRO 0, 1 or 2 over the latter."""

from __future__ import annotations

from typing import Any

from colossal_llama.constants import FLAT, SPLIT, WHOLE
from colossal_llama.errors import UserError
from colossal_llama.plugins.base import (
    FP32_BYTES,
    MASTER_BYTES,
    PLUGINS,
    PRECISION_BYTES,
    ParallelLayout,
    Placement,
    PluginOptions,
    PluginSpec,
    refuse_lora,
)

INITIAL_LOSS_SCALE = 2**16


def _shares_tp_ranks(options: PluginOptions) -> bool:
    return options.sp_mode in ("split_gather", "ring")


def _make(options: PluginOptions) -> Any:
    from colossalai.booster.plugin import HybridParallelPlugin

    return HybridParallelPlugin(
        tp_size=options.tp,
        pp_size=options.pp,
        sp_size=options.sp,
        enable_sequence_parallelism=options.sp_mode is not None,
        sequence_parallelism_mode=options.sp_mode,
        zero_stage=options.zero_stage,
        cpu_offload=options.cpu_offload,
        precision=options.precision,
        initial_scale=INITIAL_LOSS_SCALE,
        max_norm=options.max_norm,
        enable_flash_attention=options.flash_attention,
        microbatch_size=options.microbatch_size,
        # No padding of the vocabulary: padded rows cannot be saved (see distributed.upstream_fixes).
        make_vocab_size_divisible_by=1,
        # Frozen parameters get no gradient, which is no error.
        find_unused_parameters=False,
    )


def _check(options: PluginOptions, world_size: int) -> None:
    if options.sp_mode is None and options.sp > 1:
        raise UserError(f"--sp {options.sp} needs --enable_sequence_parallelism")
    if _shares_tp_ranks(options) and options.tp == 1:
        raise UserError(
            f"--sp_mode {options.sp_mode} splits sequences over the tensor parallel ranks: set --tp above 1"
        )
    if _shares_tp_ranks(options) and options.sp > 1:
        raise UserError(f"--sp_mode {options.sp_mode} uses the --tp {options.tp} ranks: leave --sp at 1")
    if options.sp_mode == "all_to_all" and options.sp == 1:
        raise UserError("--sp_mode all_to_all needs --sp above 1")
    if options.tp > 1 or options.pp > 1 or options.sp_mode is not None:
        refuse_lora("--tp, --pp or sequence parallelism", options)
    model_ranks = options.tp * options.pp * options.sp
    if world_size % model_ranks:
        raise UserError(
            f"tp * pp * sp = {options.tp} * {options.pp} * {options.sp} = {model_ranks} does not divide the "
            f"{world_size} processes of this run; start a multiple of {model_ranks} or change --tp, --pp or --sp"
        )
    if options.precision == "fp32" and options.zero_stage > 0:
        raise UserError(
            f"--mixed_precision fp32 does not work with --zero {options.zero_stage} in --plugin 3d: Colossal-AI "
            "supports only fp16 and bf16 with ZeRO; add --zero 0 or use bf16"
        )
    if options.pp > 1:
        _check_pipeline(options)


def _check_pipeline(options: PluginOptions) -> None:
    if options.zero_stage == 2:
        raise UserError("--zero 2 does not work with --pp: Colossal-AI allows ZeRO 0 or 1 in a pipeline")
    if options.rows_per_step % options.microbatch_size:
        raise UserError(
            f"--micro_batch_size * --accumulation_steps = {options.rows_per_step} rows per step are not a multiple of "
            f"--microbatch_size {options.microbatch_size}"
        )
    micro_batches = options.rows_per_step // options.microbatch_size
    if micro_batches < options.pp:
        raise UserError(
            f"--pp {options.pp} needs at least {options.pp} micro-batches per step, but --micro_batch_size * "
            f"--accumulation_steps / --microbatch_size = {micro_batches}; raise --micro_batch_size"
        )


def _layout(plugin: Any, options: PluginOptions) -> ParallelLayout:
    import torch.distributed as dist

    splits_logits = options.sp_mode == "all_to_all"
    return ParallelLayout(
        data_rank=dist.get_rank(plugin.dp_group),
        data_size=dist.get_world_size(plugin.dp_group),
        token_group=plugin.mixed_dp_group,
        sp_rank=dist.get_rank(plugin.sp_group) if splits_logits else 0,
        sp_size=options.sp if splits_logits else 1,
        tp_group=plugin.tp_group if options.tp > 1 else None,
        pp_group=plugin.pp_group if options.pp > 1 else None,
        is_last_stage=plugin.stage_manager is None or plugin.stage_manager.is_last_stage(),
    )


def _placement(options: PluginOptions, world_size: int) -> Placement:
    # ZeRO shards over data parallel and sequence parallel ranks together.
    replicas = world_size // (options.tp * options.pp)
    data_ranks = replicas // options.sp
    width = PRECISION_BYTES[options.precision]
    # The plugin wraps the model in DDP too (hybrid_parallel_plugin.py:1311), whose buckets stay.
    in_ddp = options.pp == 1 and (options.zero_stage == 0 or data_ranks == 1)
    # The update makes an fp32 copy of the gradients, which without ZeRO takes their place.
    update = 0 if options.precision == "fp32" else FP32_BYTES - (0 if options.zero_stage > 0 else width)
    return Placement(
        weight_bytes=width,
        gradient_bytes=width,
        master_bytes=MASTER_BYTES if options.precision != "fp32" else 0,
        gradients_over=replicas if options.zero_stage == 2 else 1,
        optimizer_over=replicas if options.zero_stage > 0 else 1,
        bucket_bytes=width if in_ddp else 0,
        update_bytes=update,
        optimizer_on_host=options.cpu_offload and options.zero_stage > 0,
    )


def _weight_form(options: PluginOptions) -> str:
    # ZeRO flattens also what it leaves on one rank.
    if options.zero_stage > 0:
        return FLAT
    return SPLIT if options.tp > 1 else WHOLE


PLUGINS.add(
    "3d",
    PluginSpec(
        summary="tensor, pipeline, sequence and data parallel, with ZeRO 0, 1 or 2",
        make=_make,
        check=_check,
        layout=_layout,
        shards_attention=True,
        placement=_placement,
        rewrites_model=True,
        weight_form=_weight_form,
    ),
)
