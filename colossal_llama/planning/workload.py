"""From the flags of a training to what its memory and time are estimated from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from colossal_llama.config.train import TrainConfig
from colossal_llama.optim import OPTIMIZERS
from colossal_llama.planning.memory import MemoryEstimate, Workload, estimate_memory
from colossal_llama.planning.shapes import ModelShape
from colossal_llama.plugins import PLUGINS, PluginOptions, build_options
from colossal_llama.plugins.base import PRECISION_BYTES


def training_memory(settings: TrainConfig, model: dict[str, Any], source: str, processes: int) -> MemoryEstimate:
    """The memory estimate of a training's fullest rank.

    Raises:
        UserError: the model's sizes are missing or unknown.
    """
    options = build_options(settings, on_host=False, flash_attention=settings.use_flash_attn)
    placement = PLUGINS.get(settings.plugin).placement(options, processes)
    shape = ModelShape.from_config(model, source)
    return estimate_memory(shape, placement, workload_of(settings, options), settings.use_grad_checkpoint)


def workload_of(settings: TrainConfig, options: PluginOptions) -> Workload:
    """What one forward and backward pass of a training computes on a rank."""
    # split_gather and ring split over the tensor parallel ranks what those leave whole; all_to_all has its own.
    own = settings.sp if options.sp_mode == "all_to_all" else 1
    shared = settings.tp if options.sp_mode in ("split_gather", "ring") else 1
    micro_batches = options.rows_per_step // settings.microbatch_size
    trained = "embeddings" if settings.freeze_non_embeds_params else "adapters" if settings.lora_rank else "all"
    workload = Workload(
        rows=settings.micro_batch_size,
        length=settings.max_length,
        element_bytes=PRECISION_BYTES[settings.mixed_precision],
        tp=settings.tp,
        sequence_split=shared,
        own_sequence_split=own,
        # Sequence parallelism trains with eager attention, unless by a kernel; see distributed.upstream_fixes.
        stored_scores=options.sp_mode is not None and not options.flash_attention,
        accumulates=settings.accumulation_steps > 1 or (settings.pp > 1 and micro_batches > 1),
        state_bytes=OPTIMIZERS.get(settings.optimizer).state_bytes,
        trained=trained,
        lora_rank=settings.lora_rank,
    )
    if settings.pp == 1:
        return workload
    return replace(workload, rows=settings.microbatch_size, pp=settings.pp, in_flight=min(settings.pp, micro_batches))
