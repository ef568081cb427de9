"""Reading a causal LM from a local Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from colossal_llama.constants import ADAPTER_CONFIG_FILE, CONFIG_FILE, TORCH_DTYPES
from colossal_llama.errors import UserError
from colossal_llama.json_files import check_json_objects, read_json_object
from colossal_llama.model.config_values import check_sizes


def read_model_config(folder: Path, flag: str) -> dict[str, Any]:
    """The content of a model folder's ``config.json``.

    Raises:
        UserError: the folder or the file is missing, or it is not the configuration of a model.
    """
    if not folder.is_dir():
        raise UserError(f"{flag} {folder}: no such folder")
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{flag} {folder}: no {CONFIG_FILE} in it; expected a Hugging Face model folder")
    content = read_json_object(path)
    check_json_objects(folder, ("generation_config.json",))
    if not isinstance(content.get("model_type"), str):
        raise UserError(f"{path}: has no model_type; expected the config.json of a Hugging Face model")
    check_sizes(content, path)
    return content


def load_model(folder: Path, flag: str, precision: str, attn_implementation: str) -> Any:
    """The causal LM stored in ``folder``, in training mode and without a key-value cache.

    A folder of LoRA adapters gives the base model that they name, with the adapters merged into it.

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

    if (folder / ADAPTER_CONFIG_FILE).is_file():
        return _load_with_adapter(folder, flag, precision, attn_implementation)
    dtype = getattr(torch, TORCH_DTYPES[precision])
    model = load_causal_lm(folder, flag, dtype, _supported_attention(folder, flag, attn_implementation))
    model.config.use_cache = False
    model.train()
    return model


def _supported_attention(folder: Path, flag: str, wanted: str) -> str:
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = read_model_config(folder, flag)["model_type"]
    # Its get() does not know what it has not loaded yet.
    config_class = CONFIG_MAPPING[model_type] if model_type in CONFIG_MAPPING else None  # noqa: SIM401
    model_class = AutoModelForCausalLM._model_mapping.get(config_class, None)
    if wanted == "sdpa" and model_class is not None and not model_class._supports_sdpa:
        return "eager"
    if wanted == "flash_attention_2" and model_class is not None and not model_class._supports_flash_attn_2:
        raise UserError(
            f"--use_flash_attn does not work with {flag} {folder}: transformers has no flash attention for "
            f"{model_class.__name__}; leave it away"
        )
    return wanted


def _load_with_adapter(folder: Path, flag: str, precision: str, attn_implementation: str) -> Any:
    from colossal_llama.model.lora import merge_adapter

    base = read_json_object(folder / ADAPTER_CONFIG_FILE).get("base_model_name_or_path") or ""
    if not Path(str(base)).is_dir():
        raise UserError(
            f"{flag} {folder}: its {ADAPTER_CONFIG_FILE} names the base model {base!r}, which is no folder here"
        )
    model = load_model(Path(base), flag, precision, attn_implementation)
    return merge_adapter(model, folder, flag)


def check_vocabulary(
    model_config: dict[str, Any], tokenizer_size: int, folder: Path, flag: str = "--pretrained"
) -> None:
    """Refuse a tokenizer with ids beyond the model's embedding rows.

    Args:
        model_config: of :func:`read_model_config`.
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
