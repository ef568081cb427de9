"""The plugins that ``--plugin`` selects; importing this package fills :data:`base.PLUGINS`."""

from colossal_llama.plugins import ddp, gemini, hybrid, zero  # noqa: F401 (each registers itself)
from colossal_llama.plugins.base import (
    PLUGINS,
    ParallelLayout,
    PluginOptions,
    PluginSpec,
    build_booster,
    build_options,
    first_replica,
)
from colossal_llama.plugins.documents import check_document_mask
from colossal_llama.plugins.models import attention_for, check_model, read_architecture

__all__ = [
    "PLUGINS",
    "ParallelLayout",
    "PluginOptions",
    "PluginSpec",
    "attention_for",
    "build_booster",
    "build_options",
    "check_document_mask",
    "check_model",
    "first_replica",
    "read_architecture",
]
