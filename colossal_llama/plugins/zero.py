"""ZeRO stage 2: gradients and optimizer states are sharded over the data-parallel ranks."""

from __future__ import annotations

from functools import partial
from typing import Any

from colossal_llama.constants import FLAT
from colossal_llama.plugins.base import (
    FP32_BYTES,
    MASTER_BYTES,
    PLUGINS,
    PRECISION_BYTES,
    Placement,
    PluginOptions,
    PluginSpec,
)

INITIAL_LOSS_SCALE = 2**16


def _make(options: PluginOptions, cpu_offload: bool) -> Any:
    from colossalai.booster.plugin import LowLevelZeroPlugin

    return LowLevelZeroPlugin(
        stage=2,
        precision=options.precision,
        initial_scale=INITIAL_LOSS_SCALE,
        max_norm=options.max_norm,
        cpu_offload=cpu_offload,
        verbose=False,
    )


def _placement(options: PluginOptions, world_size: int, cpu_offload: bool) -> Placement:
    # Colossal-AI makes masters in fp32 training too.
    return Placement(
        weight_bytes=PRECISION_BYTES[options.precision],
        gradient_bytes=PRECISION_BYTES[options.precision],
        master_bytes=MASTER_BYTES,
        gradients_over=world_size,
        optimizer_over=world_size,
        # An fp32 copy of this rank's gradients, beside the masters.
        update_bytes=0 if options.precision == "fp32" or cpu_offload else FP32_BYTES,
        optimizer_on_host=cpu_offload,
    )


for _name, _offload, _where in (("zero2", False, ""), ("zero2_cpu", True, ", kept in host memory")):
    PLUGINS.add(
        _name,
        PluginSpec(
            summary=f"ZeRO-2: gradients and optimizer states sharded over the ranks{_where}",
            make=partial(_make, cpu_offload=_offload),
            placement=partial(_placement, cpu_offload=_offload),
            weight_form=lambda options: FLAT,
        ),
    )
