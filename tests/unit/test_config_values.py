"""Values of config.json that would fail only while the model runs."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from colossal_llama.errors import UserError
from colossal_llama.model.config_values import check_sizes, check_types
from colossal_llama.planning.shapes import KNOWN_SHAPES

PATH = Path("model/config.json")
USUAL = {"model_type": "llama", "vocab_size": 512, "num_key_value_heads": None, "eos_token_id": [1, 2], "rope_theta": 5}


def test_what_published_models_have_passes() -> None:
    for config in (USUAL, *KNOWN_SHAPES.values()):
        check_sizes(config, PATH)
        check_types(config, PATH)
    # null says that there is no window.
    check_types({"model_type": "mistral", "sliding_window": None}, PATH)


@pytest.mark.parametrize(
    "model_type", ["llama", "mistral", "mixtral", "qwen2", "gemma2", "gpt2", "gptj", "bloom", "opt"]
)
def test_what_transformers_writes_passes(model_type: str) -> None:
    config = AutoConfig.for_model(model_type).to_dict()
    check_sizes(config, PATH)
    check_types(config, PATH)


def check(config: dict[str, Any]) -> None:
    check_sizes(config, PATH)
    check_types(config, PATH)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": "512"}, "vocab_size must be a positive integer, found a string"),
        ({"vocab_size": 0}, "vocab_size must be a positive integer, found 0"),
        ({"attention_dropout": "0.1"}, "attention_dropout must be a number, found a string"),
        ({"attention_dropout": None}, "attention_dropout must be a number, found null"),
        ({"use_cache": "yes"}, "use_cache must be a boolean, found a string"),
        ({"hidden_act": None}, "hidden_act must be a string, found null"),
    ],
)
def test_other_types_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{PATH}: {message}; copy the model again$"):
        check(USUAL | change)
