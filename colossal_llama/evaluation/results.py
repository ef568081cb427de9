"""The results of one model: scores of whole benchmarks from their subjects, and tables of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from colossal_llama.evaluation.benchmarks import BENCHMARKS
from colossal_llama.evaluation.documents import CategoryFigures
from colossal_llama.tables import Table

Result = dict[str, Any]


def benchmark_results(subjects: Mapping[str, Result]) -> dict[str, Result]:
    """Results of benchmarks from those of their subjects (``benchmark:subject``).

    A benchmark's score is the mean over its questions, as in the harness. Its standard error is that of a mean over
    strata, the square root of the sum of squared weighted errors of the subjects; None where a subject has none.
    """
    grouped: dict[str, dict[str, Result]] = {}
    for name, result in subjects.items():
        benchmark, _, subject = name.partition(":")
        grouped.setdefault(benchmark, {})[subject] = result
    return {name: _benchmark_result(name, parts) for name, parts in grouped.items()}


def _benchmark_result(name: str, parts: dict[str, Result]) -> Result:
    questions = sum(part["questions"] for part in parts.values())
    metrics = {}
    for label in BENCHMARKS.get(name).metrics:
        scored = [(part["questions"] / questions, part["metrics"][label]) for part in parts.values()]
        errors = [None if one["stderr"] is None else weight * one["stderr"] for weight, one in scored]
        metrics[label] = {
            "score": math.fsum(weight * (math.nan if one["score"] is None else one["score"]) for weight, one in scored),
            "stderr": None if None in errors else math.hypot(*(error for error in errors if error is not None)),
        }
    return {
        "shots": sorted({part["shots"] for part in parts.values()}),
        "questions": questions,
        "cut_prompts": sum(part["cut_prompts"] for part in parts.values()),
        "seconds": round(sum(part["seconds"] for part in parts.values()), 1),
        "metrics": metrics,
        "subjects": parts,
    }


def task_table(tasks: Mapping[str, Result], subjects_of: Mapping[str, int]) -> Table:
    """A row for each benchmark and metric.

    Args:
        tasks: of :func:`benchmark_results`.
        subjects_of: how many subjects each benchmark has in all.
    """
    rows = []
    for name, result in tasks.items():
        count = len(result["subjects"])
        label = name if count == subjects_of[name] else f"{name} ({count} of {subjects_of[name]} subjects)"
        for metric, figures in result["metrics"].items():
            rows.append([label, metric, show_shots(result["shots"]), f"{result['questions']:,}", show_score(figures)])
            rows[-1].append(f"{result['cut_prompts']:,}")
    note = (
        "Score in per cent over all questions, with its standard error. Cut prompts: questions that were longer than "
        "the model's context and lost their beginning."
    )
    return Table("Benchmarks", ["benchmark", "metric", "shots", "questions", "score", "cut prompts"], rows, note, 2)


def show_shots(shots: Iterable[int]) -> str:
    """The number of examples, or the smallest and the largest."""
    numbers = sorted(set(shots))
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def show_score(figures: Mapping[str, float | None]) -> str:
    """A score in per cent with its standard error."""
    error = figures["stderr"]
    if figures["score"] is None or not math.isfinite(figures["score"]):
        return "not a number"
    return f"{100 * figures['score']:.2f}" + ("" if error is None else f" ± {100 * error:.2f}")


def text_table(label: str, figures: Mapping[str, CategoryFigures]) -> Table:
    """A row for each category of texts."""
    rows = [
        [
            category,
            f"{one.documents:,}",
            f"{one.utf8_bytes:,}",
            f"{one.tokens:,}",
            f"{one.tokens_per_character:.3f}",
            one.bits_per_byte.show(),
            one.perplexity.show(2),
        ]
        for category, one in figures.items()
    ]
    head = ["category", "documents", "bytes", "tokens", "tokens/character", "bits/byte", "perplexity"]
    note = (
        "In brackets: 95 % confidence intervals (bootstrap over documents). Perplexity is that of a token, so it "
        "compares models with the same tokenizer only; bits per byte compare any."
    )
    return Table(f"Texts ({label})", head, rows, note)
