"""Every optimizer: two steps on two processes are those of one process, and a run resumes to the bit."""

from functools import partial

import pytest
import torch

from colossal_llama.optim import OPTIMIZERS, GroupOptions, parameter_groups
from tests.distributed.cases import CASES as LAYOUTS
from tests.distributed.test_plugins import BF16_LOSS_TOLERANCE, flags, load_weights
from tests.helpers.launching import read_grad_norms, read_losses, run_training, train
from tests.helpers.reference import train_reference

LR = 1e-3
GALORE = ("--galore_rank", "8", "--galore_update_interval", "2", "--galore_scale", "0.5")
FLAGS_OF = {case.name: case.flags for case in LAYOUTS}

CASES = {
    "hybrid_adam": [("zero2", "fp32")],
    "lion": [("zero2", "fp32"), ("3d-tp2", "fp32"), ("3d-zero1", "bf16")],
    "adamw_8bit": [("zero2", "fp32"), ("3d-tp2", "bf16")],
    "adafactor": [("ddp", "fp32"), ("3d-pp2", "bf16")],
    "came": [("3d-dp2", "fp32"), ("ddp", "bf16")],
    "galore": [("ddp", "fp32"), ("3d-dp2", "bf16")],
}
"""Optimizer: layouts, one of each form of weights that it works on, and precisions."""


def test_every_optimizer_has_a_case():
    assert set(CASES) == set(OPTIMIZERS.names())


@pytest.fixture(scope="session")
def references(tiny_model, rows_1_step):
    """Two steps of each optimizer on whole matrices, in one process, when first asked for."""
    made = {}

    def reference(name):
        if name not in made:
            spec = OPTIMIZERS.get(name)
            options = GroupOptions(lr=LR, weight_decay=0.1, matrix_options=spec.matrix_options(8, 2, 0.5))

            def make(model):
                return spec.make(parameter_groups(model, options))

            # On this machine HybridAdam needs the CPU accelerator; torch's AdamW is the same update.
            optimizer = None if name == "hybrid_adam" else make
            made[name] = train_reference(tiny_model, rows_1_step, 4, LR, epochs=2, make_optimizer=optimizer)
        return made[name]

    return reference


@pytest.mark.parametrize(
    ("name", "layout", "precision"), [(name, *case) for name, cases in CASES.items() for case in cases]
)
def test_two_steps_and_resume(name, layout, precision, tmp_path, tiny_model, rows_1_step, references):
    more = ("--num_epochs", "2", "--save_interval", "1", "--mixed_precision", precision, "--optimizer", name, *GALORE)
    arguments = flags(tiny_model, rows_1_step, *more, *FLAGS_OF[layout])
    save_dir = train(tmp_path / "whole", arguments)
    expected, losses = references(name), read_losses(tmp_path / "whole")
    exact = precision == "fp32"
    assert losses == pytest.approx(expected.losses, **({"rel": 1e-5} if exact else {"abs": BF16_LOSS_TOLERANCE}))
    assert abs(losses[1] - losses[0]) > 2 * BF16_LOSS_TOLERANCE, "the first step changed nothing"
    assert read_grad_norms(tmp_path / "whole") == pytest.approx(expected.grad_norms, rel=1e-3 if exact else 0.05)
    weights = load_weights(save_dir / "modeling")
    if exact:
        assert_same_update(load_weights(tiny_model), weights, expected.weights)
    resumed = train(tmp_path / "resumed", [*arguments, "--load_checkpoint", str(save_dir / "epoch-0_step-1")])
    assert read_losses(tmp_path / "resumed") == losses[1:]
    for key, tensor in load_weights(resumed / "modeling").items():
        assert torch.equal(tensor, weights[key]), key


def assert_same_update(before, after, expected):
    """Signs of gradients near zero are rounding noise, which Adam and Lion turn into whole steps."""
    for name, start in before.items():
        update = (expected[name] - start).abs().max()
        close = (after[name] - expected[name]).abs() <= 0.02 * update
        assert close.float().mean() > 0.995, f"{name}: {(~close).sum()} of {close.numel()} entries differ"


@pytest.mark.parametrize(("layout", "wrong_from"), [("3d-dp2", 2), ("zero2", 1)])
def test_the_came_that_colossalai_puts_in_its_place_is_wrong(layout, wrong_from, tmp_path, tiny_model, rows_1_step):
    """Why OPTIMIZERS has a class of its own, and refuses ZeRO: DistributedCAME computes other updates."""

    def make(model):
        return OPTIMIZERS.get("came").make(parameter_groups(model, GroupOptions(lr=LR, weight_decay=0.1)))

    expected = train_reference(tiny_model, rows_1_step, 4, LR, epochs=3, make_optimizer=make).losses
    more = ("--num_epochs", "3", "--mixed_precision", "fp32", "--optimizer", "came", *FLAGS_OF[layout])
    train(tmp_path, flags(tiny_model, rows_1_step, *more), environment={"UNDO": "came"})
    losses = read_losses(tmp_path)
    assert losses[:wrong_from] == pytest.approx(expected[:wrong_from], rel=1e-5)
    assert losses[wrong_from] != pytest.approx(expected[wrong_from], rel=1e-3)


def test_states_of_another_layout_are_refused(tmp_path, tiny_model, rows_1_step):
    more = ("--num_epochs", "2", "--save_interval", "1", "--mixed_precision", "fp32", *FLAGS_OF["zero2"])
    start = partial(flags, tiny_model, rows_1_step, *more)
    save_dir = train(tmp_path / "whole", start("--optimizer", "adamw_8bit"))
    checkpoint = save_dir / "epoch-0_step-1"
    outputs = ["--save_dir", str(tmp_path / "new"), "--config_file", str(tmp_path / "config.json")]
    failed = run_training([*start("--optimizer", "hybrid_adam"), "--load_checkpoint", str(checkpoint), *outputs])
    assert failed.returncode != 0
    assert "cannot resume, optimizer was adamw_8bit, now hybrid_adam" in failed.stderr
    resumed = [*start("--optimizer", "adamw_8bit"), "--load_checkpoint", str(checkpoint), *outputs]
    failed = run_training(resumed, processes=1)
    assert failed.returncode != 0
    assert "can only be resumed on the layout that wrote them" in failed.stderr
    (checkpoint / "optimizer" / "rank-00001.pt").unlink()
    failed = run_training(resumed)
    assert failed.returncode != 0
    assert "damaged, optimizer/rank-00001.pt: missing" in failed.stderr
