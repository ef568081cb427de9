"""What a run reports."""

import io
import json
import math
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from colossal_llama.errors import UserError
from colossal_llama.metrics import tracker as tracker_module
from colossal_llama.metrics import writers as writers_module
from colossal_llama.metrics.flops import flops_per_token, is_counted, peak_flops
from colossal_llama.metrics.loss_watch import LEAST_STEPS, LossWatch
from colossal_llama.metrics.tracker import MetricTracker, StepFigures
from colossal_llama.metrics.writers import (
    ConsoleWriter,
    Event,
    JsonlWriter,
    Metrics,
    TensorBoardWriter,
    show_duration,
)


class Recorder:
    def __init__(self) -> None:
        self.written: list[tuple[int, Metrics]] = []
        self.events: list[tuple[int, Event]] = []
        self.closed = False

    def write(self, step: int, metrics: Metrics) -> None:
        self.written.append((step, metrics))

    def note(self, step: int, event: Event) -> None:
        self.events.append((step, event))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock whose single element is the time."""
    now = [100.0]
    monkeypatch.setattr(tracker_module.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(writers_module.time, "monotonic", lambda: now[0])
    return now


def figures(step: int, **changes: float | None) -> StepFigures:
    values = {
        "epoch": 0,
        "bucket": 2,
        "loss": 3.0,
        "lr": 1e-4,
        "grad_norm": 0.5,
        "tokens": 100,
        "text_tokens": 90,
        "target_tokens": 60,
        "loader_wait_seconds": 0.25,
        "peak_memory_bytes": 1 << 30,
        "consumed_samples": 8 * step,
        "consumed_tokens": 90 * step,
    }
    return StepFigures(step=step, **{**values, **changes})  # type: ignore[arg-type]


def test_a_step_says_all_that_is_known_of_it(clock: list[float]) -> None:
    recorder = Recorder()
    tracker = MetricTracker([recorder], devices=4, flops_per_token=1e6, peak_flops=1e8)
    clock[0] += 2
    tracker.record(figures(1))
    assert recorder.written == [
        (
            1,
            {
                "loss": 3.0,
                "lr": 1e-4,
                "epoch": 0,
                "bucket": 2,
                "tokens": 100,
                "text_tokens": 90,
                "target_tokens": 60,
                "seconds": 2.0,
                "tokens_per_second": 50.0,
                "tokens_per_second_per_device": 12.5,
                "loader_wait_seconds": 0.25,
                "peak_memory_bytes": 1 << 30,
                "consumed_samples": 8,
                "consumed_tokens": 90,
                "skipped_steps": 0,
                "grad_norm": 0.5,
                "mfu": 0.125,
            },
        )
    ]


def test_what_happens_between_steps_is_counted_apart(clock: list[float]) -> None:
    recorder = Recorder()
    tracker = MetricTracker([recorder])
    clock[0] += 2
    tracker.record(figures(1))
    clock[0] += 30
    tracker.evaluated(1, {"all": {"loss": 2.0}}, seconds=30.0)
    clock[0] += 20
    tracker.checkpointed(1, "epoch-0_step-1", seconds=20.0, size=500)
    clock[0] += 4
    tracker.record(figures(2, grad_norm=None))
    clock[0] += 1
    tracker.record(figures(3))
    one, two, three = (metrics for _, metrics in recorder.written)
    assert [metrics["seconds"] for metrics in (one, two, three)] == [2.0, 4.0, 1.0]
    assert (two["evaluation_seconds"], two["checkpoint_seconds"], two["checkpoint_bytes"]) == (30.0, 20.0, 500)
    assert "grad_norm" not in two
    assert "mfu" not in two
    assert not {"evaluation_seconds", "checkpoint_seconds", "checkpoint_bytes"} & (one.keys() | three.keys())
    assert [(step, event["kind"]) for step, event in recorder.events] == [(1, "evaluation"), (1, "checkpoint")]
    assert tracker.summary().startswith("3 steps, 300 tokens in 57.0 s")
    tracker.close()
    assert recorder.closed


METRICS = {"loss": 2.5, "lr": 1e-4, "tokens_per_second": 10.0}


def write_steps(writer: JsonlWriter | TensorBoardWriter, *steps: int) -> None:
    for step in steps:
        writer.write(step, METRICS | {"loss": float(step)})
        writer.note(step, {"kind": "evaluation", "scores": {"all": {"loss": float(step)}}, "seconds": 1.0})
    writer.close()


def test_jsonl_of_a_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    write_steps(JsonlWriter(tmp_path, 0), 1, 2, 3, 4)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # killed in the middle of a line
    write_steps(JsonlWriter(tmp_path, 2), 3, 4, 5)
    entries = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4, 5]
    assert entries[0] == {"step": 1, **METRICS, "loss": 1.0}
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events] == [1, 2, 3, 4, 5]
    write_steps(JsonlWriter(tmp_path, 0), 1)
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 1


def test_jsonl_has_null_for_what_is_not_finite(tmp_path: Path) -> None:
    writer = JsonlWriter(tmp_path, 0)
    writer.write(1, {"loss": math.nan, "grad_norm": math.inf})
    writer.note(1, {"kind": "evaluation", "scores": {"all": {"loss": math.nan}}})
    writer.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": None, "grad_norm": None}
    assert '"loss": null' in (tmp_path / "events.jsonl").read_text()


def test_tensorboard_holds_every_metric_and_a_resumed_run_every_step_once(tmp_path: Path) -> None:
    write_steps(TensorBoardWriter(tmp_path, 0), 1, 2, 3)
    write_steps(TensorBoardWriter(tmp_path, 2), 3, 4)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"train/loss", "train/lr", "train/tokens_per_second", "eval/all/loss"}
    for tag in ("train/loss", "eval/all/loss"):
        assert [event.step for event in events.Scalars(tag)] == [1, 2, 3, 4]


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


def test_the_console_shows_one_line_now_and_then_and_the_last(clock: list[float]) -> None:
    stream = io.StringIO()
    writer = ConsoleWriter(total_steps=10, first_step=4, stream=stream)
    for step in (5, 6, 7):
        writer.write(step, METRICS | {"grad_norm": 0.25, "mfu": 0.412, "peak_memory_bytes": 3 << 29})
        clock[0] += 4
    writer.note(7, {"kind": "checkpoint", "name": "epoch-0_step-7", "bytes": 1 << 29, "seconds": 2.0})
    writer.close()
    first, saved, last = stream.getvalue().splitlines()
    assert first == "step 5/10 | loss 2.5000 | lr 1.00e-04 | grad 0.25 | 10 tok/s | MFU 41.2% | 1.5 GiB | ? left"
    assert saved == "step 7: saved epoch-0_step-7 (0.50 GiB in 2.0 s)"
    assert last.startswith("step 7/10 | ")
    assert last.endswith(" | 0:00:12 left")


def test_durations_read_well() -> None:
    assert show_duration(5) == "0:00:05"
    assert show_duration(3725.6) == "1:02:06"
    assert show_duration(90_000) == "1 d 1:00:00"


LLAMA_2_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "vocab_size": 32000,
}


def test_flops_are_six_times_the_multiplied_parameters_and_attention() -> None:
    parameters = 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 32000 * 4096
    attention = 12 * 32 * 32 * 128 * 4096
    assert flops_per_token(LLAMA_2_7B, 4096) == 6 * parameters + attention
    output = 32000 * 4096
    assert flops_per_token(LLAMA_2_7B, 4096, True) == 4 * parameters + 2 * output + attention
    grouped = LLAMA_2_7B | {"num_key_value_heads": 8}
    assert flops_per_token(LLAMA_2_7B, 1) - flops_per_token(grouped, 1) == 6 * 32 * 2 * 24 * 128 * 4096


def test_models_without_a_formula_are_told_apart() -> None:
    assert is_counted(LLAMA_2_7B)
    assert not is_counted(LLAMA_2_7B | {"num_local_experts": 8})
    assert not is_counted({"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257})


def test_flops_count_what_a_model_really_multiplies() -> None:
    """Against torch's own counter, for forward and backward of a small model."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=3,
        vocab_size=160,
        attn_implementation="eager",
    )
    for embeddings_only in (False, True):
        model = LlamaForCausalLM(config)
        for name, param in model.named_parameters():
            param.requires_grad = not embeddings_only or "embed_tokens" in name or "lm_head" in name
        with FlopCounterMode(display=False) as counter:
            model(input_ids=torch.zeros(2, 48, dtype=torch.long), use_cache=False).logits.sum().backward()
        counted = counter.get_total_flops() / (2 * 48)
        # The rotary frequencies and, in the lowest layer, what needs no gradient are the difference.
        assert flops_per_token(config.to_dict(), 48, embeddings_only) == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA H200", "fp16", 989e12),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5e12),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2e12),
        ("NVIDIA RTX A4000", "bf16", None),
        ("cpu", "fp32", None),
    ],
)
def test_peaks_are_found_by_whole_words(name: str, precision: str, peak: float | None) -> None:
    assert peak_flops(name, precision) == peak


def test_a_spike_is_told_once_and_a_falling_loss_never() -> None:
    watch = LossWatch()
    falling = [6 * 0.98**step + 0.02 * (step % 3) for step in range(60)]
    assert [watch.sees_spike(loss) for loss in falling] == [None] * 60
    assert watch.sees_spike(9.0) == pytest.approx(sorted(falling)[8], abs=0.1)
    assert watch.sees_spike(9.5) is None
    assert watch.sees_spike(falling[-1]) is None
    assert watch.sees_spike(9.0) is not None


def test_nothing_is_a_spike_before_there_is_a_usual_loss() -> None:
    watch = LossWatch()
    assert [watch.sees_spike(100.0 * (step % 2)) for step in range(LEAST_STEPS)] == [None] * LEAST_STEPS
    steady = LossWatch()
    assert [steady.sees_spike(2.0) for _ in range(LEAST_STEPS)] == [None] * LEAST_STEPS
    assert steady.sees_spike(2.09) is None
    assert steady.sees_spike(2.11) == 2.0


def write_lines(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")


def test_a_resumed_run_keeps_the_lines_of_its_steps_only(tmp_path: Path) -> None:
    kept = ['{"step": 1, "note": "é"}\n', '{"step": 3}\n']
    # An event of an earlier step can follow one of a later step: a checkpoint is noted when it is whole.
    write_lines(tmp_path / "events.jsonl", kept[0], '{"step": 4}\n', kept[1], '{"step": 5, "half')
    writer = JsonlWriter(tmp_path, first_step=3)
    assert (tmp_path / "events.jsonl").read_text(encoding="utf-8") == "".join(kept)
    writer.note(4, {"kind": "evaluation"})
    writer.close()
    assert (tmp_path / "events.jsonl").read_text(encoding="utf-8") == "".join(kept) + (
        '{"step": 4, "kind": "evaluation"}\n'
    )
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["events.jsonl", "metrics.jsonl"]


def test_a_new_run_begins_its_files_anew(tmp_path: Path) -> None:
    write_lines(tmp_path / "metrics.jsonl", "of another run\n")
    JsonlWriter(tmp_path, first_step=0).close()
    assert (tmp_path / "metrics.jsonl").read_text(encoding="utf-8") == ""


@pytest.mark.parametrize("line", ["\0\0\0\0\n", "[1]\n", "{}\n", '{"step": "x"}\n', "\n"])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    write_lines(tmp_path / "metrics.jsonl", '{"step": 1}\n', line, '{"step": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: damaged"):
        JsonlWriter(tmp_path, first_step=2)
    assert (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").count("\n") == 3
