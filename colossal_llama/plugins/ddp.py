"""Plain data parallelism: every rank holds the whole model in fp32 and runs it under autocast."""

from __future__ import annotations

from typing import Any

from colossal_llama.plugins.base import PLUGINS, ParallelLayout, PluginOptions, PluginSpec, world_layout


def _make(options: PluginOptions) -> Any:
    from colossalai.booster.plugin import TorchDDPPlugin

    return TorchDDPPlugin()


def _check(options: PluginOptions, world_size: int) -> None:
    """Runs with every precision and any number of processes."""


def _layout(plugin: Any, options: PluginOptions) -> ParallelLayout:
    return world_layout()


PLUGINS.add(
    "ddp",
    PluginSpec(
        summary="data parallel; the whole model on every rank, fp32 weights",
        make=_make,
        check=_check,
        layout=_layout,
        keeps_fp32_weights=True,
        clips_gradients=False,
        can_skip_sync=True,
    ),
)
