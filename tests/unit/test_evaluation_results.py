"""Scores of benchmarks from those of their subjects, and what is kept on disk."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from colossal_llama.commands.compare_models import main as compare_main
from colossal_llama.commands.evaluate import main as evaluate_main
from colossal_llama.evaluation.results import benchmark_results, show_score, show_shots
from colossal_llama.evaluation.store import ResultStore, model_fingerprint
from tests.helpers.tiny import save_tiny_model


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
    import torch
    from safetensors.torch import save_file

    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(base)})
    )
    save_file({"lora_A.weight": torch.zeros(2)}, str(adapter / "adapter_model.safetensors"))
    before = model_fingerprint(base), model_fingerprint(adapter)
    (base / "notes.md").write_text("more about the model")
    assert (model_fingerprint(base), model_fingerprint(adapter)) == before
    (base / "model.safetensors").write_bytes(bytes(500) + b"\1" + bytes(499))
    after = model_fingerprint(base), model_fingerprint(adapter)
    assert after[0] != before[0]
    assert after[1] != before[1]


def test_a_diverged_model_gives_strict_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from transformers import LlamaForCausalLM

    folders = [save_tiny_model(tmp_path / name) for name in ("good", "bad")]
    model = LlamaForCausalLM.from_pretrained(str(folders[1]))
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    model.save_pretrained(str(folders[1]))
    (tmp_path / "texts.txt").write_text("one text\nanother text\n")

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    flags = ["--held_out", str(tmp_path / "texts.txt"), "--output_dir", str(tmp_path / "out")]
    for _ in range(2):  # the second time from what is on disk
        assert evaluate_main([str(folders[1]), *flags]) == 0
        assert "warning: " in capsys.readouterr().out
        for file in (tmp_path / "out").rglob("*.json"):
            content = json.loads(file.read_text(), parse_constant=refuse)
        results = json.loads((tmp_path / "out" / "results.json").read_text(), parse_constant=refuse)
        (figures,) = results["held_out"]["categories"].values()
        assert figures["bits_per_byte"]["value"] is None
        assert "not finite" in (tmp_path / "out" / "results.md").read_text()
    flags = [*flags[:2], "--output_dir", str(tmp_path / "c"), "--measure_speed", "false"]
    assert compare_main([*map(str, folders), *flags]) == 0
    content = json.loads((tmp_path / "c" / "comparison.json").read_text(), parse_constant=refuse)
    assert [change["relative"]["value"] for change in content["models"][1]["change"].values()] == [None]
    assert "warning: " in capsys.readouterr().out


def test_scores_that_are_no_numbers_are_shown_as_such() -> None:
    for score in (None, float("nan")):
        assert show_score({"score": score, "stderr": None}) == "not a number"
