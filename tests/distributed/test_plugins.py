"""Every plugin trains like one process of plain PyTorch, resumes to the bit and exports what it trained."""

import pytest
import torch
from safetensors.torch import load_file

from colossal_llama.plugins import PLUGINS
from tests.distributed.cases import CASES
from tests.helpers.launching import read_grad_norms, read_losses, train
from tests.helpers.train_worker import fixed_ids

COMMON = ["--lr", "1e-3", "--max_length", "32", "--skip_save_each_epoch"]

BF16_LOSS_TOLERANCE = 0.02
"""Largest deviation of a step's loss (about 6 nats) from fp32: bf16 has 8 bits of mantissa."""


def flags(model, rows, *more):
    return ["--pretrained", str(model), "--dataset", str(rows), *COMMON, *more]


def load_weights(folder):
    weights = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= load_file(str(file))
    assert weights, f"no weights in {folder}"
    return weights


def test_every_plugin_has_a_case():
    assert {case.flags[1] for case in CASES} == set(PLUGINS.names())


@pytest.mark.parametrize("case", [case for case in CASES if case.fp32], ids=lambda case: case.name)
def test_first_update_in_fp32_equals_the_reference(case, tmp_path, tiny_model, rows_1_step, reference_1_step):
    save_dir = train(
        tmp_path,
        flags(tiny_model, rows_1_step, "--mixed_precision", "fp32", *case.flags),
        environment=case.environment,
    )
    assert read_losses(tmp_path) == pytest.approx(reference_1_step.losses, rel=1e-6)
    # Adam hides the scale of the gradients; their norm does not.
    assert read_grad_norms(tmp_path) == pytest.approx(reference_1_step.grad_norms, rel=1e-4)
    weights = load_weights(save_dir / "modeling")
    before = load_weights(tiny_model)
    for name, expected in reference_1_step.weights.items():
        update = (expected - before[name]).abs().max()
        # Adam's first step is lr * sign(gradient): where a gradient is nearly zero its sign is rounding noise.
        close = (weights[name] - expected).abs() <= 0.02 * update
        assert close.float().mean() > 0.998, f"{name}: {(~close).sum()} of {close.numel()} entries differ"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bf16_curve_resume_and_export(case, tmp_path, tiny_model, rows_20_steps, reference_20_steps):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    arguments = flags(tiny_model, rows_20_steps, "--mixed_precision", "bf16", "--save_interval", "10", *case.flags)
    logits_file = tmp_path / "logits.pt"
    dump = {"DUMP_LOGITS": str(logits_file)} if case.dumps_logits else {}
    # The background writes what the model has long gone on from.
    late = {"SLOW_WRITER": "0.3"}
    save_dir = train(whole, [*arguments, "--async_save"], environment=case.environment | dump | late)

    losses = read_losses(whole)
    assert len(losses) == 20
    assert losses == pytest.approx(reference_20_steps.losses, abs=BF16_LOSS_TOLERANCE)
    assert losses[-1] < losses[0] - 0.2
    assert read_grad_norms(whole) == pytest.approx(reference_20_steps.grad_norms, rel=0.05)

    checkpoint = save_dir / "epoch-0_step-10"
    resumed_dir = train(resumed, [*arguments, "--load_checkpoint", str(checkpoint)], environment=case.environment)
    assert read_losses(resumed) == losses[10:]
    expected, found = load_weights(save_dir / "modeling"), load_weights(resumed_dir / "modeling")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name

    assert_export_matches(save_dir / "modeling", logits_file if case.dumps_logits else None)


def assert_export_matches(folder, logits_file):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, info = AutoModelForCausalLM.from_pretrained(str(folder), torch_dtype="auto", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert AutoTokenizer.from_pretrained(str(folder)).eos_token == "</s>"
    if logits_file is None:
        return
    trained = torch.load(logits_file)
    with torch.no_grad():
        dtype = torch.bfloat16
        exported = model.to(torch.float32 if model.dtype == torch.float32 else dtype)(input_ids=fixed_ids(512)).logits
    assert (trained - exported.float()).abs().max() <= 0.02
