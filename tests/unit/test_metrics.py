"""What a run reports."""

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from colossal_llama.metrics import tracker as tracker_module
from colossal_llama.metrics.tracker import MetricTracker
from colossal_llama.metrics.writers import JsonlWriter, Metrics, ProgressWriter, TensorBoardWriter


class Recorder:
    def __init__(self) -> None:
        self.written: list[tuple[int, Metrics]] = []
        self.closed = False

    def write(self, step: int, metrics: Metrics) -> None:
        self.written.append((step, metrics))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock whose single element is the time."""
    now = [100.0]
    monkeypatch.setattr(tracker_module.time, "perf_counter", lambda: now[0])
    return now


def test_steps_are_timed_and_checkpoints_are_not_charged_to_them(clock: list[float]) -> None:
    recorder = Recorder()
    tracker = MetricTracker([recorder])
    clock[0] += 2
    tracker.record(1, 0, loss=3.0, lr=1e-4, grad_norm=0.5, tokens=100, target_tokens=60)
    clock[0] += 50
    tracker.restart_clock()
    clock[0] += 4
    tracker.record(2, 0, loss=2.0, lr=2e-4, grad_norm=None, tokens=100, target_tokens=70)
    (first, one), (second, two) = recorder.written
    assert (first, second) == (1, 2)
    assert one == {
        "loss": 3.0,
        "lr": 1e-4,
        "epoch": 0,
        "tokens": 100,
        "target_tokens": 60,
        "seconds": 2.0,
        "tokens_per_second": 50.0,
        "grad_norm": 0.5,
    }
    assert (two["seconds"], two["tokens_per_second"]) == (4.0, 25.0)
    assert "grad_norm" not in two
    assert tracker.summary().startswith("2 steps, 200 tokens in 56.0 s")
    tracker.close()
    assert recorder.closed


METRICS = {"loss": 2.5, "lr": 1e-4, "tokens_per_second": 10.0}


def write_steps(writer: JsonlWriter | TensorBoardWriter, *steps: int) -> None:
    for step in steps:
        writer.write(step, METRICS | {"loss": float(step)})
    writer.close()


def test_jsonl_of_a_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    write_steps(JsonlWriter(tmp_path, 0), 1, 2, 3, 4)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # killed in the middle of a line
    write_steps(JsonlWriter(tmp_path, 2), 3, 4, 5)
    entries = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4, 5]
    assert entries[0] == {"step": 1, **METRICS, "loss": 1.0}


def test_tensorboard_holds_every_metric_and_a_resumed_run_every_step_once(tmp_path: Path) -> None:
    write_steps(TensorBoardWriter(tmp_path, 0), 1, 2, 3)
    write_steps(TensorBoardWriter(tmp_path, 2), 3, 4)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"train/loss", "train/lr", "train/tokens_per_second"}
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]


def test_tensorboard_of_a_killed_run_has_all_steps_and_one_from_scratch_hides_them(tmp_path: Path) -> None:
    killed = TensorBoardWriter(tmp_path, 0)
    for step in (1, 2, 3):
        killed.write(step, METRICS)  # and never close

    def steps() -> list[int]:
        events = EventAccumulator(str(tmp_path))
        events.Reload()
        return [event.step for event in events.Scalars("train/loss")]

    assert steps() == [1, 2, 3]
    write_steps(TensorBoardWriter(tmp_path, 0), 1, 2)
    assert steps() == [1, 2]


def test_progress_shows_loss_and_rate(capsys: pytest.CaptureFixture[str]) -> None:
    writer = ProgressWriter(total_steps=10, first_step=4)
    writer.write(5, METRICS)
    writer.close()
    shown = capsys.readouterr().err
    assert "5/10" in shown
    assert "loss=2.5000" in shown
