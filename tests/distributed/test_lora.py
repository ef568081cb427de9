"""LoRA: adapters train, the base model stays, a run resumes to the bit, and plain transformers loads the result."""

import json

import pytest
import torch

from colossal_llama.commands.merge_lora import main as merge
from tests.distributed.test_plugins import flags, load_weights
from tests.helpers.launching import read_losses, run_training, train
from tests.helpers.tiny import save_tiny_model
from tests.helpers.train_worker import fixed_ids

LAYOUTS = {
    "ddp": ("--plugin", "ddp", "--batch_size", "2"),
    "zero2": ("--plugin", "zero2", "--batch_size", "2"),
    "3d-dp2": ("--plugin", "3d", "--zero", "0", "--batch_size", "2"),
    "3d-zero1": ("--plugin", "3d", "--zero", "1", "--batch_size", "2"),
}
EMBEDDINGS = ("--lora_modules_to_save", "embed_tokens", "lm_head")


def logits_of(model):
    with torch.no_grad():
        return model.eval()(input_ids=fixed_ids(512)).logits.float()


@pytest.mark.parametrize("name", ["ddp", "zero2", "3d-dp2"])
def test_lora_trains_resumes_and_loads(name, tmp_path, tiny_model, rows_20_steps):
    from peft import AutoPeftModelForCausalLM

    arguments = flags(
        tiny_model, rows_20_steps, "--mixed_precision", "bf16", "--lora_rank", "4", "--save_interval", "10",
        *LAYOUTS[name],
    )  # fmt: skip
    save_dir = train(tmp_path / "whole", [*arguments, "--lr", "1e-2"])
    losses = read_losses(tmp_path / "whole")
    assert losses[-1] < losses[0] - 0.1
    adapters = load_weights(save_dir / "modeling")
    assert all("lora_" in key for key in adapters)
    assert any(tensor.abs().max() > 0 for key, tensor in adapters.items() if "lora_B" in key)

    resume = ["--load_checkpoint", str(save_dir / "epoch-0_step-10")]
    resumed = train(tmp_path / "resumed", [*arguments, "--lr", "1e-2", *resume])
    assert read_losses(tmp_path / "resumed") == losses[10:]
    for key, tensor in load_weights(resumed / "modeling").items():
        assert torch.equal(tensor, adapters[key]), key

    model = AutoPeftModelForCausalLM.from_pretrained(str(save_dir / "modeling"))
    base = load_weights(tiny_model)
    loaded = dict(model.get_base_model().named_parameters())
    assert torch.equal(loaded["model.norm.weight"], base["model.norm.weight"])


@pytest.mark.parametrize(
    ("name", "tied"), [("ddp", False), ("ddp", True), ("zero2", True), ("3d-dp2", True), ("3d-zero1", False)]
)
def test_embeddings_train_beside_adapters_and_merge(
    name, tied, tmp_path, tiny_model, tiny_tied_model, rows_20_steps, capsys
):
    """Adapters on two kinds of layers, with rows of a new vocabulary beside them, from training to a plain model."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = tiny_tied_model if tied else tiny_model
    precision = "fp32" if name == "ddp" else "bf16"
    arguments = flags(
        base, rows_20_steps, "--mixed_precision", precision, "--lora_rank", "4", "--lora_alpha", "8",
        "--lora_dropout", "0.2", "--lora_target_modules", "q_proj", "down_proj", *EMBEDDINGS, "--lr", "1e-2",
        "--embedding_lr", "1e-3", "--save_interval", "10", *LAYOUTS[name],
    )  # fmt: skip
    save_dir = train(tmp_path / "whole", arguments)
    losses, saved = read_losses(tmp_path / "whole"), load_weights(save_dir / "modeling")
    assert losses[-1] < losses[0] - 0.1
    embeddings = [key for key in saved if "lora_" not in key]
    assert {key.rpartition("model.")[2] for key in embeddings} == {"embed_tokens.weight", "lm_head.weight"}
    assert {key.split(".")[-3] for key in saved if "lora_" in key} == {"q_proj", "down_proj"}
    assert torch.equal(*(saved[key] for key in embeddings)) == tied
    before = load_weights(base)["model.embed_tokens.weight"]
    assert (saved["base_model.model.model.embed_tokens.weight"] != before.to(saved[embeddings[0]].dtype)).any()

    resume = ["--load_checkpoint", str(save_dir / "epoch-0_step-10")]
    resumed = train(tmp_path / "resumed", [*arguments, *resume])
    assert read_losses(tmp_path / "resumed") == losses[10:]
    for key, tensor in load_weights(resumed / "modeling").items():
        assert torch.equal(tensor, saved[key]), key

    assert merge(["--adapter_path", str(save_dir / "modeling"), "--output_path", str(tmp_path / "merged")]) == 0
    assert "float32" in capsys.readouterr().out
    adapted = AutoPeftModelForCausalLM.from_pretrained(str(save_dir / "modeling"), torch_dtype=torch.float32)
    merged, info = AutoModelForCausalLM.from_pretrained(
        str(tmp_path / "merged"), torch_dtype="auto", output_loading_info=True
    )
    assert info["missing_keys"] == info["unexpected_keys"] == []
    assert {param.dtype for param in merged.parameters()} == {torch.float32}
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) == tied
    assert torch.allclose(logits_of(merged), logits_of(adapted), atol=1e-4)
    assert (logits_of(merged) - logits_of(AutoModelForCausalLM.from_pretrained(str(base)))).abs().max() > 0.1
    assert AutoTokenizer.from_pretrained(str(tmp_path / "merged")).eos_token == "</s>"


def test_adapters_stay_with_the_model_and_the_flags_they_were_made_with(tmp_path, tiny_model, rows_1_step):
    layout = ("--mixed_precision", "fp32", "--lora_rank", "4", *LAYOUTS["ddp"])
    adapter = train(tmp_path / "first", flags(tiny_model, rows_1_step, *layout)) / "modeling"
    goes_on = train(tmp_path / "second", flags(tiny_model, rows_1_step, *layout, "--load_checkpoint", str(adapter)))
    assert load_weights(goes_on / "modeling").keys() == load_weights(adapter).keys()
    other = save_tiny_model(tmp_path / "other", seed=1)
    for arguments, message in (
        (flags(other, rows_1_step, *layout), f"--pretrained {other}: not the weights that the adapters in"),
        (flags(tiny_model, rows_1_step, *layout, "--lora_alpha", "8"), "made with --lora_alpha 32, not 8"),
        (
            flags(tiny_model, rows_1_step, *layout, *EMBEDDINGS),
            "made with --lora_modules_to_save unset, not embed_tokens",
        ),
    ):
        failed = run_training([*arguments, "--load_checkpoint", str(adapter), "--save_dir", str(tmp_path / "new")])
        assert failed.returncode != 0
        assert message in failed.stderr


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--lora_target_modules", "q_proj", "query"), "--lora_target_modules query: the model has no such layer"),
        (("--lora_modules_to_save", "embed"), "--lora_modules_to_save embed: the model has no such layer"),
        (("--lora_modules_to_save", "embed_tokens"), "ties its input to its output embedding; name both"),
        (("--lora_target_modules", "lm_head"), "--lora_target_modules lm_head: the model ties it"),
        (("--lora_modules_to_save", "q_proj"), "--lora_modules_to_save q_proj: also in --lora_target_modules"),
    ],
)
def test_layers_that_cannot_be_adapted_are_refused(more, message, tmp_path, tiny_tied_model, rows_1_step):
    arguments = flags(tiny_tied_model, rows_1_step, "--mixed_precision", "fp32", "--lora_rank", "4", *more)
    outputs = ("--save_dir", str(tmp_path / "new"), "--config_file", str(tmp_path / "config.json"))
    failed = run_training([*arguments, "--plugin", "ddp", *outputs], processes=1)
    assert failed.returncode != 0
    assert message in failed.stderr


@pytest.mark.parametrize(
    "layout",
    [
        ("--plugin", "gemini"),
        ("--plugin", "3d", "--zero", "0", "--tp", "2"),
        ("--plugin", "3d", "--zero", "0", "--pp", "2"),
    ],
    ids=["gemini", "tp2", "pp2"],
)
def test_lora_is_refused_where_it_cannot_work(layout, tiny_model, rows_1_step):
    failed = run_training(flags(tiny_model, rows_1_step, "--mixed_precision", "bf16", "--lora_rank", "4", *layout))
    assert failed.returncode != 0
    assert "error: --lora_rank does not work with" in failed.stderr


def test_merging_refuses_what_does_not_match(tmp_path, tiny_model, rows_1_step, capsys):
    layout = ("--mixed_precision", "fp32", "--lora_rank", "4", *LAYOUTS["ddp"])
    adapter = train(tmp_path / "run", flags(tiny_model, rows_1_step, *layout)) / "modeling"
    other = save_tiny_model(tmp_path / "other", seed=1)
    narrow = save_tiny_model(tmp_path / "narrow", vocab_size=500)
    output = tmp_path / "merged"

    def refusal(**changes):
        named = {"adapter_path": adapter, "output_path": output, **changes}
        assert merge([word for name, value in named.items() for word in (f"--{name}", str(value))]) != 0
        assert not output.exists()
        return capsys.readouterr().err

    assert "not the weights that the adapters in" in refusal(base_model_path=other)
    assert "not the weights that the adapters in" in refusal(base_model_path=narrow)
    assert "no adapter_config.json here" in refusal(adapter_path=tiny_model)
    assert "--base_model_path" in refusal(base_model_path=tmp_path / "nowhere")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/nowhere"}))
    assert "name the base model with --base_model_path" in refusal()
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"r": 8}))
    assert "the adapter does not fit the model" in refusal(base_model_path=tiny_model)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    output.mkdir()
    (output / "config.json").write_text("{}")
    assert merge(["--adapter_path", str(adapter), "--output_path", str(output)]) != 0
    assert "--output_path" in capsys.readouterr().err
