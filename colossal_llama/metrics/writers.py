"""Where metrics go: TensorBoard, a JSONL file, and one progress bar."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

Metrics = dict[str, float]


class MetricWriter(Protocol):
    """Receives the metrics of each optimizer step."""

    def write(self, step: int, metrics: Metrics) -> None:
        """Record ``metrics`` of optimizer step ``step`` (counted from 1 over the whole run)."""
        ...

    def close(self) -> None:
        """Flush and release files."""
        ...


class TensorBoardWriter:
    """Scalars ``train/<name>`` in TensorBoard's event files."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def write(self, step: int, metrics: Metrics) -> None:
        """See :class:`MetricWriter`."""
        for name, value in metrics.items():
            self._writer.add_scalar(f"train/{name}", value, step)

    def close(self) -> None:
        """See :class:`MetricWriter`."""
        self._writer.close()


class JsonlWriter:
    """One JSON object a step in ``metrics.jsonl``; a resumed run appends."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / "metrics.jsonl").open("a", encoding="utf-8")

    def write(self, step: int, metrics: Metrics) -> None:
        """See :class:`MetricWriter`."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """See :class:`MetricWriter`."""
        self._file.close()


class ProgressWriter:
    """A tqdm bar over the run's optimizer steps."""

    def __init__(self, total_steps: int, first_step: int) -> None:
        from tqdm import tqdm

        self._bar = tqdm(
            total=total_steps, initial=first_step, unit="step", dynamic_ncols=True, mininterval=1.0
        )

    def write(self, step: int, metrics: Metrics) -> None:
        """See :class:`MetricWriter`."""
        shown = {"loss": f"{metrics['loss']:.4f}", "lr": f"{metrics['lr']:.2e}"}
        shown["tok/s"] = f"{metrics['tokens_per_second']:.0f}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(1)

    def close(self) -> None:
        """See :class:`MetricWriter`."""
        self._bar.close()
