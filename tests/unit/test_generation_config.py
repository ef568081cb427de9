"""Settings of a model folder that transformers reads but refuses to write."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, GenerationConfig

from colossal_llama.errors import UserError
from colossal_llama.model.pretrained import describe_repairs, load_causal_lm
from tests.helpers.tiny import save_tiny_model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "base")


def with_settings(base: Path, folder: Path, generation: Any, **model: Any) -> Path:
    """A copy of a model with other generation settings (None: no file) and more settings in ``config.json``."""
    shutil.copytree(base, folder)
    (folder / "generation_config.json").unlink()
    if generation is not None:
        text = generation if isinstance(generation, str) else json.dumps(generation)
        (folder / "generation_config.json").write_text(text, encoding="utf-8")
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text(encoding="utf-8")) | model), encoding="utf-8")
    return folder


# What is written, what it becomes, and the names of the settings that are said to be changed.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "sampling": (
        {"temperature": 0.6, "top_p": 0.9},
        {"do_sample": True, "temperature": 0.6, "top_p": 0.9},
        ["do_sample"],
    ),
    "top_k": ({"top_k": 20}, {"do_sample": True, "top_k": 20}, ["do_sample"]),
    "no sampling": ({"do_sample": False, "temperature": 0.6, "top_p": 0.9}, {}, ["temperature", "top_p"]),
    "zero": ({"temperature": 0.0}, {}, ["temperature"]),
    "impossible": ({"top_p": 1.5, "temperature": 0.5}, {}, ["temperature", "top_p"]),
    "text": ({"temperature": "0.6"}, {}, ["temperature"]),
    "sequences": ({"num_return_sequences": 2}, {}, ["num_return_sequences"]),
    "beams": ({"early_stopping": True, "length_penalty": 2.0}, {}, ["early_stopping", "length_penalty"]),
    "no beams": ({"num_beams": None}, {}, ["num_beams"]),
    "type": ({"max_new_tokens": "many"}, {}, ["max_new_tokens"]),
    "argument": ({"logits_processor": [1]}, {}, ["logits_processor"]),
    "cache": ({"cache_implementation": "unknown"}, {}, ["cache_implementation"]),
    "nested": ({"watermarking_config": {"unknown": 1}}, {}, ["watermarking_config"]),
    "pad": ({"pad_token_id": -1, "eos_token_id": [1, 2]}, {"eos_token_id": [1, 2]}, ["pad_token_id"]),
    "all in order": (
        {"do_sample": True, "temperature": 0.6, "own": "x"},
        {"do_sample": True, "temperature": 0.6, "own": "x"},
        [],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_contradictions_are_repaired_and_said(name: str, tmp_path: Path, base: Path) -> None:
    settings, expected, changed = CASES[name]
    folder = with_settings(base, tmp_path / "model", settings)
    model = load_causal_lm(folder, "--pretrained")
    model.save_pretrained(str(tmp_path / "saved"))
    written = json.loads((tmp_path / "saved" / "generation_config.json").read_text(encoding="utf-8"))
    del written["transformers_version"]
    assert written == expected
    repairs = describe_repairs(folder, "--pretrained")
    assert [repair.split(": ", 1)[1].split()[0] for repair in repairs] == changed
    assert all(repair.startswith(f"{folder / 'generation_config.json'}: ") for repair in repairs)


def test_transformers_refuses_what_is_repaired() -> None:
    """Where this fails, transformers has become less strict, and the repair of that case can go."""
    for name, (settings, _, changed) in CASES.items():
        if not changed or name == "no beams":  # the first validation sets it to 1
            continue
        config = GenerationConfig()
        for key, value in settings.items():
            setattr(config, key, value)
        with pytest.raises((ValueError, TypeError)):
            config.save_pretrained("/nonexistent/folder")


def test_settings_of_the_model_move(tmp_path: Path, base: Path) -> None:
    folder = with_settings(base, tmp_path / "model", None, temperature=0.5, num_beams=3)
    model = load_causal_lm(folder, "--pretrained")
    assert (model.generation_config.temperature, model.generation_config.num_beams) == (0.5, 3)
    assert model.generation_config.do_sample is True
    assert not model.config._get_non_default_generation_parameters()
    said = " ".join(describe_repairs(folder, "--pretrained"))
    assert "temperature 0.5 moved to generation_config.json" in said
    assert "num_beams 3 moved to generation_config.json" in said


def test_generation_settings_of_the_model_give_way_to_the_file(tmp_path: Path, base: Path) -> None:
    folder = with_settings(base, tmp_path / "model", {"do_sample": True, "temperature": 0.7}, temperature=0.5)
    model = load_causal_lm(folder, "--pretrained")
    assert model.generation_config.temperature == 0.7
    model.save_pretrained(str(tmp_path / "saved"))
    assert AutoModelForCausalLM.from_pretrained(str(tmp_path / "saved")).generation_config.temperature == 0.7
    assert "temperature 0.5 left out" in " ".join(describe_repairs(folder, "--pretrained"))


@pytest.mark.parametrize("pad", [-1, 512, "a", [1]])
def test_a_pad_id_without_a_row_is_left_out(pad: Any, tmp_path: Path, base: Path) -> None:
    folder = with_settings(base, tmp_path / "model", None, pad_token_id=pad)
    model = load_causal_lm(folder, "--pretrained")
    assert model.config.pad_token_id is None
    assert model.get_input_embeddings().padding_idx is None
    model.save_pretrained(str(tmp_path / "saved"))
    assert any(f"pad_token_id {pad!r} left out" in repair for repair in describe_repairs(folder, "--pretrained"))


@pytest.mark.parametrize("content", ["", "{", "[1]", "null"])
def test_a_damaged_file_is_named(content: str, tmp_path: Path, base: Path) -> None:
    folder = with_settings(base, tmp_path / "model", content)
    with pytest.raises(UserError, match=r"generation_config\.json: "):
        load_causal_lm(folder, "--pretrained")
