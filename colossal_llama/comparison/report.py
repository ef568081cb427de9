"""The tables of a comparison, and all of it as Markdown, terminal text and JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from colossal_llama.comparison.figures import ModelFigures, Plan
from colossal_llama.evaluation.documents import Change, change_by_category, figures_by_category
from colossal_llama.evaluation.results import show_score, show_shots
from colossal_llama.tables import Table, markdown_text, terminal_text

BITS, RATE = "bits per UTF-8 byte", "tokens per character"
MIB = 1024**2
NO_RESULT = "-"

Models = Sequence[ModelFigures]


class Comparison:
    """Figures of models, the first one being what the others are compared with.

    Args:
        models: at least two.
        plan: what was measured.
        resamples, seed: of the bootstrap.
    """

    def __init__(self, models: Models, plan: Plan, resamples: int, seed: int) -> None:
        self.models = models
        self.plan = plan
        scored = [one.scores for one in models if one.scores is not None]
        self.texts = [figures_by_category(one, resamples, seed) for one in scored]
        self.changes = [change_by_category(scored[0], one, resamples, seed) for one in scored[1:]]

    def tables(self) -> list[Table]:
        """All tables, in order; those without a row are left out."""
        tables = [self.text_table(), self.task_table(), self.model_table()]
        return [table for table in tables if table.rows]

    def _head(self, *first: str) -> list[str]:
        """Column names: the first model, then each other one with its change."""
        names = [one.name for one in self.models]
        return [*first, names[0], *(cell for name in names[1:] for cell in (name, "change"))]

    def text_table(self) -> Table:
        """Bits per byte and tokens per character of every category; changes in per cent."""
        label = self.plan.texts.label if self.plan.texts else ""
        rows: list[list[str]] = []
        for category in self.texts[0] if self.texts else ():
            figures = [one[category] for one in self.texts]
            changes = [one[category] for one in self.changes]
            bits, rate = [category, BITS, figures[0].bits_per_byte.show()], [category, RATE]
            rate.append(f"{figures[0].tokens_per_character:.3f}")
            for one, change in zip(figures[1:], changes, strict=True):
                bits += [one.bits_per_byte.show(), show_change(change)]
                rate += [f"{one.tokens_per_character:.3f}", f"{100 * change.tokens:+.1f} %"]
            rows += [bits, rate]
        note = (
            "In brackets: 95 % confidence intervals (bootstrap over documents; those of changes from pairs of the same "
            "documents). Fewer bits are better; bits per byte compare models with different tokenizers."
        )
        return Table("Texts", self._head(f"text ({label})", "figure"), rows, note, 2)

    def task_table(self) -> Table:
        """Scores of the benchmarks, a dash where a model has none; changes in points of a per cent."""
        rows = []
        for name in dict.fromkeys(name for one in self.models for name in one.tasks):
            results = [one.tasks.get(name) for one in self.models]
            known = [one for one in results if one is not None]
            shots = " / ".join(dict.fromkeys(show_shots(one["shots"]) for one in known))
            for metric in known[0]["metrics"]:
                row = [name, f"{metric} ({shots}-shot)", _score(results[0], metric)]
                for result in results[1:]:
                    row += [_score(result, metric), _change_of_score(results[0], result, metric)]
                rows.append(row)
        note = "Scores in per cent with standard errors; changes in points, with the error of two independent scores."
        return Table("Benchmarks", self._head("benchmark", "metric"), rows, note, 2)

    def model_table(self) -> Table:
        """Size and speed of every model."""
        rows = [
            ["parameters", *(f"{one.size.parameters:,}" for one in self.models)],
            ["weights on disk, MiB", *(f"{one.size.weight_bytes / MIB:,.1f}" for one in self.models)],
            ["vocabulary", *(f"{one.size.vocabulary:,}" for one in self.models)],
        ]
        speeds = [one.speed for one in self.models]
        note = ""
        if all(speed is not None for speed in speeds):
            rows.append(["forward, tokens/s", *(f"{speed.forward:,.0f}" for speed in speeds if speed)])
            if self.texts:
                overall = [list(one.values())[-1] for one in self.texts]
                rates = zip(speeds, overall, strict=True)
                cells = [f"{speed.forward / one.tokens_per_character:,.0f}" for speed, one in rates if speed]
                rows.append(["forward, characters/s of the texts", *cells])
            rows.append(["generation, tokens/s", *(f"{speed.generation:,.1f}" for speed in speeds if speed)])
            note = (
                f"Speed: median of three runs on {self.plan.device}, forward passes over about "
                f"{self.plan.speed_tokens:,} tokens, generation of one answer. The models are timed one after the "
                "other, so other work on the machine changes the figures."
            )
        return Table("Models", ["", *(one.name for one in self.models)], rows, note)

    def as_json(self) -> dict[str, Any]:
        """All figures as a mapping."""
        models = []
        for place, one in enumerate(self.models):
            entry: dict[str, Any] = {"name": one.name, "folder": str(one.folder), "fingerprint": one.fingerprint}
            entry |= {"size": one.size.as_json(), "tasks": one.tasks, "continuations": one.continuations}
            if one.speed is not None:
                entry["speed"] = {"forward": one.speed.forward, "generation": one.speed.generation}
            if self.texts:
                entry["texts"] = {name: figures.as_json() for name, figures in self.texts[place].items()}
            if self.changes and place:
                changes = self.changes[place - 1]
                entry["change"] = {name: change.as_json() for name, change in changes.items()}
            models.append(entry)
        return {"models": models, "prompts": list(self.plan.prompts)}


def show_change(change: Change) -> str:
    """A relative change in per cent with its interval."""
    value = f"{100 * change.relative.value:+.1f} %"
    low, high = change.relative.low, change.relative.high
    return value if low is None or high is None else f"{value} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _score(result: dict[str, Any] | None, metric: str) -> str:
    return NO_RESULT if result is None else show_score(result["metrics"][metric])


def _change_of_score(base: dict[str, Any] | None, new: dict[str, Any] | None, metric: str) -> str:
    if base is None or new is None:
        return NO_RESULT
    if any(new[key] != base[key] for key in ("shots", "questions")):
        return "other questions or shots"
    return _points(base["metrics"][metric], new["metrics"][metric])


def _points(base: dict[str, float | None], new: dict[str, float | None]) -> str:
    if base["score"] is None or new["score"] is None:
        return NO_RESULT
    difference = f"{100 * (new['score'] - base['score']):+.2f}"
    if base["stderr"] is None or new["stderr"] is None:
        return difference
    return f"{difference} ± {100 * math.hypot(base['stderr'], new['stderr']):.2f}"


def to_markdown(comparison: Comparison) -> str:
    """The whole comparison as Markdown."""
    parts = ["# Models compared", *map(markdown_text, comparison.tables())]
    if comparison.plan.prompts:
        parts.append("## What they write")
        for number, prompt in enumerate(comparison.plan.prompts):
            lines = [f"- {one.name}: {one.continuations[number]!r}" for one in comparison.models]
            parts += [f"Prompt: {prompt!r}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def to_terminal(comparison: Comparison) -> str:
    """The tables and continuations for the terminal."""
    parts = [terminal_text(table) for table in comparison.tables()]
    for number, prompt in enumerate(comparison.plan.prompts):
        lines = [f"  {one.name}: {one.continuations[number]!r}" for one in comparison.models]
        parts.append("\n".join([f"prompt {prompt!r}", *lines]))
    return "\n\n".join(parts)
