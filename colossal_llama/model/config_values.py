"""Values of a model's ``config.json`` that would fail only while the model is built or runs, in a traceback.

transformers checks few of them; it keeps a text where a number should be until something computes with it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from colossal_llama.errors import UserError
from colossal_llama.json_records import json_type

SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "max_position_embeddings", "head_dim"),
)
"""What this project computes with itself."""

NEVER_NULL = (
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "attention_dropout",
    "hidden_dropout",
    "initializer_range",
    *("rope_theta", "hidden_act"),
)
"""Values for which null has no meaning; for others (``sliding_window``) it says that there is none."""

_SEVERAL_FORMS = ("_token_id", "dtype")
"""Ends of keys whose values may be of other types than the default."""


def check_sizes(config: Mapping[str, Any], path: Path) -> None:
    """Refuse sizes that are no positive integers; those that are missing or null pass.

    Raises:
        UserError: names file and key.
    """
    for key in SIZES:
        value = config.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            found = value if isinstance(value, int) else json_type(value)
            raise UserError(f"{path}: {key} must be a positive integer, found {found}; copy the model again")


def check_types(config: Mapping[str, Any], path: Path) -> None:
    """Refuse values of another type than the model's class has by default.

    Raises:
        UserError: names file and key.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        return  # refused elsewhere
    defaults = vars(CONFIG_MAPPING[model_type]())
    for key, value in config.items():
        default = defaults.get(key)
        if default is None or key.endswith(_SEVERAL_FORMS):
            continue
        if not _is_like(value, default) and (value is not None or key in NEVER_NULL):
            raise UserError(
                f"{path}: {key} must be {json_type(default)}, found {json_type(value)}; copy the model again"
            )


def _is_like(value: Any, default: Any) -> bool:
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, (int, float)):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return not isinstance(default, str) or isinstance(value, str)
