"""Merging LoRA adapters: logits stay, dtype and companions are kept, other bases are told apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from colossal_llama.commands.inference import main as infer
from colossal_llama.commands.merge_lora import main as merge
from colossal_llama.errors import UserError
from colossal_llama.generation import load_for_generation
from colossal_llama.model.base_fingerprint import check_base, weights_fingerprint, write_fingerprint
from tests.helpers.model_zoo import save_zoo_model
from tests.helpers.tiny import save_tiny_model, save_tiny_tokenizer

IDS = torch.arange(24).view(2, 12)


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def save_adapter(base: Path, folder: Path, dtype: torch.dtype, modules_to_save: list[str] | None) -> torch.Tensor:
    """Adapters with random weights, as plain peft makes them; returns the adapted model's logits in fp32."""
    model = LlamaForCausalLM.from_pretrained(str(base), torch_dtype=dtype)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], modules_to_save=modules_to_save)
    adapted = get_peft_model(model, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for param in adapted.parameters():
            if param.requires_grad:
                param.add_(0.05 * torch.randn_like(param))
    adapted.save_pretrained(str(folder))
    return logits_of(adapted.float())


@pytest.mark.parametrize("modules", [None, ["embed_tokens"]], ids=["adapters", "one of two tied embeddings"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_tied_model_with_adapters_made_elsewhere(
    dtype: torch.dtype, modules: list[str] | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_tiny_model(tmp_path / "base", vocab_size=300, tied=True)
    LlamaForCausalLM.from_pretrained(str(base)).to(dtype).save_pretrained(str(base))
    # As Llama 2 was published: settings of sampling without sampling.
    (base / "generation_config.json").write_text(json.dumps({"max_new_tokens": 7, "temperature": 0.9, "top_p": 0.6}))
    expected = save_adapter(base, tmp_path / "adapter", dtype, modules)
    flags = ["--adapter_path", str(tmp_path / "adapter"), "--output_path", str(tmp_path / "merged")]
    assert merge(flags) == 0
    merged = AutoModelForCausalLM.from_pretrained(str(tmp_path / "merged"), torch_dtype="auto")
    assert merged.dtype == dtype
    assert str(dtype).removeprefix("torch.") in capsys.readouterr().out
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) == (modules is None)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    assert (logits_of(merged.float()) - expected).abs().max() < tolerance
    assert merged.generation_config.max_new_tokens == 7
    assert len(AutoTokenizer.from_pretrained(str(tmp_path / "merged"))) == 300
    assert merge(flags) != 0
    assert merge([*flags, "--overwrite"]) == 0


def test_a_fingerprint_tells_weights_apart_but_not_copies(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", vocab_size=300, tied=True)
    found = weights_fingerprint(base)
    LlamaForCausalLM.from_pretrained(str(base)).bfloat16().save_pretrained(
        str(tmp_path / "copy"), max_shard_size="50KB"
    )
    assert len(list((tmp_path / "copy").glob("*.safetensors"))) > 1
    assert weights_fingerprint(tmp_path / "copy") == found
    others = [save_tiny_model(tmp_path / "other", 300, tied=True, seed=1), save_tiny_model(tmp_path / "wide", 301)]
    assert found not in {weights_fingerprint(other) for other in others}
    (tmp_path / "empty").mkdir()
    assert weights_fingerprint(tmp_path / "empty") is None

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    check_base(adapter, others[0], "--pretrained")  # made elsewhere: nothing to compare
    write_fingerprint(found, adapter)
    check_base(adapter, tmp_path / "copy", "--pretrained")
    with pytest.raises(UserError, match=f"--pretrained {others[0]}: not the weights that the adapters in {adapter}"):
        check_base(adapter, others[0], "--pretrained")
    (adapter / "base_model.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match=r"base_model\.json: has no fingerprint"):
        check_base(adapter, others[0], "--pretrained")


def test_peft_loads_what_is_merged(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", vocab_size=300)
    expected = save_adapter(base, tmp_path / "adapter", torch.float32, ["embed_tokens", "lm_head"])
    model = LlamaForCausalLM.from_pretrained(str(base))
    assert torch.allclose(logits_of(PeftModel.from_pretrained(model, str(tmp_path / "adapter"))), expected, atol=1e-5)
    assert merge(["--adapter_path", str(tmp_path / "adapter"), "--output_path", str(tmp_path / "merged")]) == 0
    merged = AutoModelForCausalLM.from_pretrained(str(tmp_path / "merged"))
    assert torch.allclose(logits_of(merged), expected, atol=1e-5)


def save_grown_adapter(base: Path, folder: Path, rows: int, modules: list[str] | None) -> torch.Tensor:
    """Adapters trained on a base whose embeddings were widened first, as one does it with peft alone."""
    model = LlamaForCausalLM.from_pretrained(str(base))
    model.resize_token_embeddings(rows)
    targets = ["q_proj", "embed_tokens"] if modules == ["lm_head"] else ["q_proj"]
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=targets, modules_to_save=modules))
    with torch.no_grad():
        for param in adapted.parameters():
            if param.requires_grad:
                param.add_(0.05 * torch.randn_like(param))
    adapted.save_pretrained(str(folder), save_embedding_layers=modules is None)
    return logits_of(adapted)


@pytest.mark.parametrize("modules", [["embed_tokens", "lm_head"], None], ids=["trained whole", "saved beside"])
@pytest.mark.parametrize("tied", [False, True])
def test_adapters_with_more_tokens_than_their_base(tied: bool, modules: list[str] | None, tmp_path: Path) -> None:
    base, adapter = save_tiny_model(tmp_path / "base", 300, tied=tied), tmp_path / "adapter"
    expected = save_grown_adapter(base, adapter, 310, modules)
    save_tiny_tokenizer(adapter, 310)
    assert merge(["--adapter_path", str(adapter), "--output_path", str(tmp_path / "merged")]) == 0
    merged = AutoModelForCausalLM.from_pretrained(str(tmp_path / "merged"))
    assert merged.config.vocab_size == merged.model.embed_tokens.weight.shape[0] == 310
    assert (logits_of(merged) - expected).abs().max() < 1e-5
    loaded, tokenizer = load_for_generation(adapter, "cpu")
    assert len(tokenizer) == 310
    assert (logits_of(loaded) - expected).abs().max() < 1e-5


def test_grown_embeddings_that_are_not_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, adapter = save_tiny_model(tmp_path / "base", 300), tmp_path / "adapter"
    save_grown_adapter(base, adapter, 310, ["embed_tokens"])
    assert merge(["--adapter_path", str(adapter), "--output_path", str(tmp_path / "merged")]) == 2
    assert "hold in part only (model.embed_tokens.weight with 310 rows)" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


def _other_shape(base: Path, adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(save_zoo_model(base.parent / "gpt2", "GPT-2"))
    (adapter / "adapter_config.json").write_text(json.dumps(config))


def _unknown_setting(base: Path, adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["nothing"]}))


def _other_size(base: Path, adapter: Path) -> None:
    config = LlamaForCausalLM.from_pretrained(str(base)).config
    config.intermediate_size = 96
    LlamaForCausalLM(config).save_pretrained(str(base))


def _cut(base: Path, adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:200])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_other_shape, "the base model has no layer model.layers.0"),
        (_other_size, "made for a base model of another shape (model.layers.0.mlp.up_proj: 128 instead of 96)"),
        (_unknown_setting, "the adapter does not fit the model"),
        (_cut, "adapter_model.safetensors: is truncated or not a safetensors file"),
        (
            lambda base, adapter: (adapter / "adapter_model.safetensors").unlink(),
            "holds no adapter_model.safetensors",
        ),
    ],
)
def test_adapters_that_do_not_fit(
    change: Callable[[Path, Path], None], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter = save_tiny_model(tmp_path / "base", 300), tmp_path / "adapter"
    save_adapter(base, adapter, torch.float32, None)
    change(base, adapter)
    capsys.readouterr()
    for command in (
        lambda: merge(["--adapter_path", str(adapter), "--output_path", str(tmp_path / "merged")]),
        lambda: infer(["--model_path", str(adapter), "--prompt_style", "pretrained", "--max_new_tokens", "2"]),
    ):
        assert command() == 2
        [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert message in line
    assert not (tmp_path / "merged").exists()
