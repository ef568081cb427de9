"""A loss or gradient that is NaN: the run stops, or the update is dropped on all ranks and nothing else."""

import json

import pytest

from tests.distributed.cases import CASES
from tests.distributed.conftest import GLOBAL_BATCH, LR
from tests.helpers.launching import read_losses, read_metrics, run_training, train
from tests.helpers.reference import train_reference
from tests.helpers.tiny import save_rows

COMMON = ["--lr", "1e-3", "--max_length", "32", "--skip_save_each_epoch", "--save_interval", "0"]
SPOILT = 3


@pytest.fixture(scope="module")
def rows_6_steps(tmp_path_factory):
    return save_rows(tmp_path_factory.mktemp("rows24"), 6 * GLOBAL_BATCH)


@pytest.fixture(scope="module")
def reference(tiny_model, rows_6_steps):
    return train_reference(tiny_model, rows_6_steps, GLOBAL_BATCH, LR, dropped=(SPOILT,))


def flags(model, rows, *more):
    return ["--pretrained", str(model), "--dataset", str(rows), *COMMON, *more]


def read_events(folder, kind):
    lines = (folder / "logs" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


SKIPPING = [
    ("ddp", "NAN_LOSS"),
    ("zero2", "NAN_GRADIENT"),
    ("gemini", "NAN_LOSS"),
    ("3d-zero1", "NAN_LOSS"),
    ("3d-tp2", "NAN_GRADIENT"),
    ("3d-pp2", "NAN_LOSS"),
]


@pytest.mark.parametrize(("name", "fault"), SKIPPING)
def test_a_spoilt_update_is_dropped_and_nothing_else(name, fault, tmp_path, tiny_model, rows_6_steps, reference):
    case = next(case for case in CASES if case.name == name)
    precision = "fp32" if case.fp32 else "bf16"
    arguments = flags(tiny_model, rows_6_steps, "--mixed_precision", precision, "--on_nan", "skip", *case.flags)
    train(tmp_path, arguments, environment=case.environment | {fault: str(SPOILT)})
    losses = read_losses(tmp_path)
    assert (losses.pop(SPOILT - 1) is None) == (fault == "NAN_LOSS")
    others = [loss for step, loss in enumerate(reference.losses, start=1) if step != SPOILT]
    assert losses == pytest.approx(others, **({"rel": 1e-5} if case.fp32 else {"abs": 0.02}))
    assert [metrics["skipped_steps"] for metrics in read_metrics(tmp_path)] == [0, 0, 1, 1, 1, 1]
    (event,) = read_events(tmp_path, "skipped")
    assert event["step"] == SPOILT
    assert [len(rows) for rows in event["rows"].values()] == [GLOBAL_BATCH]
    assert str(rows_6_steps) in event["message"]


def test_without_clipping_the_gradients_themselves_are_looked_at(tmp_path, tiny_model, rows_6_steps):
    case = next(case for case in CASES if case.name == "3d-tp2")
    arguments = flags(tiny_model, rows_6_steps, "--mixed_precision", "fp32", "--on_nan", "skip", "--grad_clip", "0")
    train(tmp_path, [*arguments, *case.flags], environment={"NAN_GRADIENT": str(SPOILT)})
    expected = train_reference(tiny_model, rows_6_steps, GLOBAL_BATCH, LR, max_norm=float("inf"), dropped=(SPOILT,))
    assert read_losses(tmp_path) == pytest.approx(expected.losses, rel=1e-5)


ACCUMULATE = ("--batch_size", "1", "--accumulation_steps", "2")


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("zero2", ()),
        ("zero2", ACCUMULATE),
        ("gemini", ()),
        ("gemini", ACCUMULATE),
        ("3d-dp2", ACCUMULATE),
        ("3d-zero1", ACCUMULATE),
        ("3d-tp2", ()),
        ("3d-pp2-accumulate", ()),
    ],
    ids=lambda value: value if isinstance(value, str) else "accumulate" if value else "",
)
def test_fp16_tells_its_loss_scale_from_nan(name, more, tmp_path, tiny_model, rows_6_steps):
    case = next(case for case in CASES if case.name == name)
    arguments = flags(tiny_model, rows_6_steps, "--mixed_precision", "fp16", "--on_nan", "skip", *case.flags, *more)
    spoilt = {"NAN_LOSS": str(SPOILT), "NAN_GRADIENT": str(SPOILT + 1)}
    train(tmp_path, arguments, environment=case.environment | spoilt)
    metrics = read_metrics(tmp_path)
    assert [step["loss"] is None for step in metrics] == [step == SPOILT for step in range(1, 7)]
    # A gradient that is not finite under a finite loss is what a loss scale that is too large looks like.
    assert [step.get("loss_scale_skip", 0) for step in metrics] == [0, 0, 0, 1, 0, 0]
    assert metrics[-1]["skipped_steps"] == 1
    assert all(step["grad_norm"] < 100 for step in metrics if "grad_norm" in step)


def test_gemini_recovers_from_an_overflow_only_with_the_remedy(tmp_path, tiny_model, rows_6_steps):
    case = next(case for case in CASES if case.name == "gemini")
    arguments = flags(tiny_model, rows_6_steps, "--mixed_precision", "fp16", *case.flags, *ACCUMULATE)
    undone = {"UNDO": "_fix_gemini_accumulation_after_overflow", "NAN_GRADIENT": str(SPOILT)}
    train(tmp_path, arguments, environment=case.environment | undone)
    assert [step.get("loss_scale_skip", 0) for step in read_metrics(tmp_path)] == [0, 0, 1, 1, 1, 1]


def test_stop_is_the_default_and_too_many_skips_stop_too(tmp_path, tiny_model, rows_6_steps):
    from colossal_llama.trainer import MOST_SKIPPED_IN_A_ROW

    outputs = ["--save_dir", str(tmp_path / "c"), "--tensorboard_dir", str(tmp_path / "logs")]
    outputs += ["--config_file", str(tmp_path / "config.json"), "--plugin", "ddp", "--mixed_precision", "fp32"]
    stopped = run_training([*flags(tiny_model, rows_6_steps), *outputs], 1, {"NAN_LOSS": "2"})
    assert stopped.returncode != 0
    assert "the loss became nan at step 2" in stopped.stderr
    assert len(read_losses(tmp_path)) == 2
    every = ",".join(map(str, range(1, 25)))
    skipped = run_training([*flags(tiny_model, rows_6_steps), *outputs, "--on_nan", "skip"], 1, {"NAN_LOSS": every})
    assert skipped.returncode != 0
    assert f"{MOST_SKIPPED_IN_A_ROW} steps in a row" in skipped.stderr
    assert len(read_losses(tmp_path)) == MOST_SKIPPED_IN_A_ROW
    assert (tmp_path / "logs" / "report.html").is_file()
