"""What the finished stages did: one line each, ``stages.json`` and ``stages.md``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from colossal_llama.atomic import write_text_atomically
from colossal_llama.json_files import read_json_lines


@dataclass(frozen=True)
class StageSummary:
    """Figures of a finished stage.

    Attributes:
        stage: its name.
        steps: optimizer steps.
        tokens: token positions processed, padding included.
        seconds: of these steps, saving and starting not counted.
        last_loss: of the last step, in nats per target token; None without a step.
        weights: folder of the final weights.
    """

    stage: str
    steps: int
    tokens: int
    seconds: float
    last_loss: float | None
    weights: str

    @property
    def line(self) -> str:
        """The figures in one line."""
        loss = "none" if self.last_loss is None else f"{self.last_loss:.4f}"
        return (
            f"{self.stage}: {self.steps:,} steps, {self.tokens:,} tokens, {self.seconds:,.1f} seconds, last loss {loss}"
        )


def summarise(stage: str, folder: Path) -> StageSummary:
    """The figures of the stage in ``folder``, from the ``metrics.jsonl`` that train.py wrote."""
    entries: list[dict[str, Any]] = []
    metrics = folder / "logs" / "metrics.jsonl"
    if metrics.is_file():
        entries = read_json_lines(metrics)
    steps = [entry for entry in entries if "loss" in entry and "tokens" in entry]
    return StageSummary(
        stage=stage,
        steps=len(steps),
        tokens=int(sum(entry["tokens"] for entry in steps)),
        seconds=round(sum(entry["seconds"] for entry in steps), 1),
        last_loss=steps[-1]["loss"] if steps else None,
        weights=str(folder / "modeling"),
    )


def write_summaries(summaries: Sequence[StageSummary], output_dir: Path) -> None:
    """Write ``stages.json`` and ``stages.md`` into ``output_dir``."""
    content = {"stages": [asdict(summary) for summary in summaries]}
    write_text_atomically(output_dir / "stages.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    rows = ["| stage | steps | tokens | seconds | last loss | weights |", "|---|---:|---:|---:|---:|---|"]
    for summary in summaries:
        loss = "" if summary.last_loss is None else f"{summary.last_loss:.4f}"
        figures = f"{summary.steps:,} | {summary.tokens:,} | {summary.seconds:,.1f} | {loss}"
        rows.append(f"| {summary.stage} | {figures} | `{summary.weights}` |")
    write_text_atomically(output_dir / "stages.md", "\n".join(rows) + "\n")
