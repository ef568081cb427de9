"""Gemini: ZeRO-3 in chunks, placed statically or by observed memory use."""

from __future__ import annotations

from functools import partial
from typing import Any

from colossal_llama.constants import CHUNKS
from colossal_llama.plugins.base import (
    MASTER_BYTES,
    PLUGINS,
    PRECISION_BYTES,
    Placement,
    PluginOptions,
    PluginSpec,
    refuse_fp32,
    refuse_lora,
)

INITIAL_LOSS_SCALE = 2**16
CHUNK_SEARCH = {"min_chunk_size_m": 32.0, "search_range_m": 32}
"""Limits of Gemini's chunk size search in units of 2**20 elements (Colossal-AI's defaults). A model smaller than
the minimum becomes one chunk that every rank keeps whole; tests lower it to really shard a small model."""

CANNOT_TRAIN = frozenset({"falcon"})
"""Falcon multiplies with transposed weights by an operator that Gemini does not see, and misses their gradients."""


def _make(options: PluginOptions, placement_policy: str) -> Any:
    from colossalai.booster.plugin import GeminiPlugin

    return GeminiPlugin(
        precision=options.precision,
        placement_policy=placement_policy,
        initial_scale=INITIAL_LOSS_SCALE,
        max_norm=options.max_norm,
        enable_gradient_accumulation=options.accumulation_steps > 1,
        enable_flash_attention=options.flash_attention,
        # Asynchronous reduction needs pinned memory and streams, which a host does not have.
        enable_async_reduce=not options.on_host,
        **CHUNK_SEARCH,
    )


def _check(options: PluginOptions, world_size: int, name: str) -> None:
    refuse_fp32(name, options)
    refuse_lora(f"--plugin {name}", options)


def _placement(options: PluginOptions, world_size: int) -> Placement:
    # Gradients take the place of the weights in their chunk, unless they are accumulated. Frozen weights are not in
    # chunks but whole on every rank, and so is a model that is smaller than one chunk, which is not counted here.
    width = PRECISION_BYTES[options.precision]
    return Placement(
        weight_bytes=width,
        gradient_bytes=width if options.accumulation_steps > 1 else 0,
        master_bytes=MASTER_BYTES,
        weights_over=world_size,
        gradients_over=world_size,
        optimizer_over=world_size,
    )


for _name, _policy in (("gemini", "static"), ("gemini_auto", "auto")):
    PLUGINS.add(
        _name,
        PluginSpec(
            summary=f"ZeRO-3 in chunks ({_policy} placement): parameters sharded too",
            make=partial(_make, placement_policy=_policy),
            check=partial(_check, name=_name),
            placement=_placement,
            shards_attention=True,
            # Upstream observes the memory of the first step, and asserts that it comes first (gemini_ddp.py:279).
            evaluates_untrained=_policy == "static",
            cannot_train=CANNOT_TRAIN,
            weight_form=lambda options: CHUNKS,
        ),
    )
