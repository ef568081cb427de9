"""Documents that share a row train as if each had a row of its own, with every plugin, or are refused."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from colossal_llama.data.manifest import PRETRAIN, SFT, PartInfo, write_manifest
from colossal_llama.tokenizer.fingerprint import tokenizer_fingerprint
from colossal_llama.tokenizer.loading import load_tokenizer
from tests.distributed.cases import CASES, SHARD, SP
from tests.distributed.packed import Packed, save_attentive_model, save_packed, write_part
from tests.distributed.test_plugins import BF16_LOSS_TOLERANCE, flags, load_weights
from tests.distributed.test_upstream_faults import share_of_signs
from tests.helpers.corpus import make_manifest
from tests.helpers.launching import read_grad_norms, read_losses, run_training, train
from tests.helpers.reference import Reference, train_reference

ON = ("--document_mask", "on")
IN_BF16 = {case.name for case in CASES if not case.fp32} | {"ddp", "zero2", "3d-pp2", "3d-sp-all_to_all"}
"""What has no fp32, and one of each way to come by the scores' dtype."""

DDP = ("--plugin", "ddp", "--batch_size", "2", "--mixed_precision", "fp32")


@dataclass(frozen=True)
class Setup:
    """Model and rows; the reference with each document in a row of its own, and what mixing them would give."""

    model: Path
    data: Packed
    apart: Reference
    mixed: Reference


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents")
    model, data = save_attentive_model(folder / "model"), save_packed(folder)
    return Setup(
        model=model,
        data=data,
        apart=train_reference(model, data.unpacked, data.documents, 1e-3),
        mixed=train_reference(model, data.packed, 4, 1e-3),
    )


def test_mixing_documents_is_far_outside_the_tolerances(setup):
    """So the tests below fail where a mask gets lost."""
    assert abs(setup.mixed.losses[0] - setup.apart.losses[0]) > 2 * BF16_LOSS_TOLERANCE
    assert setup.mixed.grad_norms[0] > 1.1 * setup.apart.grad_norms[0]
    before = load_weights(setup.model)
    assert share_of_signs(before, setup.mixed.weights, setup.apart.weights) < 0.75


@pytest.mark.parametrize("case", [case for case in CASES if case.fp32], ids=lambda case: case.name)
def test_packed_documents_train_like_separate_rows_in_fp32(case, tmp_path, setup):
    arguments = flags(setup.model, setup.data.packed, "--mixed_precision", "fp32", *ON, *case.flags)
    save_dir = train(tmp_path, arguments, environment=case.environment)
    assert_fp32_step(tmp_path, save_dir, setup)


def assert_fp32_step(folder, save_dir, setup):
    assert read_losses(folder) == pytest.approx(setup.apart.losses, rel=1e-6)
    assert read_grad_norms(folder) == pytest.approx(setup.apart.grad_norms, rel=1e-4)
    before, after = load_weights(setup.model), load_weights(save_dir / "modeling")
    for name, expected in setup.apart.weights.items():
        update = (expected - before[name]).abs().max()
        # As in test_plugins: a gradient that is nearly zero has a random sign.
        close = (after[name] - expected).abs() <= 0.02 * update
        assert close.float().mean() > 0.998, f"{name}: {(~close).sum()} of {close.numel()} entries differ"


@pytest.mark.parametrize("case", [case for case in CASES if case.name in IN_BF16], ids=lambda case: case.name)
def test_packed_documents_train_like_separate_rows_in_bf16(case, tmp_path, setup):
    arguments = flags(setup.model, setup.data.packed, "--mixed_precision", "bf16", *ON, *case.flags)
    save_dir = train(tmp_path, arguments, environment=case.environment)
    assert read_losses(tmp_path) == pytest.approx(setup.apart.losses, abs=BF16_LOSS_TOLERANCE)
    assert read_grad_norms(tmp_path) == pytest.approx(setup.apart.grad_norms, rel=0.05)
    share = share_of_signs(load_weights(setup.model), load_weights(save_dir / "modeling"), setup.apart.weights)
    assert share > 0.97


@pytest.mark.parametrize(
    "layout",
    [
        ("--pp", "2", "--tp", "2"),
        ("--pp", "2", "--tp", "2", *SP, "split_gather"),
        ("--pp", "2", "--sp", "2", *SP, "all_to_all"),
    ],
    ids=["tp2-pp2", "split_gather-pp2", "all_to_all-pp2"],
)
def test_pipelines_of_split_stages(layout, tmp_path, setup):
    more = ("--mixed_precision", "fp32", "--plugin", "3d", "--zero", "0", "--batch_size", "4")
    arguments = flags(setup.model, setup.data.packed, *more, *ON, *layout)
    assert_fp32_step(tmp_path, train(tmp_path, arguments, processes=4), setup)


@pytest.mark.parametrize(
    "more",
    [
        (*DDP, "--use_grad_checkpoint"),
        (*DDP, "--padding_mode", "longest"),
        (*DDP, "--max_length", "48"),
        ("--plugin", "3d", "--zero", "0", "--pp", "2", "--batch_size", "4", "--mixed_precision", "fp32",
         "--use_grad_checkpoint"),
        ("--plugin", "3d", "--zero", "0", "--pp", "2", "--batch_size", "1", "--accumulation_steps", "4",
         "--mixed_precision", "fp32", "--padding_mode", "longest"),
    ],
    ids=["checkpointing", "longest", "longer", "pp2-checkpointing", "pp2-longest"],
)  # fmt: skip
def test_other_settings_keep_documents_apart_too(more, tmp_path, setup):
    assert_fp32_step(tmp_path, train(tmp_path, flags(setup.model, setup.data.packed, *ON, *more)), setup)


@pytest.mark.parametrize("plugin", ["ddp", "zero2", "gemini", "3d"])
def test_fp16_masks_with_its_own_lowest_number(plugin, tmp_path, setup):
    more = ("--mixed_precision", "fp16", "--plugin", plugin, "--batch_size", "2", "--zero", "0")
    train(tmp_path, flags(setup.model, setup.data.packed, *ON, *more), environment=SHARD)
    assert read_losses(tmp_path) == pytest.approx(setup.apart.losses, abs=BF16_LOSS_TOLERANCE)


def outputs(folder):
    return [
        "--save_dir",
        f"{folder}/checkpoints",
        "--tensorboard_dir",
        f"{folder}/logs",
        "--config_file",
        f"{folder}/c",
    ]


def run_on(folder, setup, part, *more):
    """A run of one process, with everything that it prints."""
    return run_training([*flags(setup.model, part, *DDP, *more), *outputs(folder)], processes=1)


def write_manifest_beside(part, kind, model):
    """A manifest as preparation with the model's tokenizer would leave it."""
    fingerprint = tokenizer_fingerprint(load_tokenizer(str(model), "--pretrained"))
    info = PartInfo(part.name, rows=4, pieces=4, tokens=4, target_tokens=4, documents=4, cut_documents=0,
                    dropped_tokens=0, sub_datasets={})  # fmt: skip
    manifest = make_manifest([info], 1, fingerprint, 512, kind)
    write_manifest(manifest, part.parent)


@pytest.mark.parametrize(
    ("kind", "flag", "apart"),
    [(SFT, "auto", True), (PRETRAIN, "auto", False), (SFT, "off", False), (PRETRAIN, "on", True)],
)
def test_auto_keeps_documents_apart_for_sft_data_only(kind, flag, apart, tmp_path, setup):
    data = save_packed(tmp_path / "data")
    write_manifest_beside(data.packed, kind, setup.model)
    done = run_on(tmp_path, setup, data.packed, "--batch_size", "4", "--document_mask", flag)
    assert done.returncode == 0, done.stderr
    expected = setup.apart if apart else setup.mixed
    assert read_losses(tmp_path) == pytest.approx(expected.losses, rel=1e-5)
    assert ("the documents of a row are kept apart" in done.stdout) == apart


def test_rows_without_lengths(tmp_path, setup):
    part = tmp_path / "data" / "part-00000"
    write_part(part, [[np.arange(5), np.arange(6)]] * 4, with_lengths=False)
    failed = run_on(tmp_path, setup, part, *ON)
    assert failed.returncode != 0
    assert "no column seq_lengths (lists of integers)" in failed.stderr
    write_manifest_beside(part, SFT, setup.model)
    done = run_on(tmp_path, setup, part)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("--document_mask auto: off, because --dataset has parts without seq_lengths") == 1


def test_a_checkpoint_is_not_resumed_with_the_other_mask(tmp_path, setup):
    save_dir = train(tmp_path / "on", flags(setup.model, setup.data.packed, *DDP, *ON, "--save_interval", "1"))
    resume = ("--load_checkpoint", str(save_dir / "epoch-0_step-1"))
    failed = run_training([*flags(setup.model, setup.data.packed, *DDP, *resume), *outputs(tmp_path / "off")])
    assert failed.returncode != 0
    assert "document_mask was on, now None" in failed.stderr


def test_benchmark_measures_the_mask(tmp_path, setup):
    done = run_on(tmp_path, setup, setup.data.packed, *ON, "--benchmark", "--num_samples", "4")
    assert done.returncode == 0, done.stderr
    assert "kept apart" in done.stdout


def test_what_cannot_work_is_refused_before_the_weights_are_read(tmp_path, setup):
    model = tmp_path / "model"
    shutil.copytree(setup.model, model)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps(config | {"sliding_window": 16}), encoding="utf-8")
    failed = run_training([*flags(model, setup.data.packed, *DDP, *ON), *outputs(tmp_path)], processes=1)
    assert failed.returncode != 0
    assert "error: --document_mask does not work with rows of --max_length 32" in failed.stderr
    assert "steps of" not in failed.stdout  # said when all is checked, before the weights are read


def test_flash_attention_that_falls_back_refuses_nothing(tmp_path, setup):
    more = ("--plugin", "gemini", "--batch_size", "4", "--mixed_precision", "bf16", "--use_flash_attn")
    arguments = [*flags(setup.model, setup.data.packed, *more, *ON), *outputs(tmp_path)]
    done = run_training(arguments, processes=1, environment=SHARD)
    assert done.returncode == 0, done.stderr
    assert read_losses(tmp_path) == pytest.approx(setup.apart.losses, abs=BF16_LOSS_TOLERANCE)


@pytest.mark.parametrize("plugin", ["ddp", "zero2", "3d"])
def test_lora_adapters_train_like_on_separate_rows(plugin, tmp_path, setup):
    """Two steps: the second loss and gradient come from adapters that the first one changed."""
    more = ("--mixed_precision", "bf16", "--lora_rank", "4", "--lr", "1e-2", "--num_epochs", "2", "--warmup_steps", "0")
    more += ("--lora_dropout", "0")
    exact = ("--mixed_precision", "fp32") if plugin == "ddp" else ()
    layout = ("--plugin", plugin, "--zero", "0", *exact)
    runs = {}
    for name, part, batch, processes, mask in (
        ("packed", setup.data.packed, 2, 2, "on"),
        ("apart", setup.data.unpacked, setup.data.documents, 1, "off"),
        ("mixed", setup.data.packed, 4, 1, "off"),
    ):
        rows = ("--batch_size", str(batch), "--document_mask", mask)
        arguments = flags(setup.model, part, *more, *layout, *rows)
        train(tmp_path / name, arguments, processes=processes)
        runs[name] = read_losses(tmp_path / name), read_grad_norms(tmp_path / name)
    losses, norms = runs["packed"]
    assert len(losses) == 2
    assert abs(losses[1] - losses[0]) > 3 * BF16_LOSS_TOLERANCE, "the adapters did not learn"
    assert losses == pytest.approx(runs["apart"][0], **({"rel": 1e-5} if exact else {"abs": BF16_LOSS_TOLERANCE}))
    assert norms == pytest.approx(runs["apart"][1], rel=1e-3 if exact else 0.05)
    assert abs(runs["mixed"][0][0] - losses[0]) > 2 * BF16_LOSS_TOLERANCE


@pytest.mark.parametrize(
    "layout",
    [
        DDP,
        ("--plugin", "3d", "--zero", "0", "--tp", "2", "--batch_size", "4", "--mixed_precision", "fp32"),
        ("--plugin", "3d", "--zero", "0", "--pp", "2", "--batch_size", "4", "--mixed_precision", "fp32"),
    ],
    ids=["ddp", "tp2", "pp2"],
)
def test_neftune_leaves_the_mask_in_place(layout, tmp_path, setup):
    """With hardly any noise the loss is that of separate rows; with the usual noise it is another one near it."""
    losses = {}
    for alpha in ("1e-6", "5"):
        noisy = ("--use_neft", "--neft_alpha", alpha)
        train(tmp_path / alpha, flags(setup.model, setup.data.packed, *layout, *ON, *noisy))
        losses[alpha] = read_losses(tmp_path / alpha)
    assert losses["1e-6"] == pytest.approx(setup.apart.losses, rel=1e-5)
    assert losses["5"] != pytest.approx(setup.apart.losses, rel=1e-4)
    assert losses["5"] == pytest.approx(setup.apart.losses, abs=1.0)
