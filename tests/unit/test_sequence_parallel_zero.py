"""Sequence parallelism on tensor-parallel ranks is refused with ZeRO-2, where gradients of norms come out wrong."""

import pytest

from colossal_llama.errors import UserError
from colossal_llama.plugins import PLUGINS, PluginOptions


@pytest.mark.parametrize("mode", ["split_gather", "ring"])
def test_zero_2_is_refused(mode):
    options = PluginOptions(precision="bf16", max_norm=1.0, tp=2, sp_mode=mode, zero_stage=2)
    with pytest.raises(UserError, match="--zero 2"):
        PLUGINS.get("3d").check(options, 2)
