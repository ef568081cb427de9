"""What training does around the model works for every architecture of the zoo, not for Llama alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from colossal_llama.commands.train import check_same_model
from colossal_llama.errors import UserError
from colossal_llama.model.freeze import freeze_non_embedding_parameters
from colossal_llama.model.loader import load_model
from colossal_llama.model.neftune import NeftuneNoise
from colossal_llama.model.rope import restore_rope_precision
from colossal_llama.plugins import (
    PLUGINS,
    PluginOptions,
    check_document_mask,
    check_model,
    read_architecture,
)
from colossal_llama.plugins.documents import document_mask
from colossal_llama.plugins.models import POLICIES
from tests.helpers.model_zoo import ZOO, save_zoo_model

LENGTHS = [9, 1, 6]
PADDING_MASK_ONLY = ("Bloom", "GPT-2")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("zoo")
    return {name: save_zoo_model(root / str(number), name) for number, name in enumerate(ZOO)}


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def options(**changes: Any) -> PluginOptions:
    return PluginOptions(**{"precision": "bf16", "max_norm": 1.0, **changes})


def check(folder: Path, plugin: str, max_length: int = 32, **changes: Any) -> None:
    architecture = read_architecture(str(folder), config_of(folder))
    check_model(plugin, PLUGINS.get(plugin), options(**changes), str(folder), architecture, max_length)


@pytest.mark.parametrize("name", [name for name in ZOO if name not in PADDING_MASK_ONLY])
def test_documents_are_kept_apart(name: str, folders: dict[str, Path]) -> None:
    model = load_model(folders[name], "--pretrained", "fp32", "sdpa")
    check_document_mask("ddp", PLUGINS.get("ddp"), options(), config_of(folders[name]), max_length=32)
    ids = torch.arange(sum(LENGTHS))[None] * 7 % 512
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    mask = document_mask(positions, torch.float32)
    with torch.no_grad():
        packed = model(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False).logits[0]
        alone = [model(input_ids=part, use_cache=False).logits[0] for part in ids.split(LENGTHS, dim=1)]
        mixed = model(input_ids=ids, use_cache=False).logits[0]
    assert torch.allclose(packed, torch.cat(alone), atol=1e-5)
    assert not torch.allclose(mixed, torch.cat(alone), atol=1e-3)


def test_documents_cannot_be_kept_apart_with_a_padding_mask(folders: dict[str, Path]) -> None:
    configs = [config_of(folders[name]) for name in PADDING_MASK_ONLY]
    for config in (*configs, config_of(folders["Falcon"]) | {"alibi": True}):
        with pytest.raises(UserError, match="no mask but one of padding there; add --document_mask off"):
            check_document_mask("ddp", PLUGINS.get("ddp"), options(), config, max_length=32)


@pytest.mark.parametrize("name", ZOO)
def test_weights_that_were_cast_give_what_transformers_loads(name: str, folders: dict[str, Path]) -> None:
    """Casting the whole module, as Colossal-AI's wrappers do, rounds the rotary frequencies too."""
    ids = torch.arange(120)[None] * 7 % 512
    cast = load_model(folders[name], "--pretrained", "bf16", "sdpa").to(torch.bfloat16)
    restore_rope_precision(cast)
    loaded = load_model(folders[name], "--pretrained", "bf16", "sdpa")
    with torch.no_grad():
        assert torch.equal(cast(input_ids=ids).logits, loaded(input_ids=ids).logits)


@pytest.mark.parametrize("name", ZOO)
def test_noise_and_freezing_find_the_embeddings(name: str, folders: dict[str, Path]) -> None:
    model = load_model(folders[name], "--pretrained", "fp32", "sdpa")
    trainable, total = freeze_non_embedding_parameters(model)
    assert trainable in (512 * 64, 2 * 512 * 64) or (name == "GPT-J" and trainable == 2 * 512 * 64 + 512)
    assert trainable < total
    ids = torch.arange(16)[None] + 2
    quiet = model(input_ids=ids).logits
    NeftuneNoise(5.0, 1, seed=0, device="cpu").attach(model.get_input_embeddings())
    assert not torch.equal(model(input_ids=ids).logits, quiet)


@pytest.mark.parametrize("name", ZOO)
def test_only_measured_policies_are_let_through(name: str, folders: dict[str, Path]) -> None:
    model_type, _ = ZOO[name]
    for plugin in ("ddp", "zero2", "zero2_cpu"):
        check(folders[name], plugin)
    for plugin in ("gemini", "gemini_auto"):
        if name == "Falcon":
            with pytest.raises(UserError, match=f"--plugin {plugin} does not work with models of type falcon"):
                check(folders[name], plugin)
        else:
            check(folders[name], plugin)
    if model_type not in POLICIES:
        with pytest.raises(UserError, match=f"--plugin 3d does not work with models of type {model_type}"):
            check(folders[name], "3d")
        return
    check(folders[name], "3d")
    for works, changes, text in (
        (POLICIES[model_type].tp, {"tp": 2}, "--tp 2"),
        (POLICIES[model_type].pp, {"pp": 2}, "--pp 2"),
        ("split_gather" in POLICIES[model_type].sp, {"tp": 2, "sp_mode": "split_gather"}, "--sp_mode split_gather"),
        ("all_to_all" in POLICIES[model_type].sp, {"sp": 2, "sp_mode": "all_to_all"}, "--sp_mode all_to_all"),
        (
            POLICIES[model_type].sp_with_pp,
            {"tp": 2, "pp": 2, "sp_mode": "split_gather"},
            "(--pp 2( with)?|--sp_mode split_gather)",
        ),
    ):
        if works:
            check(folders[name], "3d", **changes)
        else:
            with pytest.raises(UserError, match=f"{text}.* does not work with models of type {model_type}"):
                check(folders[name], "3d", **changes)


@pytest.mark.parametrize("name", ["GPT-2", "GPT-J", "OPT"])
def test_rows_longer_than_the_learned_positions(name: str, folders: dict[str, Path]) -> None:
    check(folders[name], "zero2", max_length=128)
    with pytest.raises(UserError, match="--max_length 129 exceeds the 128 positions"):
        check(folders[name], "zero2", max_length=129)
    check(folders["Qwen3"], "zero2", max_length=4096)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tp": 3}, "--tp 3 does not divide the model's 4 attention heads and 2 key/value heads"),
        ({"tp": 4}, "--tp 4 does not divide the model's 4 attention heads and 2 key/value heads"),
        ({"sp": 4, "sp_mode": "all_to_all"}, "--sp 4 does not divide"),
        ({"pp": 3}, "--pp 3 exceeds the model's 2 layers"),
    ],
)
def test_sizes_that_do_not_divide(changes: dict[str, Any], message: str, folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=message):
        check(folders["Llama 3"], "3d", **changes)


@pytest.mark.parametrize("model_type", ["chatglm", "baichuan", "bert_of_mine"])
def test_code_of_a_models_folder_is_not_run(model_type: str) -> None:
    with pytest.raises(UserError, match=f"no causal language model of type '{model_type}'.*is not run"):
        read_architecture("models/base", {"model_type": model_type, "auto_map": {"AutoModelForCausalLM": "m.M"}})


def test_flash_attention_where_transformers_has_none(folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"--use_flash_attn does not work with --pretrained .*BloomForCausalLM"):
        load_model(folders["Bloom"], "--pretrained", "bf16", "flash_attention_2")


def test_weights_of_another_size_are_refused_and_defaults_are_not(tmp_path: Path, folders: dict[str, Path]) -> None:
    """Llama 1's published configuration lacks num_key_value_heads, which transformers writes when it saves."""
    for name, key in (("Llama 3", "num_hidden_layers"), ("GPT-2", "n_layer"), ("Mixtral", "num_local_experts")):
        config = config_of(folders[name])
        check_same_model(config, config, tmp_path)
        with pytest.raises(UserError, match=f"a checkpoint of another model: {key} 9 instead of {config[key]}"):
            check_same_model(config, config | {key: 9}, tmp_path)
    saved = config_of(folders["Llama 1, 2"])
    published = {key: value for key, value in saved.items() if key != "num_key_value_heads"}
    check_same_model(published, saved, tmp_path)


WITHOUT_PADDING_ROW = ("Falcon", "Bloom", "GPT-2", "GPT-J")
"""Architectures that do not give ``pad_token_id`` to their embedding."""


@pytest.mark.parametrize("pad", [1, 7], ids=["end of sequence", "text"])
@pytest.mark.parametrize("name", ZOO)
def test_a_padding_token_that_is_used_learns_like_any_other(name: str, pad: int, tmp_path: Path) -> None:
    folder = save_zoo_model(tmp_path, name, **({} if name == "Phi-3" else {"pad_token_id": pad}))
    path = folder / "config.json"
    path.write_text(json.dumps(config_of(folder) | {"pad_token_id": pad}))
    ids = torch.tensor([[pad, 3, pad, 9, 4, pad, 5, 11]])

    def embedding_gradient(model: Any) -> torch.Tensor:
        model.eval()(input_ids=ids, labels=ids).loss.backward()
        return model.get_input_embeddings().weight.grad

    plain = AutoModelForCausalLM.from_pretrained(str(folder), attn_implementation="eager")
    assert (plain.get_input_embeddings().padding_idx is None) == (name in WITHOUT_PADDING_ROW)
    plain.get_input_embeddings().padding_idx = None
    expected = embedding_gradient(plain)
    found = embedding_gradient(load_model(folder, "--pretrained", "fp32", "eager"))
    assert expected[pad].abs().max() > 0
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
