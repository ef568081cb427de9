"""A handful of cells of the table of models, so that it cannot rot, and what it makes train.py refuse."""

import json

import pytest
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.distributed.test_plugins import flags
from tests.helpers.launching import run_training
from tests.helpers.model_matrix import GLOBAL_BATCH, LAYOUTS, LR, STEPS, measure_cell
from tests.helpers.model_zoo import save_zoo_model
from tests.helpers.reference import train_reference
from tests.helpers.tiny import save_rows

MODELS = ("Llama 3", "Mistral", "Qwen2", "Mixtral")
CELLS = [(model, layout) for model in MODELS for layout in ("ddp", "zero2", "gemini", "tp2", "pp2")]
BROKEN = ("GPT-2", "tp2")
"""Colossal-AI's policy asks for a padding mask there and makes the causal one of it only with flash attention."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return save_rows(tmp_path_factory.mktemp("rows"), STEPS * GLOBAL_BATCH)


@pytest.fixture(scope="module")
def prepared(rows, tmp_path_factory):
    """Folder and reference of each model, made when first asked for."""
    made = {}

    def prepare(name):
        if name not in made:
            folder = save_zoo_model(tmp_path_factory.mktemp("models") / "model", name)
            made[name] = folder, train_reference(folder, rows, GLOBAL_BATCH, LR)
        return made[name]

    return prepare


@pytest.mark.parametrize(("name", "layout"), CELLS)
def test_model_trains_like_plain_pytorch(name, layout, tmp_path, prepared, rows):
    model, reference = prepared(name)
    assert measure_cell(tmp_path, model, rows, layout, reference, environment={}) == ""


def test_what_does_not_train_is_refused(tmp_path, prepared, rows):
    name, layout = BROKEN
    model, reference = prepared(name)
    refused = measure_cell(tmp_path / "refused", model, rows, layout, reference, environment={})
    assert refused.startswith("--plugin 3d does not work with models of type gpt2")
    tried = measure_cell(tmp_path / "tried", model, rows, layout, reference, environment={"UNDO": "policies"})
    assert tried
    assert tried != refused


@pytest.mark.parametrize(
    ("changes", "layout", "message"),
    [
        ({"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 16}, "tp2", "--tp 2 does not divide"),
        ({"num_key_value_heads": 1}, "all_to_all", "--sp 2 does not divide the model's 4 attention heads and 1 key"),
        ({"vocab_size": 511}, "split_gather", "--tp 2 does not divide the vocabulary of 511"),
        ({"num_hidden_layers": 1}, "pp2", "--pp 2 exceeds the model's 1 layers"),
        ({"model_type": "qwen3"}, "3d", "--plugin 3d does not work with models of type qwen3"),
        ({"model_type": "chatglm"}, "zero2", "no causal language model of type 'chatglm'"),
    ],
    ids=["heads", "key-value-heads", "vocabulary", "layers", "architecture", "remote-code"],
)
def test_layouts_are_refused_before_the_model_is_loaded(changes, layout, message, tmp_path, tiny_model, rows):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_model.iterdir():
        if "safetensors" not in file.name:
            (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | changes
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if config["model_type"] in CONFIG_MAPPING:
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(str(folder))).save_pretrained(str(folder))
    outputs = ("--save_dir", str(tmp_path / "out"), "--config_file", str(tmp_path / "config.json"))
    failed = run_training(flags(folder, rows, "--mixed_precision", "fp32", *LAYOUTS[layout], *outputs))
    assert failed.returncode != 0
    assert failed.stderr.count("error:") == 1, failed.stderr
    assert message in failed.stderr
    assert "steps of" not in failed.stdout  # said when all is checked, before the weights are read
    assert {path.name for path in tmp_path.iterdir()} == {"model"}
