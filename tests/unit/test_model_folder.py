"""Folders in which transformers would open something else than the model's own weights, and weights that do not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from colossal_llama.checkpoint.export import finish_export
from colossal_llama.checkpoint.manager import ResumePoint
from colossal_llama.commands import init_model, merge_lora
from colossal_llama.commands.train import Inputs, check_inputs
from colossal_llama.config.train import TrainConfig
from colossal_llama.errors import UserError
from colossal_llama.evaluation.store import model_fingerprint
from colossal_llama.generation import load_for_generation
from colossal_llama.model.base_fingerprint import weights_fingerprint
from colossal_llama.model.pretrained import inspect_model, load_causal_lm
from colossal_llama.tokenizer.loading import load_tokenizer
from tests.helpers.tiny import save_tiny_model

WEIGHTS = "model.safetensors"
NO_MODEL = shutil.ignore_patterns("*model*", "config*", "generation*")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "model", layers=1)


@pytest.fixture(scope="module")
def tied_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tied") / "model", layers=1, tied=True)


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "folder"))


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def add_adapter(folder: Path, base: str = "/elsewhere/base") -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base, "peft_type": "LORA"}))
    save_file({"x": torch.zeros(1)}, folder / "adapter_model.safetensors")


def pickle(folder: Path, name: str = "pytorch_model.bin", **changes: torch.Tensor | None) -> None:
    weights = load_file(folder / WEIGHTS) | changes
    torch.save({key: one for key, one in weights.items() if one is not None}, folder / name)


def shard(folder: Path, keep_single: bool) -> None:
    single = folder / WEIGHTS
    content = single.read_bytes()
    loaded = AutoModelForCausalLM.from_pretrained(str(folder))
    single.unlink()
    loaded.save_pretrained(str(folder), max_shard_size="100KB")
    assert not single.exists()
    if keep_single:
        single.write_bytes(content)


def start(folder: Path, **settings: Any) -> Inputs:
    config = TrainConfig(pretrained=str(folder), dataset=["unread"], **settings)
    return check_inputs(config, ResumePoint(None, folder))


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "adapters beside the weights": (add_adapter, "so transformers opens /elsewhere/base with the adapters"),
    "adapters beside an index": (
        lambda folder: [shard(folder, False), add_adapter(folder)],
        "adapter_config.json beside model.safetensors.index.json",
    ),
    "adapters of a damaged configuration": (
        lambda folder: [add_adapter(folder), (folder / "adapter_config.json").write_text("{")],
        "adapter_config.json: not valid JSON",
    ),
    "adapters alone": (
        lambda folder: [add_adapter(folder), (folder / WEIGHTS).unlink()],
        "holds LoRA adapters, not a model; merge them into their base with merge_lora.py",
    ),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "holds neither model.safetensors nor"),
    "another configuration file": (
        lambda folder: configure(folder, configuration_files=["config.4.0.0.json"]),
        "names other configuration files",
    ),
    "code of the folder": (
        lambda folder: configure(folder, model_type="mine", auto_map={"AutoModelForCausalLM": "m.M"}),
        "no causal language model of type 'mine' of its own, and code from a model's folder is not run",
    ),
    "shards beside a whole file": (lambda folder: shard(folder, True), "delete the one that is out of date"),
    "a missing shard": (
        lambda folder: [shard(folder, False), min(folder.glob("model-*")).unlink()],
        "which is missing; copy the model again",
    ),
    "a missing shard of pickles": (
        lambda folder: [
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "b.bin"}})),
            (folder / WEIGHTS).unlink(),
        ],
        "pytorch_model.bin.index.json: names the file b.bin, which is missing",
    ),
    "pickles with other rows": (
        lambda folder: pickle(folder, **{"model.norm.weight": zeros(64)}),
        "holds model.safetensors and also pytorch_model.bin with other weights (model.norm.weight)",
    ),
    "pickles of another size": (
        lambda folder: pickle(folder, **{"lm_head.weight": zeros(500, 64)}),
        "with other weights (lm_head.weight)",
    ),
    "pickles of something else": (
        lambda folder: torch.save({"v_head": zeros(2)}, folder / "pytorch_model.bin"),
        "holds model.safetensors and also pytorch_model.bin with other weights;",
    ),
    "no output embedding": (
        lambda folder: change_weights(folder, lambda weights: weights.pop("lm_head.weight")),
        "says tie_word_embeddings false, but no lm_head.weight is stored, and transformers would draw a random one",
    ),
    "a missing weight": (
        lambda folder: change_weights(folder, lambda weights: weights.pop("model.norm.weight")),
        "weights are missing or misshapen (model.norm.weight)",
    ),
    "unknown weights": (
        lambda folder: change_weights(folder, lambda weights: weights.update({"v_head.weight": zeros(2)})),
        "holds 1 weights that the model of its config.json does not have (v_head.weight)",
    ),
    "more layers than the configuration says": (
        lambda folder: change_weights(
            folder, lambda weights: weights.update({"model.layers.1.mlp.up_proj.weight": zeros(128, 64)})
        ),
        "correct config.json (its number of layers, say)",
    ),
    "fewer rows than the configuration says": (
        lambda folder: configure(folder, vocab_size=520),
        "config.json says vocab_size 520, but model.embed_tokens.weight has 512 rows",
    ),
    "an output embedding of other rows": (
        lambda folder: change_weights(folder, lambda weights: weights.update({"lm_head.weight": zeros(500, 64)})),
        "config.json says vocab_size 512, but lm_head.weight has 500 rows",
    ),
    "coded weights": (
        lambda folder: change_weights(
            folder, lambda weights: weights.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)})
        ),
        "model.norm.weight is stored as I8; expected one of F64, F32, F16, BF16",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_transformers_would_open_wrongly_is_refused_everywhere(name: str, folder: Path, tmp_path: Path) -> None:
    damage, message = REFUSED[name]
    tokenizer = shutil.copytree(folder, tmp_path / "tokenizer", ignore=NO_MODEL)
    damage(folder)
    openers: list[Callable[[], Any]] = [
        lambda: start(folder),
        lambda: inspect_model(folder, "--pretrained"),
        lambda: load_causal_lm(folder, "--base_model_path"),
    ]
    if name != "adapters alone":  # which may be talked to
        openers.append(lambda: load_for_generation(folder, "cpu"))
    for opener in openers:
        with pytest.raises(UserError) as refusal:
            opener()
        assert message in str(refusal.value)
        assert "\n" not in str(refusal.value)
    target = tmp_path / "target"
    flags = ["--source_model_and_tokenizer_path", str(folder), "--target_tokenizer_path", str(tokenizer)]
    assert init_model.main([*flags, "--target_model_path", str(target)]) == 2
    assert not target.exists()


@pytest.mark.parametrize("base_is_wrong", [True, False])
def test_neither_adapters_nor_their_base_may_be_both(
    base_is_wrong: bool, model: Path, folder: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    add_adapter(adapter, str(model))
    if base_is_wrong:
        add_adapter(folder)
        flags = ["--adapter_path", str(adapter), "--base_model_path", str(folder)]
    else:
        add_adapter(folder, str(model))
        flags = ["--adapter_path", str(folder)]
        with pytest.raises(UserError, match=r"beside model\.safetensors"):
            model_fingerprint(folder)
        with pytest.raises(UserError, match=r"--load_checkpoint .* beside model\.safetensors"):
            check_inputs(TrainConfig(pretrained=str(model), dataset=["unread"]), ResumePoint(None, folder))
    assert merge_lora.main([*flags, "--output_path", str(tmp_path / "merged")]) == 2
    assert not (tmp_path / "merged").exists()


def test_what_does_not_matter_is_let_through(folder: Path) -> None:
    """Copies in both formats, an index without its files, constants of old versions, code that is not needed."""
    pickle(folder, **{"model.layers.0.self_attn.rotary_emb.inv_freq": zeros(8)})
    change_weights(folder, lambda one: one.update({"model.layers.0.self_attn.rotary_emb.inv_freq": zeros(8)}))
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"lm_head.weight": "model-00001-of-00009.safetensors"}})
    )
    configure(folder, auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"})
    assert start(folder).note is None
    expected = load_file(folder / WEIGHTS)["lm_head.weight"]
    assert torch.equal(load_causal_lm(folder, "--pretrained").lm_head.weight, expected)
    (folder / WEIGHTS).unlink()
    (folder / "model.safetensors.index.json").unlink()
    assert start(folder).note is None
    assert torch.equal(load_causal_lm(folder, "--pretrained").lm_head.weight, expected)


def test_pickles_of_the_old_format_are_read(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert start(folder).note is None
    (folder / WEIGHTS).unlink()
    assert start(folder).note is None
    (folder / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: is truncated or not a file of weights"):
        start(folder)


def test_a_stale_shard_is_no_part_of_the_weights(folder: Path) -> None:
    expected = weights_fingerprint(folder)
    save_file({"model.old": torch.zeros(2, 2, dtype=torch.float64)}, folder / "model-00001-of-00002.safetensors")
    assert weights_fingerprint(folder) == expected
    assert load_causal_lm(folder, "--pretrained").dtype == torch.float32


def test_quantised_models_are_not_trained(folder: Path) -> None:
    configure(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(UserError, match=r"is quantised \(quant_method gptq in config\.json\) and cannot be trained"):
        start(folder)


@pytest.mark.parametrize("scale", [0.0, 1.0], ids=["copy", "other values"])
def test_it_is_said_which_of_two_tied_embeddings_counts(
    scale: float, tied_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tied_model, tmp_path / "folder"))

    def store_twice(weights: dict[str, torch.Tensor]) -> None:
        embeddings = weights["model.embed_tokens.weight"]
        weights["lm_head.weight"] = embeddings.clone()
        weights["lm_head.weight"][-1] += scale

    change_weights(folder, store_twice)
    note = start(folder).note
    loaded = AutoModelForCausalLM.from_pretrained(str(folder))
    assert torch.equal(loaded.lm_head.weight, load_file(folder / WEIGHTS)["model.embed_tokens.weight"])
    load_for_generation(folder, "cpu")
    flags = ["--source_model_and_tokenizer_path", str(folder), "--target_tokenizer_path", str(folder)]
    assert init_model.main([*flags, "--target_model_path", str(tmp_path / "wide"), "--pad_to_multiple_of", "100"]) == 0
    printed = capsys.readouterr()
    if not scale:
        assert note is None
        assert "counts" not in printed.out + printed.err
        return
    text = "lm_head.weight is stored with other values than model.embed_tokens.weight, but config.json ties the two"
    for told in (str(note), printed.out, printed.err):
        assert f"{text}: model.embed_tokens.weight counts for both" in told
    (folder / "pytorch_model.bin").unlink(missing_ok=True)
    pickle(folder)
    (folder / WEIGHTS).unlink()
    assert "counts for both" in str(start(folder).note)


def widen(source: Path, tokenizer: Path, target: Path, *more: str) -> int:
    flags = {"--source_model_and_tokenizer_path": source, "--target_tokenizer_path": tokenizer}
    flags["--target_model_path"] = target
    return init_model.main([*(str(part) for pair in flags.items() for part in pair), *more])


def test_only_the_tokenizer_s_files_are_copied(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An adapter's configuration in the new model would make transformers open the old one."""
    tokenizer = Path(shutil.copytree(model, tmp_path / "tokenizer", ignore=NO_MODEL))
    expected = sorted(path.name for path in tokenizer.iterdir())
    add_adapter(tokenizer, str(model))
    (tokenizer / "NOTES.txt").write_text("mine")
    (tokenizer / "modeling_mine.py").write_text("")
    (tokenizer / "checkpoint-5").mkdir()
    configure(folder, auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"})
    target = tmp_path / "target"
    assert widen(folder, tokenizer, target) == 0
    found = sorted(path.name for path in target.iterdir())
    assert found == sorted([*expected, "config.json", "generation_config.json", WEIGHTS])
    assert "auto_map" not in json.loads((target / "config.json").read_text())
    left = "NOTES.txt, adapter_config.json, adapter_model.safetensors, checkpoint-5, modeling_mine.py"
    assert f"not copied, as no part of the tokenizer: {left}" in capsys.readouterr().out
    assert AutoModelForCausalLM.from_pretrained(str(target)).name_or_path == str(target)


def test_a_target_with_adapters_in_it_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = Path(shutil.copytree(model, tmp_path / "tokenizer", ignore=NO_MODEL))
    add_adapter(tokenizer, str(model))
    assert widen(model, tokenizer, tokenizer) == 2
    assert "would open the adapters' base instead of the new model" in capsys.readouterr().err
    assert not (tokenizer / WEIGHTS).exists()


def test_an_export_does_not_name_code_that_is_not_there(folder: Path) -> None:
    configure(folder, auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"})
    tokenizer = load_tokenizer(folder, "--pretrained")
    tokenizer.init_kwargs["auto_map"] = {"AutoTokenizer": ["tokenization_mine.Mine", None]}
    finish_export(folder, tokenizer, None, 512)
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((folder / name).read_text())
