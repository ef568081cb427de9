"""Scores of benchmarks from those of their subjects, and what is kept on disk."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from colossal_llama.evaluation.results import benchmark_results, show_score, show_shots
from colossal_llama.evaluation.store import ResultStore, model_fingerprint


def subject(questions: int, score: float, stderr: float | None, shots: int = 5) -> dict[str, Any]:
    metrics = {"accuracy": {"score": score, "stderr": stderr}}
    return {"questions": questions, "shots": shots, "cut_prompts": 1, "seconds": 2.0, "metrics": metrics}


def test_a_benchmark_is_the_mean_over_its_questions() -> None:
    results = benchmark_results(
        {"mmlu:a": subject(100, 0.5, 0.05), "boolq:boolq": subject(10, 1.0, 0.0), "mmlu:b": subject(300, 0.9, 0.02, 3)}
    )
    assert list(results) == ["mmlu", "boolq"]
    assert results["mmlu"]["metrics"]["accuracy"]["score"] == pytest.approx(0.8)
    expected = math.sqrt((0.25 * 0.05) ** 2 + (0.75 * 0.02) ** 2)
    assert results["mmlu"]["metrics"]["accuracy"]["stderr"] == pytest.approx(expected)
    assert (results["mmlu"]["questions"], results["mmlu"]["cut_prompts"]) == (400, 2)
    assert show_shots(results["mmlu"]["shots"]) == "3 to 5"
    assert show_score(results["mmlu"]["metrics"]["accuracy"]) == "80.00 ± 1.95"


def test_one_question_has_no_error() -> None:
    results = benchmark_results({"mmlu:a": subject(1, 1.0, None), "mmlu:b": subject(9, 0.0, 0.0)})
    assert results["mmlu"]["metrics"]["accuracy"] == {"score": pytest.approx(0.1), "stderr": None}
    assert show_score(results["mmlu"]["metrics"]["accuracy"]) == "10.00"


def test_a_result_is_found_by_its_settings_only(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "parts")
    store.save("mmlu:a", {"shots": 5}, {"score": 0.5})
    assert store.load("mmlu:a", {"shots": 5}) == {"score": 0.5}
    assert store.load("mmlu:a", {"shots": 4}) is None
    assert store.load("mmlu:b", {"shots": 5}) is None
    (file,) = (tmp_path / "parts").iterdir()
    file.write_text(file.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    assert store.load("mmlu:a", {"shots": 5}) is None


def test_any_byte_of_a_model_changes_its_fingerprint(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    (base / "model.safetensors").write_bytes(bytes(1000))
    (base / "notes.md").write_text("about the model")
    (base / "config.json").write_text("{}")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    before = model_fingerprint(base), model_fingerprint(adapter)
    (base / "notes.md").write_text("more about the model")
    assert (model_fingerprint(base), model_fingerprint(adapter)) == before
    (base / "model.safetensors").write_bytes(bytes(500) + b"\1" + bytes(499))
    after = model_fingerprint(base), model_fingerprint(adapter)
    assert after[0] != before[0]
    assert after[1] != before[1]
