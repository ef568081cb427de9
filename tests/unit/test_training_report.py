"""The report on a training run: from its files alone, whatever they hold."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from colossal_llama.metrics.line_chart import MOST_POINTS, Curve, svg_curves, thinned, ticks
from colossal_llama.metrics.report import write_training_report


def run_of(steps: int) -> tuple[list[dict], list[dict]]:
    lines = [
        {
            "step": step,
            "loss": None if step == 7 else 6 - step / steps + 0.1 * (step % 5),
            "lr": 1e-3 * step / steps,
            "tokens": 1000,
            "text_tokens": 900,
            "seconds": 2.0,
            "tokens_per_second": 500.0 + step % 7,
            "loader_wait_seconds": 0.01,
            "peak_memory_bytes": 3 << 30,
            "consumed_tokens": 900 * step,
            "consumed_samples": 4 * step,
            "grad_norm": 1.0 + step % 3,
        }
        for step in range(1, steps + 1)
    ]
    scores = {
        label: {"loss": 3.0, "tokens": 500, "bytes": 2000, "bits_per_byte": 1.25}
        for label in ("all", "category/<news>", "category/法律")
    }
    better = scores | {"all": {"loss": 2.4, "tokens": 500, "bytes": 2000, "bits_per_byte": 1.0}}
    events = [
        {"step": 0, "kind": "evaluation", "scores": scores, "seconds": 3.0},
        {"step": steps, "kind": "evaluation", "scores": better, "seconds": 3.0},
        {"step": 5, "kind": "checkpoint", "name": "epoch-0_step-5", "seconds": 4.0, "bytes": 5 << 30},
        {"step": 7, "kind": "skipped", "loss": None, "grad_norm": None, "rows": {"p": [1]}, "message": "look at p"},
    ]
    return lines, events


def write_run(folder: Path, lines: list[dict], events: list[dict]) -> str:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    path = write_training_report(folder, {"devices": "2 x cpu"}, {"lr": 3e-4, "dataset": ["a", "b"], "overwrite": True})
    return path.read_text(encoding="utf-8")


def test_the_report_shows_curves_scores_times_and_settings(tmp_path: Path) -> None:
    page = write_run(tmp_path, *run_of(60))
    for text in (
        "Loss (nats per target token)",
        "Held out, bits per byte",
        "Learning rate",
        "Gradient norm before clipping",
        "Tokens per second",
        "Peak memory",
        "category/&lt;news&gt;",
        "category/法律",
        "-20.0%",
        "epoch-0_step-5",
        "5.00 GiB",
        "look at p",
        "--dataset",
        "a, b",
        "2 x cpu",
    ):
        assert text in page, text
    assert page.count("<svg") == 7
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg)
    assert "<script" not in page
    assert not re.search(r"(?:src|href)=", page)
    assert "mean of 5 steps" in page
    # 120 s of steps, 0.6 of them waiting, 6 s of evaluation, 4 s of saving
    for share in ("91.85%", "0.46%", "4.62%", "3.08%", "100.00%"):
        assert share in page, share


def test_a_run_that_ended_at_once_has_a_report_too(tmp_path: Path) -> None:
    assert "No step was finished" in write_run(tmp_path, [], [])
    lines, events = run_of(1)
    assert "Learning rate" in write_run(tmp_path, lines, [])
    for event in events[:2]:
        event["scores"]["all"] |= {"loss": None, "bits_per_byte": None}
    assert "Held-out rows" in write_run(tmp_path, lines, events)


def test_thinning_keeps_the_extremes() -> None:
    points = [(float(step), 100.0 if step == 70_001 else step % 7) for step in range(100_000)]
    kept = thinned(points)
    assert len(kept) <= MOST_POINTS
    assert (70_001.0, 100.0) in kept
    assert kept == sorted(kept)
    assert thinned(points[:5]) == points[:5]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (2.31, 6.02), (3e-5, 3e-4), (5, 5), (0, 0), (-1, 12345.6)])
def test_ticks_are_round_and_cover_the_values(low: float, high: float) -> None:
    marks = ticks(low, high, 5)
    assert 3 <= len(marks) <= 12
    assert marks[0] <= low
    assert marks[-1] >= high - 1e-9
    assert marks == sorted(set(marks))


def test_one_point_is_a_dot_and_no_point_nothing() -> None:
    assert "<circle" in svg_curves([Curve("loss", [(1, 2.0)])])
    assert svg_curves([Curve("loss", [])]) == ""
