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
    """Scalars ``train/<name>`` in TensorBoard's event files.

    Args:
        folder: of the event files.
        first_step: steps done before; what a killed run logged beyond them is hidden.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first_step + 1)

    def write(self, step: int, metrics: Metrics) -> None:
        """See :class:`MetricWriter`."""
        for name, value in metrics.items():
            self._writer.add_scalar(f"train/{name}", value, step)
        # A killed run must not lack steps that its last checkpoint has; unasked, two minutes' worth is held back.
        self._writer.flush()

    def close(self) -> None:
        """See :class:`MetricWriter`."""
        self._writer.close()


class JsonlWriter:
    """One JSON object a step in ``metrics.jsonl``.

    Args:
        folder: of the file.
        first_step: steps done before; a resumed run keeps their lines and writes the later ones anew.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= first_step]
        self._file = path.open("w", encoding="utf-8")
        self._file.writelines(kept)

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

        self._bar = tqdm(total=total_steps, initial=first_step, unit="step", dynamic_ncols=True, mininterval=1.0)

    def write(self, step: int, metrics: Metrics) -> None:
        """See :class:`MetricWriter`."""
        shown = {"loss": f"{metrics['loss']:.4f}", "lr": f"{metrics['lr']:.2e}"}
        shown["tok/s"] = f"{metrics['tokens_per_second']:.0f}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(1)

    def close(self) -> None:
        """See :class:`MetricWriter`."""
        self._bar.close()
