"""Making a model's weights only when the plugin has split them, so that no process ever holds the whole model."""

from __future__ import annotations

from typing import Any


def lazy_initialisation(device: str) -> Any:
    """The context to build a model in: its tensors are made where and when the plugin wants them.

    For the plugins 3d and Gemini; under ZeRO 1 and 2 of their own (``zero2``) Colossal-AI 0.5.0 fails with a
    RecursionError.

    Args:
        device: that the tensors are made on in the end.
    """
    import torch
    from colossalai.lazy import LazyInitContext

    return LazyInitContext(default_device=torch.device(device))
