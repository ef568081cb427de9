"""A checkpoint goes on with another plugin, precision, number of processes or batch: same rows, weights and states."""

import json
import os

import pytest
import torch

from colossal_llama.checkpoint.masters import StoredWeights
from colossal_llama.checkpoint.piece_files import PIECE_FILES, StoredPieces
from colossal_llama.data.sampler import BucketSampler
from tests.distributed.cases import SHARD
from tests.helpers.launching import outputs_in, read_losses, read_metrics, run_training, train

COMMON = ["--lr", "1e-3", "--max_length", "32", "--skip_save_each_epoch", "--mixed_precision", "bf16"]
SAVED_AT = 3

LOSS_TOLERANCE = 0.005
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


def arguments(model, rows, layout, *more):
    return ["--pretrained", str(model), "--dataset", str(rows), *COMMON, *layout, *more]


def assert_same_weights(expected, found):
    """Both checkpoints hold the same fp32 weights, to the bit."""
    one, other = StoredWeights(expected), StoredWeights(found)
    assert one.names
    for name in one.names:
        assert torch.equal(one.whole(name), other.whole(name)), name


def optimizer_states(checkpoint):
    return StoredPieces(sorted((checkpoint / "optimizer").glob(PIECE_FILES)))


def assert_same_states(expected, found, kinds=("exp_avg", "exp_avg_sq")):
    """Both checkpoints hold the same optimizer states, to the bit."""
    one, other = optimizer_states(expected), optimizer_states(found)
    assert set(one.keys) == set(other.keys) == {f"{kind}/{name}" for kind in kinds for name in one.scalars}
    assert one.scalars == other.scalars
    assert all(numbers == {"step": SAVED_AT} for numbers in one.scalars.values())
    for key in one.keys:
        assert one.whole(key).abs().max() > 0
        assert torch.equal(one.whole(key), other.whole(key)), key


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny_model, rows_6_steps):
    """Uninterrupted runs with a checkpoint in the middle, made when first asked for: folder by layout."""
    made = {}

    def run(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            interval = ("--save_interval", str(SAVED_AT))
            train(made[name], arguments(tiny_model, rows_6_steps, LAYOUTS[name], *interval), environment=SHARD)
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
def test_another_layout_goes_on(source, target, saved, tmp_path, tiny_model, rows_6_steps):
    whole = saved(source)
    layout = (LAYOUTS | ONE_PROCESS)[target]
    train(
        tmp_path,
        arguments(tiny_model, rows_6_steps, layout, "--load_checkpoint", str(checkpoint_of(whole))),
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


def logged_rows(folder):
    """Row numbers that all ranks have read, in the order of each rank."""
    return {file.name: list(map(int, file.read_text().split())) for file in sorted(folder.glob("rank-*.txt"))}


def test_rows_are_neither_repeated_nor_skipped_with_other_processes_and_batches(tmp_path, tiny_model, rows_6_steps):
    """24 rows: 8 on two processes, 9 on one in steps of 3 and more, the rest on two again with another accumulation."""
    runs = [
        (2, 2, ("--plugin", "zero2", "--batch_size", "2")),
        (1, 3, ("--plugin", "3d", "--zero", "0", "--batch_size", "1", "--accumulation_steps", "3")),
        (2, 2, ("--plugin", "gemini", "--batch_size", "1", "--accumulation_steps", "2")),
    ]
    taken, checkpoint, step, said = [], None, 0, ""
    for number, (processes, steps, layout) in enumerate(runs):
        folder = tmp_path / str(number)
        folder.mkdir()
        resume = [] if checkpoint is None else ["--load_checkpoint", str(checkpoint)]
        flags = arguments(tiny_model, rows_6_steps, layout, "--save_interval", "1", *resume, *outputs_in(folder))
        done = run_training(flags, processes, SHARD | {"LOG_ROWS": str(folder)})
        assert done.returncode == 0, done.stderr
        said += done.stdout
        size = processes * int(layout[layout.index("--batch_size") + 1])
        size *= int(layout[layout.index("--accumulation_steps") + 1]) if "--accumulation_steps" in layout else 1
        step += steps
        checkpoint = folder / "checkpoints" / f"epoch-0_step-{step}"
        state = json.loads((checkpoint / "running_states.json").read_text())
        by_rank = logged_rows(folder)
        assert len(by_rank) == processes
        in_run = interleave(list(by_rank.values()), int(layout[layout.index("--batch_size") + 1]))
        taken += in_run if number == len(runs) - 1 else in_run[: steps * size]
        assert state["consumed_samples"] == min(len(taken), 24)
    assert taken == BucketSampler([24], 42).epoch_order(0).tolist()
    assert "plugin was zero2, now 3d; world_size was 2, now 1" in said
    assert "random generators are seeded anew from --seed and the step" in said
    # 16 rows are left: 6 steps of 3, of 8 in the epoch; then 7 rows: 2 steps of 4, of 6 in the epoch.
    assert "another batch (global_batch was 4, now 3): no row is repeated or left out, the" in said
    assert "learning rate goes on at 2 of 8 steps of 3 rows" in said
    assert "learning rate goes on at 4 of 6 steps of 4 rows" in said


def interleave(by_rank, micro_batch):
    """Rows of all ranks in the order of consumption: micro-batch by micro-batch, rank by rank."""
    longest = max(map(len, by_rank))
    return [row for start in range(0, longest, micro_batch) for rows in by_rank for row in rows[start:][:micro_batch]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--seed", "7"], "seed was 42, now 7"),
        (["--num_epochs", "2"], "num_epochs was 1, now 2"),
        (["--freeze_non_embeds_params"], "freeze_non_embeds_params was False, now True"),
        ("other rows", "num_samples was 24, now 4; rows was"),
    ],
    ids=["seed", "epochs", "frozen", "rows"],
)
def test_another_run_is_refused(change, message, saved, tiny_model, rows_6_steps, rows_1_step):
    data = rows_1_step if change == "other rows" else rows_6_steps
    more = [] if change == "other rows" else change
    resume = ["--load_checkpoint", str(checkpoint_of(saved("zero2")))]
    failed = run_training(arguments(tiny_model, data, ONE_PROCESS["ddp on 1"], *resume, *more), processes=1)
    assert failed.returncode != 0
    lines = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert f"cannot resume, {message}" in lines[0]
    assert lines[0].endswith("/modeling")


def test_lion_changes_its_layout(tmp_path, tiny_model, rows_6_steps):
    lion = ("--optimizer", "lion", "--save_interval", str(SAVED_AT))
    checkpoint = None
    for name in ("zero2", "3d-tp2", "ddp on 1", "3d-pp2"):
        resume = [] if checkpoint is None else ["--load_checkpoint", str(checkpoint)]
        layout = (LAYOUTS | ONE_PROCESS)[name]
        train(
            tmp_path / name,
            arguments(tiny_model, rows_6_steps, layout, *lion, *resume),
            processes=1 if name in ONE_PROCESS else 2,
            environment={"RESAVE": str(tmp_path / name / "again")},
        )
        if checkpoint is None:
            checkpoint = checkpoint_of(tmp_path / name)
            continue
        again = tmp_path / name / "again" / checkpoint.name
        assert_same_weights(checkpoint, again)
        assert_same_states(checkpoint, again, kinds=("state1",))
        whole = read_losses(tmp_path / "zero2")[SAVED_AT:]
        assert read_losses(tmp_path / name) == pytest.approx(whole, abs=LOSS_TOLERANCE)


def test_tied_embeddings_and_precisions_go_through_a_pipeline_and_back(tmp_path, tiny_tied_model, rows_6_steps):
    """A pipeline holds the tied weight on its first and on its last stage, under two names."""
    chain = [("fp16", "zero2"), ("fp16", "3d-pp2"), ("fp16", "ddp"), ("fp16", "zero2 on 1"), ("bf16", "gemini on 1")]
    checkpoint = None
    for number, (precision, name) in enumerate(chain):
        folder = tmp_path / str(number)
        resume = [] if checkpoint is None else ["--load_checkpoint", str(checkpoint)]
        more = ["--save_interval", "1", "--mixed_precision", precision, *resume]
        save_dir = train(
            folder,
            arguments(tiny_tied_model, rows_6_steps, (LAYOUTS | ONE_PROCESS)[name], *more),
            processes=1 if name in ONE_PROCESS else 2,
            environment={"RESAVE": str(folder / "again")},
        )
        if checkpoint is not None:
            again = folder / "again" / checkpoint.name
            assert_same_weights(checkpoint, again)
        if name == "3d-pp2":
            assert loss_scale(again) == loss_scale(checkpoint)
        checkpoint = save_dir / f"epoch-0_step-{number + 2}"


def loss_scale(checkpoint):
    return float(torch.load(checkpoint / "loss_scale.pt", weights_only=True)["_scale"])


def test_adapters_change_their_layout(tmp_path, tiny_model, rows_6_steps):
    lora = ("--lora_rank", "4", "--lora_dropout", "0", "--save_interval", str(SAVED_AT))
    whole = tmp_path / "whole"
    train(whole, arguments(tiny_model, rows_6_steps, LAYOUTS["zero2"], *lora))
    one_process = ("--plugin", "3d", "--zero", "0", "--batch_size", "4")
    for name, layout, processes in (("ddp", LAYOUTS["ddp"], 2), ("3d", one_process, 1)):
        resumed = tmp_path / name
        train(
            resumed,
            arguments(tiny_model, rows_6_steps, layout, *lora, "--load_checkpoint", str(checkpoint_of(whole))),
            processes,
            environment={"RESAVE": str(resumed / "again")},
        )
        again = resumed / "again" / f"epoch-0_step-{SAVED_AT}"
        assert_same_weights(checkpoint_of(whole), again)
        assert_same_states(checkpoint_of(whole), again)
        assert read_losses(resumed) == pytest.approx(read_losses(whole)[SAVED_AT:], abs=LOSS_TOLERANCE)
