"""LoRA: adapters train, the base model stays, a run resumes to the bit, and plain transformers loads the result."""

import pytest
import torch

from tests.distributed.test_plugins import flags, load_weights
from tests.helpers.launching import read_losses, run_training, train

LAYOUTS = {
    "ddp": ("--plugin", "ddp", "--batch_size", "2"),
    "zero2": ("--plugin", "zero2", "--batch_size", "2"),
    "3d-dp2": ("--plugin", "3d", "--zero", "0", "--batch_size", "2"),
}


@pytest.mark.parametrize("name", LAYOUTS)
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
