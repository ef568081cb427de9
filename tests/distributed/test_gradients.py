"""Every layout computes the gradients of the same loss: the mean over all target tokens of the global batch.

The gradients themselves are compared, one parameter after the other and before clipping, with those of plain PyTorch
in float64 on one document at a time. The hook WRITE_GRADIENTS brings them out of every plugin as whole tensors.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from colossal_llama.constants import IGNORE_INDEX
from colossal_llama.data.sampler import BucketSampler
from tests.distributed.cases import CASES, SHARD, SP
from tests.distributed.packed import save_attentive_model, write_rows
from tests.distributed.test_plugins import flags, load_weights
from tests.helpers.launching import read_metrics, train
from tests.helpers.reference import reference_gradients
from tests.helpers.tiny import VOCAB_SIZE

Document = tuple[np.ndarray, np.ndarray]

FP32_TOLERANCE = 2e-5
BF16_TOLERANCE = 0.04
"""Norm of a gradient's error over the gradient's norm, for every parameter of the model. bf16 rounds weights,
activations and gradients to 8 bits of mantissa; the mean of means is wrong by more than ten times as much."""

FP32 = [case for case in CASES if case.fp32]
BF16 = [case for case in CASES if not case.fp32]
UNCLIPPED = ("--gradient_clipping", "0")


@dataclass(frozen=True)
class Data:
    """A part, and how the loss counts in the step that is looked at.

    Attributes:
        part: folder of the rows.
        step: number of that step.
        more: flags that belong to these rows.
        targets: target tokens of each step.
        gradients: the reference's.
    """

    part: Path
    step: int
    more: tuple[str, ...]
    targets: list[int]
    gradients: dict[str, torch.Tensor]


def document(rng: np.random.Generator, length: int, learned: range) -> Document:
    """Random tokens with loss on the positions ``learned`` alone; a document's first token is never learned."""
    ids = (rng.beta(0.5, 3.0, length) * (VOCAB_SIZE - 2)).astype(np.int32) + 2
    labels = np.full(length, IGNORE_INDEX, dtype=np.int32)
    labels[learned] = ids[learned]
    labels[0] = IGNORE_INDEX
    return ids, labels


def save_in_order(folder: Path, rows: list[list[Document]]) -> Path:
    """A part whose rows are consumed in the order given, although training shuffles them."""
    stored: list[list[Document]] = [[]] * len(rows)
    for place, number in enumerate(BucketSampler([len(rows)], seed=42).epoch_order(0)):
        stored[number] = rows[place]
    part = folder / "part-00000"
    write_rows(part, stored)
    return part


def count(documents: list[Document]) -> int:
    return sum(int((labels != IGNORE_INDEX).sum()) for _, labels in documents)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_attentive_model(tmp_path_factory.mktemp("gradients") / "model")


@pytest.fixture(scope="module")
def uneven(model, tmp_path_factory):
    """Rows of several documents with 16, 15, no and one target: the second rank's two rows have a single target, and
    so has the second micro-batch of an accumulation. Most targets are in the second half of their row."""
    rng = np.random.default_rng(1)
    rows = [
        [document(rng, 20, range(14, 20)), document(rng, 1, range(1)), document(rng, 11, range(11))],
        [document(rng, 6, range(0)), document(rng, 24, range(9, 24))],
        [document(rng, 17, range(0)), document(rng, 15, range(0))],
        [document(rng, 9, range(0)), document(rng, 8, range(6, 7)), document(rng, 3, range(0))],
    ]
    part = save_in_order(tmp_path_factory.mktemp("uneven"), rows)
    documents = [one for row in rows for one in row]
    assert [count(row) for row in rows] == [16, 15, 0, 1]
    more = ("--document_mask", "on")
    return Data(part, 1, more, [32], reference_gradients(model, documents))


@pytest.fixture(scope="module")
def last_step(model, tmp_path_factory):
    """Five rows: the second and last step of the epoch has one, and empty rows wherever else there should be one."""
    rng = np.random.default_rng(2)
    rows = [[document(rng, length, range(length // 2, length))] for length in (32, 12, 20, 31, 19)]
    part = save_in_order(tmp_path_factory.mktemp("last_step"), rows)
    more = ("--padding_mode", "longest")
    return Data(part, 2, more, [sum(map(count, rows[:4])), count(rows[4])], reference_gradients(model, rows[4]))


def gradients_of(folder, model, data, precision, arguments, processes=2, environment=None):
    hooks = {"WRITE_GRADIENTS": str(data.step), **(environment or {})}
    common = flags(model, data.part, "--mixed_precision", precision, *UNCLIPPED, *data.more)
    save_dir = train(folder, [*common, *arguments], processes, hooks)
    assert [metrics["target_tokens"] for metrics in read_metrics(folder)] == data.targets
    return load_weights(save_dir / "modeling")


def errors(found, expected):
    """Norm of the error over the norm of the gradient, by parameter."""
    assert found.keys() == expected.keys()
    return {name: ((found[name].double() - one).norm() / one.norm()).item() for name, one in expected.items()}


def assert_equal(found, expected, tolerance):
    wrong = {name: error for name, error in errors(found, expected).items() if not error <= tolerance}
    assert not wrong, wrong


@pytest.mark.parametrize("data", ["uneven", "last_step"])
@pytest.mark.parametrize("case", FP32, ids=lambda case: case.name)
def test_gradients_in_fp32(case, data, tmp_path, model, request):
    data = request.getfixturevalue(data)
    found = gradients_of(tmp_path, model, data, "fp32", case.flags, environment=case.environment)
    assert_equal(found, data.gradients, FP32_TOLERANCE)


@pytest.mark.parametrize("data", ["uneven", "last_step"])
@pytest.mark.parametrize("case", BF16, ids=lambda case: case.name)
def test_gradients_in_bf16(case, data, tmp_path, model, request):
    data = request.getfixturevalue(data)
    found = gradients_of(tmp_path, model, data, "bf16", case.flags, environment=case.environment)
    assert_equal(found, data.gradients, BF16_TOLERANCE)


@pytest.mark.parametrize("accumulation", [3, 4])
@pytest.mark.parametrize(
    ("plugin", "precision", "environment"),
    [
        (("--plugin", "zero2"), "fp32", {}),
        (("--plugin", "gemini"), "bf16", SHARD),
        (("--plugin", "gemini"), "bf16", {}),
        (("--plugin", "3d", "--zero", "0", "--pp", "2"), "fp32", {}),
    ],
    ids=["zero2", "gemini", "gemini-whole", "pp2"],
)
def test_more_micro_batches_than_rows(plugin, precision, environment, accumulation, tmp_path, model, uneven):
    """One row a micro-batch; the cases above have one and two micro-batches a step."""
    arguments = (*plugin, "--batch_size", "1", "--accumulation_steps", str(accumulation))
    if "--pp" in plugin and accumulation < 4:
        arguments = (*plugin, "--batch_size", "2", "--accumulation_steps", str(accumulation))
    found = gradients_of(tmp_path, model, uneven, precision, arguments, environment=environment)
    assert_equal(found, uneven.gradients, FP32_TOLERANCE if precision == "fp32" else BF16_TOLERANCE)


@pytest.mark.parametrize(
    ("layout", "precision"),
    [
        (("--zero", "0", "--tp", "2", "--batch_size", "2"), "fp32"),
        (("--zero", "0", "--pp", "2", "--batch_size", "2"), "fp32"),
        (("--zero", "0", "--tp", "2", "--pp", "2", "--batch_size", "4"), "fp32"),
        (("--zero", "0", "--sp", "2", *SP, "all_to_all", "--batch_size", "2"), "fp32"),
        (("--zero", "1", "--pp", "2", "--batch_size", "1", "--accumulation_steps", "2"), "bf16"),
        (("--zero", "2", "--tp", "2", *SP, "split_gather", "--batch_size", "1", "--accumulation_steps", "2"), "bf16"),
    ],
    ids=["tp2-dp2", "pp2-dp2", "tp2-pp2", "sp2-dp2", "pp2-zero1", "split_gather-zero2"],
)
def test_layouts_of_four_processes(layout, precision, tmp_path, model, uneven):
    found = gradients_of(tmp_path, model, uneven, precision, ("--plugin", "3d", *layout), processes=4)
    assert_equal(found, uneven.gradients, FP32_TOLERANCE if precision == "fp32" else BF16_TOLERANCE)


@pytest.mark.parametrize(
    "name",
    ["ddp", "zero2-accumulate", "gemini", "3d-pp2", "3d-sp-all_to_all"],
)
def test_the_mean_of_means_is_found_out(name, tmp_path, model, uneven):
    (case,) = [case for case in CASES if case.name == name]
    environment = {"UNDO": "weighting", **case.environment}
    precision = "fp32" if case.fp32 else "bf16"
    found = gradients_of(tmp_path, model, uneven, precision, case.flags, environment=environment)
    assert min(errors(found, uneven.gradients).values()) > 10 * BF16_TOLERANCE


SPLIT_SEQUENCES = ("--plugin", "3d", "--zero", "0", "--tp", "2", *SP)


@pytest.mark.parametrize("mode", ["split_gather", "ring"])
def test_split_sequences_are_accumulated_right_only_with_the_remedy(mode, tmp_path, model, uneven):
    """Colossal-AI sums the gradients of norms over the ranks after each micro-batch, with what is summed already."""
    arguments = (*SPLIT_SEQUENCES, mode, "--batch_size", "1", "--accumulation_steps", "4")
    found = gradients_of(tmp_path / "with", model, uneven, "fp32", arguments)
    assert_equal(found, uneven.gradients, FP32_TOLERANCE)
    undone = {"UNDO": "_fix_accumulation_of_split_sequences"}
    found = gradients_of(tmp_path / "without", model, uneven, "fp32", arguments, environment=undone)
    wrong = {name for name, error in errors(found, uneven.gradients).items() if error > 0.5}
    assert wrong
    assert all("norm" in name for name in wrong)


@pytest.mark.parametrize("name", ["zero2-accumulate", "3d-tp2"])
def test_a_padding_token_that_is_used_gets_its_gradient(name, tmp_path, model, uneven):
    """Token 2 is the most frequent of the rows; as padding_idx its input row would get no gradient."""
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token_id": 2}))
    (case,) = [case for case in CASES if case.name == name]
    found = gradients_of(tmp_path, folder, uneven, "fp32", case.flags, environment=case.environment)
    assert uneven.gradients["model.embed_tokens.weight"][2].abs().max() > 0
    assert_equal(found, uneven.gradients, FP32_TOLERANCE)
