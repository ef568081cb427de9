"""Tiny random models of the architectures that Colossal-AI's shardformer knows, and of some that it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.helpers.tiny import VOCAB_SIZE, save_tiny_tokenizer

_SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.05,
    "tie_word_embeddings": False,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_OLD = {"initializer_range": 0.05, "vocab_size": VOCAB_SIZE}

ZOO: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama 1, 2": ("llama", _SIZES | {"num_key_value_heads": 4}),
    "Llama 3": ("llama", _SIZES | {"rope_scaling": _LLAMA3_ROPE, "rope_theta": 500000.0}),
    "Llama, tied (SmolLM2, Llama 3.2)": ("llama", _SIZES | {"tie_word_embeddings": True}),
    "Mistral": ("mistral", _SIZES | {"sliding_window": None, "head_dim": 16}),
    "Mixtral": ("mixtral", _SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "Qwen2": ("qwen2", _SIZES),
    "Qwen3": ("qwen3", _SIZES | {"head_dim": 16}),
    "DeepSeek-V3": (
        "deepseek_v3",
        _SIZES
        | {"num_key_value_heads": 4, "moe_intermediate_size": 64, "n_routed_experts": 4, "num_experts_per_tok": 2}
        | {"n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 32, "kv_lora_rank": 32}
        | {"qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16},
    ),
    "Command-R": ("cohere", _SIZES | {"tie_word_embeddings": True, "logit_scale": 0.5}),
    "Falcon": (
        "falcon",
        _OLD
        | {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_kv_heads": 2}
        | {"new_decoder_architecture": True, "max_position_embeddings": 128},
    ),
    "Bloom": ("bloom", _OLD | {"hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "OPT": (
        "opt",
        {"init_std": 0.05, "vocab_size": VOCAB_SIZE, "hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 2}
        | {"num_attention_heads": 4, "max_position_embeddings": 128, "word_embed_proj_dim": 64, "dropout": 0.0},
    ),
    "GPT-2": (
        "gpt2",
        _OLD
        | {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
        | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    ),
    "GPT-J": ("gptj", _OLD | {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "rotary_dim": 8}),
    "Gemma 2": ("gemma2", _SIZES | {"head_dim": 16, "sliding_window": 64, "tie_word_embeddings": True}),
    "Phi-3": ("phi3", _SIZES | {"pad_token_id": 1, "sliding_window": None}),
}
"""Names of the models for the documentation: their ``model_type`` and what makes its configuration small.

Without dropout, whose random numbers differ between layouts by design."""


def save_zoo_model(folder: Path, name: str, **changes: Any) -> Path:
    """The random model ``name`` of :data:`ZOO` with the tiny tokenizer; ``changes`` go into its configuration."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, settings = ZOO[name]
    config = AutoConfig.for_model(model_type, **settings, bos_token_id=0, eos_token_id=1, **changes)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, torch_dtype=torch.float32).save_pretrained(str(folder))
    save_tiny_tokenizer(folder)
    return folder


def read_model_type(folder: Path) -> str:
    """``model_type`` of a saved model."""
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
