"""What a training step computes, and how much of a device's peak that is (model FLOP/s utilisation, MFU)."""

from __future__ import annotations

from typing import Any

PEAK_TFLOPS: tuple[tuple[str, float, float], ...] = (
    ("B200", 2250, 75),
    ("GH200", 989, 67),
    ("H200", 989, 67),
    ("H100 PCIe", 756, 51),
    ("H100 NVL", 835, 60),
    ("H100", 989, 67),
    ("H800", 989, 67),
    ("H20", 148, 44),
    ("A100", 312, 19.5),
    ("A800", 312, 19.5),
    ("A40", 149.7, 37.4),
    ("A30", 165, 10.3),
    ("L40S", 362, 91.6),
    ("L40", 181, 90.5),
    ("RTX 4090", 165.2, 82.6),
    ("RTX 3090", 71, 35.6),
    ("V100", 125, 15.7),
    ("T4", 65, 8.1),
)
"""Words of device names, dense TFLOP/s of their tensor cores in bf16 and fp16 with fp32 accumulation, and TFLOP/s in
fp32 (NVIDIA's data sheets; their figures "with sparsity" are twice as high). The first match counts."""


_NEEDED = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
_EXPERTS = ("num_local_experts", "n_routed_experts", "num_experts")


def is_counted(model_config: dict[str, Any]) -> bool:
    """Whether :func:`flops_per_token` describes a model: LLaMA-like, and no experts of which a token uses a few."""
    return all(model_config.get(key) for key in _NEEDED) and not any(model_config.get(key) for key in _EXPERTS)


def flops_per_token(model_config: dict[str, Any], sequence_length: int, trained_embeddings_only: bool = False) -> float:
    """FLOPs that training needs for one token: forward and backward pass, recomputed activations not counted.

    ``6 N + 12 L H Q T`` of PaLM (Chowdhery et al. 2022, appendix B): N parameters that are multiplied with (all but the
    input embedding, which is looked up; the output embedding counts, tied or not), L layers, H heads of size Q, and T
    tokens that attention sees. As there, attention counts in full although it is causal, and softmax, norms,
    activations and rotary embeddings do not count. Of the six, two are the forward pass, two the gradients of the
    activations, and two those of the weights.

    Args:
        model_config: content of a LLaMA-like ``config.json``.
        sequence_length: tokens of a row.
        trained_embeddings_only: all other weights are frozen and get no gradients; the gradients of the activations
            are needed down to the input embedding all the same.
    """
    hidden = model_config["hidden_size"]
    heads = model_config["num_attention_heads"]
    head_size = model_config.get("head_dim") or hidden // heads
    kv_heads = model_config.get("num_key_value_heads") or heads
    layers = model_config["num_hidden_layers"]
    # Query and output projections, key and value projections, and the three matrices of the gated MLP.
    layer = hidden * head_size * (2 * heads + 2 * kv_heads) + 3 * hidden * model_config["intermediate_size"]
    output = hidden * model_config["vocab_size"]
    weights = (4 if trained_embeddings_only else 6) * layers * layer + 6 * output
    return float(weights + 12 * layers * heads * head_size * sequence_length)


def peak_flops(device_name: str, precision: str) -> float | None:
    """Peak dense FLOP/s of a GPU, or None where this program does not know it.

    Args:
        device_name: as the driver says it, for example ``NVIDIA H100 80GB HBM3``.
        precision: ``fp32``, ``bf16`` or ``fp16``.
    """
    spelled = f" {device_name.replace('-', ' ').lower()} "
    for name, half, single in PEAK_TFLOPS:
        if f" {name.lower()} " in spelled:
            return (single if precision == "fp32" else half) * 1e12
    return None
