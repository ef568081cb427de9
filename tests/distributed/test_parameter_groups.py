"""Parameter groups arrive with every plugin and survive a checkpoint: learning rates, weight decays, frozen rows."""

import pytest
import torch

from colossal_llama.model.frozen_rows import freeze_first_rows
from colossal_llama.optim import ADAM_BETAS
from tests.distributed.cases import CASES, Case
from tests.distributed.test_plugins import flags, load_weights
from tests.helpers.launching import read_grad_norms, read_losses, run_training, train
from tests.helpers.reference import train_reference

LR, EMBEDDING_LR, DECAY = 1e-3, 1e-2, 20.0
"""A decay of two per cent a step, and embeddings ten times as fast: both far above bf16's rounding."""
GROUPS = ("--embedding_lr", str(EMBEDDING_LR), "--decay_norms_and_biases", "false", "--weight_decay", str(DECAY))
OLD_ROWS = 300

# Accumulation, host memory and the way chunks are placed have nothing to do with groups; ring is split_gather's twin.
SKIPPED = (
    "zero2-accumulate", "ddp-accumulate", "3d-pp2-accumulate", "zero2_cpu", "gemini_auto", "3d-zero2", "3d-sp-ring",
)  # fmt: skip
LAYOUTS = [case for case in CASES if case.name not in SKIPPED]
# Stages that lack a group's parameters, under ZeRO, which computes a norm for each group.
LAYOUTS.append(Case("3d-pp2-zero1", ("--plugin", "3d", "--zero", "1", "--pp", "2", "--batch_size", "4"), fp32=False))


def is_embedding(name):
    return "embed_tokens" in name or "lm_head" in name


def adamw_with_groups(model):
    named = list(model.named_parameters())
    embeddings = [param for name, param in named if is_embedding(name)]
    norms = [param for name, param in named if "norm" in name]
    matrices = [param for name, param in named if not is_embedding(name) and "norm" not in name]
    groups = [
        {"params": matrices},
        {"params": norms, "weight_decay": 0.0},
        {"params": embeddings, "lr": EMBEDDING_LR},
    ]
    return torch.optim.AdamW(groups, lr=LR, weight_decay=DECAY, betas=ADAM_BETAS)


@pytest.fixture(scope="session")
def reference_with_groups(tiny_model, rows_1_step):
    return train_reference(tiny_model, rows_1_step, 4, LR, make_optimizer=adamw_with_groups)


@pytest.mark.parametrize("case", LAYOUTS, ids=lambda case: case.name)
def test_groups_arrive_and_resume(case, tmp_path, tiny_model, rows_1_step, reference_with_groups):
    precision = "fp32" if case.fp32 else "bf16"
    more = ("--num_epochs", "2", "--save_interval", "1", "--mixed_precision", precision, *GROUPS, *case.flags)
    arguments = flags(tiny_model, rows_1_step, *more)
    save_dir = train(tmp_path / "whole", arguments, environment=case.environment)
    checkpoint = save_dir / "epoch-0_step-1"
    assert read_grad_norms(tmp_path / "whole")[0] == pytest.approx(reference_with_groups.grad_norms[0], rel=0.02)
    before, after = load_weights(tiny_model), load_weights(checkpoint / "modeling")
    for name, expected in reference_with_groups.weights.items():
        update = (expected - before[name]).abs().max()
        # bf16 keeps 8 bits: half a unit in the last place of a weight, and signs of small gradients.
        rounding = 0.0 if case.fp32 else 2.0**-8 * expected.abs()
        close = (after[name].float() - expected).abs() <= 0.02 * update + rounding
        assert close.float().mean() > (0.998 if case.fp32 else 0.95), f"{name}: {(~close).sum()} of {close.numel()}"
    resume = ["--load_checkpoint", str(checkpoint)]
    resumed = train(tmp_path / "resumed", [*arguments, *resume], environment=case.environment)
    assert read_losses(tmp_path / "resumed") == read_losses(tmp_path / "whole")[1:]
    expected, found = load_weights(save_dir / "modeling"), load_weights(resumed / "modeling")
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


@pytest.mark.parametrize(
    ("name", "tied"),
    [
        ("ddp", False),
        ("zero2", False),
        ("gemini", False),
        ("gemini", True),
        ("3d-zero1", True),
        ("3d-tp2", False),
        ("3d-tp2", True),
        ("3d-pp2", True),
        ("3d-sp-split_gather", False),
        ("3d-sp-all_to_all", False),
    ],
)
def test_old_rows_stay_to_the_bit(name, tied, tmp_path, tiny_model, tiny_tied_model, rows_1_step):
    (case,) = [case for case in CASES if case.name == name]
    model = tiny_tied_model if tied else tiny_model

    def adamw_with_hooks(model):
        params = [param for name, param in model.named_parameters() if is_embedding(name)]
        freeze_first_rows(params, OLD_ROWS)
        return torch.optim.AdamW(params, lr=LR, betas=ADAM_BETAS, weight_decay=0.0)

    precision = "fp32" if case.fp32 else "bf16"
    more = ("--num_epochs", "2", "--mixed_precision", precision, *case.flags, "--freeze_non_embeds_params")
    arguments = flags(model, rows_1_step, *more, "--freeze_old_embedding_rows", str(OLD_ROWS), "--weight_decay", "20")
    save_dir = train(tmp_path, arguments, environment=case.environment)
    expected = train_reference(
        model, rows_1_step, 4, LR, trainable=("embed_tokens", "lm_head"), epochs=2, make_optimizer=adamw_with_hooks
    )
    tolerance = 1e-4 if case.fp32 else 0.03
    assert read_losses(tmp_path) == pytest.approx(expected.losses, rel=tolerance)
    assert read_grad_norms(tmp_path) == pytest.approx(expected.grad_norms, rel=tolerance)
    before, after = load_weights(model), load_weights(save_dir / "modeling")
    for key in filter(is_embedding, before):
        start = before[key].to(after[key].dtype)
        assert torch.equal(after[key][:OLD_ROWS], start[:OLD_ROWS]), key
        assert (after[key][OLD_ROWS:] != start[OLD_ROWS:]).any(), key


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--freeze_old_embedding_rows", "512"), "--freeze_old_embedding_rows 512: the model has only 512 rows"),
        (
            ("--freeze_old_embedding_rows", "300", "--lora_rank", "4"),
            "--freeze_old_embedding_rows: no embedding is trained; add --lora_modules_to_save",
        ),
    ],
)
def test_rows_that_cannot_be_kept_apart_are_refused(more, message, tmp_path, tiny_model, rows_1_step):
    arguments = flags(tiny_model, rows_1_step, "--plugin", "ddp", "--mixed_precision", "fp32", *more)
    failed = run_training([*arguments, "--save_dir", str(tmp_path / "new")], processes=1)
    assert failed.returncode != 0
    assert message in failed.stderr
