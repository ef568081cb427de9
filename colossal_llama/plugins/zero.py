"""ZeRO stage 2: gradients and optimizer states are sharded over the data-parallel ranks."""

from __future__ import annotations

from functools import partial
from typing import Any

from colossal_llama.constants import FLAT
from colossal_llama.plugins.base import PLUGINS, PluginOptions, PluginSpec

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


for _name, _offload, _where in (("zero2", False, ""), ("zero2_cpu", True, ", kept in host memory")):
    PLUGINS.add(
        _name,
        PluginSpec(
            summary=f"ZeRO-2: gradients and optimizer states sharded over the ranks{_where}",
            make=partial(_make, cpu_offload=_offload),
            weight_form=lambda options: FLAT,
        ),
    )
