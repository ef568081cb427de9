"""A checkpoint goes on with another plugin, precision, number of processes or batch: same rows, weights and states."""

import json
import os

import numpy as np
import pytest
import torch

from colossal_llama.checkpoint.masters import StoredWeights
from colossal_llama.data.sampler import BucketSampler
from tests.distributed.cases import SHARD
from tests.helpers.launching import read_losses, read_metrics, run_training, train

COMMON = ["--lr", "1e-3", "--max_length", "32", "--skip_save_each_epoch", "--mixed_precision", "bf16"]
STEPS, SAVED_AT = 6, 3

LOSS_TOLERANCE = 0.02
"""Between the losses (about 6 nats) of two layouts in bf16. That masters are kept shows in the weights themselves."""

LAYOUTS = {
    "ddp": ("--plugin", "ddp", "--batch_size", "2"),
    "zero2": ("--plugin", "zero2", "--batch_size", "2"),
    "gemini": ("--plugin", "gemini", "--batch_size", "2"),
    "3d-tp2": ("--plugin", "3d", "--zero", "0", "--tp", "2", "--batch_size", "4"),
    "3d-pp2": ("--plugin", "3d", "--zero", "0", "--pp", "2", "--batch_size", "4"),
    "3d-zero1": ("--plugin", "3d", "--zero", "1", "--batch_size", "2"),
}
ONE_PROCESS = {
    "ddp on 1": ("--plugin", "ddp", "--batch_size", "4"),
    "zero2 on 1": ("--plugin", "zero2", "--batch_size", "4"),
    "gemini on 1": ("--plugin", "gemini", "--batch_size", "4"),
    "3d on 1": ("--plugin", "3d", "--zero", "0", "--batch_size", "4"),
}


@pytest.fixture(scope="module")
def rows(rows_6_steps):
    return rows_6_steps


def arguments(model, rows, layout, *more):
    return ["--pretrained", str(model), "--dataset", str(rows), *COMMON, *layout, *more]


def assert_same_weights(expected, found):
    """Both checkpoints hold the same fp32 weights, to the bit."""
    one, other = StoredWeights(expected), StoredWeights(found)
    assert one.names
    for name in one.names:
        assert torch.equal(one.whole(name), other.whole(name)), name


def optimizer_states(checkpoint):
    states = {}
    for file in (checkpoint / "optimizer").glob("pytorch_optim*.bin"):
        content = torch.load(file, weights_only=False)
        if isinstance(content, dict):
            states |= content
    assert states
    return states


def assert_same_states(expected, found):
    """Both checkpoints hold the same optimizer states, to the bit."""
    one, other = optimizer_states(expected), optimizer_states(found)
    assert one.keys() == other.keys()
    for number, state in one.items():
        assert state.keys() == other[number].keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert int(state["step"]) == int(other[number]["step"]) == SAVED_AT
        for name in ("exp_avg", "exp_avg_sq"):
            assert state[name].abs().max() > 0
            assert torch.equal(state[name].flatten(), other[number][name].flatten()), (number, name)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny_model, rows):
    """Uninterrupted runs with a checkpoint in the middle, made when first asked for: folder by layout."""
    made = {}

    def run(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            interval = ("--save_interval", str(SAVED_AT))
            train(made[name], arguments(tiny_model, rows, LAYOUTS[name], *interval), environment=SHARD)
        return made[name]

    return run


def checkpoint_of(folder):
    return folder / "checkpoints" / f"epoch-0_step-{SAVED_AT}"


EVERY_PAIR = [(source, target) for source in LAYOUTS for target in [*LAYOUTS, *ONE_PROCESS] if source != target]
SOME_PAIRS = [
    ("ddp", "gemini"), ("gemini", "3d-tp2"), ("3d-tp2", "zero2"), ("zero2", "3d-pp2"), ("3d-pp2", "3d-zero1"),
    ("3d-zero1", "ddp"), ("zero2", "ddp on 1"), ("gemini", "3d on 1"), ("3d-tp2", "gemini on 1"),
]  # fmt: skip
MEASURED_IN = os.environ.get("RESHARDING_MATRIX")
"""A file: then every pair is run, and its loss differences are appended there (the table of docs/plugins.md)."""
PAIRS = EVERY_PAIR if MEASURED_IN else SOME_PAIRS


@pytest.mark.parametrize(("source", "target"), PAIRS, ids=lambda name: name.replace(" ", "-"))
def test_another_layout_goes_on(source, target, saved, tmp_path, tiny_model, rows):
    whole = saved(source)
    layout = (LAYOUTS | ONE_PROCESS)[target]
    train(
        tmp_path,
        arguments(tiny_model, rows, layout, "--load_checkpoint", str(checkpoint_of(whole))),
        processes=1 if target in ONE_PROCESS else 2,
        environment=SHARD | {"RESAVE": str(tmp_path / "again")},
    )
    again = tmp_path / "again" / f"epoch-0_step-{SAVED_AT}"
    assert_same_weights(checkpoint_of(whole), again)
    assert_same_states(checkpoint_of(whole), again)
    expected, found = read_metrics(whole)[SAVED_AT:], read_metrics(tmp_path)
    assert [entry["step"] for entry in found] == [entry["step"] for entry in expected]
    assert [entry["lr"] for entry in found] == [entry["lr"] for entry in expected]
    differences = [abs(one["loss"] - other["loss"]) for one, other in zip(expected, found, strict=True)]
    if MEASURED_IN:
        with open(MEASURED_IN, "a", encoding="utf-8") as file:
            file.write(json.dumps({"from": source, "to": target, "loss differences": differences}) + "\n")
    assert max(differences) <= LOSS_TOLERANCE
