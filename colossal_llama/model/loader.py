"""Reading a causal LM from a local Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from colossal_llama.constants import TORCH_DTYPES
from colossal_llama.errors import UserError
from colossal_llama.model.model_folder import check_plain_folder


def load_model(folder: Path, flag: str, precision: str, attn_implementation: str) -> Any:
    """The causal LM stored in ``folder``, in training mode and without a key-value cache.

    Args:
        folder: Hugging Face model folder.
        flag: the flag that named it, for messages.
        precision: ``fp32``, ``bf16`` or ``fp16``: dtype of the parameters.
        attn_implementation: ``sdpa``, ``eager`` or ``flash_attention_2``. Architectures that transformers gives no
            SDPA (GPT-J, Bloom) take eager attention instead.

    Raises:
        UserError: the folder holds no loadable causal LM, or its architecture has no flash attention.
    """
    import torch

    from colossal_llama.model.pretrained import load_causal_lm

    dtype = getattr(torch, TORCH_DTYPES[precision])
    model = load_causal_lm(folder, flag, dtype, _supported_attention(folder, flag, attn_implementation))
    model.config.use_cache = False
    train_padding_row(model)
    model.train()
    return model


def train_padding_row(model: Any) -> None:
    """Let the row of ``pad_token_id`` learn like any other.

    Most architectures give it to ``torch.nn.Embedding`` as ``padding_idx``, whose gradient is then zero, and some
    models pad with a token that is used (the end-of-sequence token). Padding needs no such care: nothing attends to it
    and it has no targets, so its own gradient is zero.
    """
    model.get_input_embeddings().padding_idx = None


def _supported_attention(folder: Path, flag: str, wanted: str) -> str:
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_class = AutoModelForCausalLM._model_mapping[CONFIG_MAPPING[check_plain_folder(folder, flag)["model_type"]]]
    if wanted == "sdpa" and not model_class._supports_sdpa:
        return "eager"
    if wanted == "flash_attention_2" and not model_class._supports_flash_attn_2:
        raise UserError(
            f"--use_flash_attn does not work with {flag} {folder}: transformers has no flash attention for "
            f"{model_class.__name__}; leave it away"
        )
    return wanted


def check_vocabulary(
    model_config: dict[str, Any], tokenizer_size: int, folder: Path, flag: str = "--pretrained"
) -> None:
    """Refuse a tokenizer with ids beyond the model's embedding rows.

    Args:
        model_config: of ``model_folder.read_model_config``.
        tokenizer_size: number of tokens.
        folder: where they come from, for messages.
        flag: the flag that named it.

    Raises:
        UserError: says which command makes them fit.
    """
    rows = int(model_config.get("vocab_size", 0))
    if tokenizer_size > rows:
        raise UserError(
            f"{flag} {folder}: the tokenizer has {tokenizer_size} tokens but the model only {rows} embedding "
            "rows; widen the model with init_model.py first"
        )
