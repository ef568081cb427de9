"""How long a training would take, from its floating-point operations."""

from __future__ import annotations

from typing import Any


def flops_per_token(model_config: dict[str, Any], sequence_length: int, trained_embeddings_only: bool = False) -> float:
    """FLOPs that training needs for one token: forward and backward pass, recomputed activations not counted.

    ``6 N + 12 L H Q T`` of PaLM (Chowdhery et al. 2022, appendix B): N parameters that are multiplied with (all but the
    input embedding), L layers, H heads of size Q, T tokens of a row. Attention counts in full although it is causal.

    Args:
        model_config: content of a LLaMA-like ``config.json``.
        sequence_length: tokens of a row.
        trained_embeddings_only: the layers' weights are frozen and get no gradients (2 of the 6 FLOPs); the gradients
            of their activations are needed all the same.
    """
    hidden = model_config["hidden_size"]
    heads = model_config["num_attention_heads"]
    head_size = model_config.get("head_dim") or hidden // heads
    kv_heads = model_config.get("num_key_value_heads") or heads
    layers = model_config["num_hidden_layers"]
    layer = hidden * head_size * (2 * heads + 2 * kv_heads) + 3 * hidden * model_config["intermediate_size"]
    output = hidden * model_config["vocab_size"]
    weights = (4 if trained_embeddings_only else 6) * layers * layer + 6 * output
    return float(weights + 12 * layers * heads * head_size * sequence_length)


def training_seconds(flops: float, devices: int, peak_tflops: float, mfu: float) -> float:
    """Seconds that ``flops`` take: ``flops / (devices * peak * MFU)``.

    MFU is the model FLOPs utilisation of PaLM (Chowdhery et al. 2022, appendix B): the share of the peak that goes into
    :func:`flops_per_token`. What gradient checkpointing computes again is no model FLOP, so it lowers the MFU instead.

    Args:
        flops: of the whole training, all devices together.
        devices: number of them.
        peak_tflops: peak of one device in 1e12 FLOP/s for the precision that is trained in.
        mfu: between 0 and 1.
    """
    return flops / (devices * peak_tflops * 1e12 * mfu)
