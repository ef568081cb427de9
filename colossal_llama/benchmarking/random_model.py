"""A model of given sizes with random weights, made where and in the precision it is needed."""

from __future__ import annotations

import contextlib
from typing import Any

from colossal_llama.constants import TORCH_DTYPES


def build_random_model(
    architecture: Any, precision: str, attention: str, seed: int, device: str, context: Any = None
) -> Any:
    """A causal LM in training mode without a key-value cache.

    Args:
        architecture: transformers' configuration.
        precision: ``fp32``, ``bf16`` or ``fp16``: dtype of the parameters.
        attention: ``sdpa``, ``eager`` or ``flash_attention_2``.
        seed: of the weights; the same seed gives the same weights on the same kind of device.
        device: that the weights are made on.
        context: makes the weights later, see :func:`distributed.lazy.lazy_initialisation`; then ``device`` is not used.
    """
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    dtype = getattr(torch, TORCH_DTYPES[precision])
    with context or _made_on(device):
        model = AutoModelForCausalLM.from_config(architecture, torch_dtype=dtype, attn_implementation=attention)
    model.config.use_cache = False
    model.train()
    return model


def _made_on(device: str) -> Any:
    import torch

    return contextlib.nullcontext() if device == "cpu" else torch.device(device)
