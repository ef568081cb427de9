"""Plain data parallelism: every rank holds the whole model in fp32 and runs it under autocast."""

from __future__ import annotations

from typing import Any

from colossal_llama.plugins.base import PLUGINS, PluginOptions, PluginSpec


def _make(options: PluginOptions) -> Any:
    from colossalai.booster.plugin import TorchDDPPlugin

    return TorchDDPPlugin()


PLUGINS.add(
    "ddp",
    PluginSpec(
        summary="data parallel; the whole model on every rank, fp32 weights",
        make=_make,
        keeps_fp32_weights=True,
        clips_gradients=False,
        can_skip_sync=True,
    ),
)
