"""LoRA adapters (Hu et al. 2021, arXiv:2106.09685) on all linear layers of the decoder, by peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from colossal_llama.errors import UserError

LORA_ALPHA = 32
LORA_DROPOUT = 0.1
TARGET_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def add_lora(booster: Any, model: Any, rank: int, adapter: Path | None) -> Any:
    """Wrap a model for LoRA training, before it is boosted.

    Args:
        booster: its plugin must support LoRA.
        model: a causal LM; its own weights are frozen.
        rank: rank of new adapters.
        adapter: folder of adapters to go on from, or None for new ones.

    Raises:
        UserError: the adapter does not fit the model or has another rank.
    """
    from peft import LoraConfig

    if adapter is None:
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=rank,
            lora_alpha=LORA_ALPHA,
            lora_dropout=LORA_DROPOUT,
            target_modules=TARGET_MODULES,
        )
        return booster.enable_lora(model, lora_config=config)
    try:
        wrapped = booster.enable_lora(model, pretrained_dir=str(adapter))
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"--load_checkpoint {adapter}: the adapter does not fit the model ({reason})") from error
    found = wrapped.peft_config["default"].r
    if found != rank:
        raise UserError(f"--load_checkpoint {adapter}: adapters of rank {found}, not --lora_rank {rank}")
    return wrapped


def bare_model(boosted: Any) -> Any:
    """The transformers model inside a boosted one, without the wrappers of Colossal-AI and peft."""
    model = boosted.unwrap(unwrap_peft=False)
    if hasattr(model, "lora_layers"):  # Colossal-AI's own view of a peft model
        return model.base_model
    return model.get_base_model() if hasattr(model, "get_base_model") else model
