"""Where metrics go: TensorBoard, JSONL files, and one line on the console."""

from __future__ import annotations

import json
import math
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TextIO

from colossal_llama.atomic import write_text_atomically
from colossal_llama.errors import UserError, explain_os_error
from colossal_llama.json_records import json_value

Metrics = dict[str, float]
Event = dict[str, Any]
"""Something that happens now and then. ``kind`` is evaluation, checkpoint, skipped or spike."""

METRICS_FILE, EVENTS_FILE = "metrics.jsonl", "events.jsonl"

LINE_SECONDS = 10.0
"""In a file or a pipe, a line for a step appears at most so often; on a terminal it is rewritten at most ten times as
often."""

GIB = 1 << 30


@contextmanager
def _written_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"--tensorboard_dir {folder}: the metrics cannot be written ({explain_os_error(error)}); then go on from "
            "the newest checkpoint with --load_checkpoint auto"
        ) from error


def _leave_file_errors_to_callers() -> None:
    """Keep TensorBoard's thread from printing a traceback of an error that its next call raises anyway."""
    report = threading.excepthook

    def report_others(error: threading.ExceptHookArgs) -> None:
        if not (type(error.thread).__name__ == "_AsyncWriterThread" and issubclass(error.exc_type, OSError)):
            report(error)

    threading.excepthook = report_others


class MetricWriter(Protocol):
    """Receives the metrics of each optimizer step, and what happens between steps."""

    def write(self, step: int, metrics: Metrics) -> None:
        """Record ``metrics`` of optimizer step ``step`` (counted from 1 over the whole run)."""
        ...

    def note(self, step: int, event: Event) -> None:
        """Record what happened at or after ``step``."""
        ...

    def close(self) -> None:
        """Flush and release files."""
        ...


class TensorBoardWriter:
    """Scalars ``train/<name>`` and ``eval/<label>/<figure>`` in TensorBoard's event files.

    Args:
        folder: of the event files.
        first_step: steps done before; what a killed run logged beyond them is hidden.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        _leave_file_errors_to_callers()
        self._folder = folder
        with _written_to(folder):
            self._writer = SummaryWriter(str(folder), purge_step=first_step + 1 if first_step else 0)

    def write(self, step: int, metrics: Metrics) -> None:
        """See :class:`MetricWriter`."""
        with _written_to(self._folder):
            for name, value in metrics.items():
                self._writer.add_scalar(f"train/{name}", value, step)
            # A killed run must not lack steps that its last checkpoint has; unasked, two minutes' worth is held back.
            self._writer.flush()

    def note(self, step: int, event: Event) -> None:
        """See :class:`MetricWriter`; events without scores are no curves."""
        with _written_to(self._folder):
            for label, figures in event.get("scores", {}).items():
                for name, value in figures.items():
                    self._writer.add_scalar(f"eval/{label}/{name}", value, step)

    def close(self) -> None:
        """See :class:`MetricWriter`."""
        with _written_to(self._folder):
            self._writer.close()


class JsonlWriter:
    """One JSON object a step in ``metrics.jsonl``, and one an event in ``events.jsonl``; NaN and infinity are null.

    Args:
        folder: of the files.
        first_step: steps done before; a resumed run keeps their lines and writes the later ones anew.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self._folder = folder
        with _written_to(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._metrics = _reopen(folder / METRICS_FILE, first_step)
            self._events = _reopen(folder / EVENTS_FILE, first_step)

    def write(self, step: int, metrics: Metrics) -> None:
        """See :class:`MetricWriter`."""
        with _written_to(self._folder):
            _write_line(self._metrics, {"step": step, **metrics})

    def note(self, step: int, event: Event) -> None:
        """See :class:`MetricWriter`."""
        with _written_to(self._folder):
            _write_line(self._events, {"step": step, **event})

    def close(self) -> None:
        """See :class:`MetricWriter`."""
        with _written_to(self._folder):
            self._metrics.close()
            self._events.close()


def _reopen(path: Path, first_step: int) -> TextIO:
    """Open a file to add to, without the lines of steps beyond ``first_step`` and without a line that was cut short.

    A kill at any moment leaves the old content or the kept lines: nothing is held in memory alone.

    Raises:
        UserError: a line is damaged.
    """
    if not first_step:
        write_text_atomically(path, "")
    elif path.is_file():
        lines = path.read_bytes().splitlines(keepends=True)
        kept = [line for number, line in enumerate(lines, start=1) if _belongs(line, first_step, f"{path}:{number}")]
        if kept != lines:
            write_text_atomically(path, b"".join(kept).decode("utf-8"))
    return path.open("a", encoding="utf-8")


def _belongs(line: bytes, first_step: int, where: str) -> bool:
    """Whether a stored line is whole and of the first ``first_step`` steps."""
    if not line.endswith(b"\n"):  # a killed run was writing it
        return False
    try:
        return bool(json.loads(line)["step"] <= first_step)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{where}: damaged ({error}); delete the line, or give another --tensorboard_dir to keep the file as it is"
        ) from error


def _write_line(file: TextIO, content: dict[str, Any]) -> None:
    file.write(json.dumps(json_value(content), ensure_ascii=False, allow_nan=False) + "\n")
    file.flush()


class ConsoleWriter:
    """One line a step on stderr: rewritten in place on a terminal, now and then a new one elsewhere.

    Args:
        total_steps: of the run.
        first_step: steps done before.
        stream: other than stderr, for tests.
    """

    def __init__(self, total_steps: int, first_step: int, stream: TextIO | None = None) -> None:
        self._total = total_steps
        self._stream = stream or sys.stderr
        self._in_place = self._stream.isatty()
        self._pause = LINE_SECONDS / 100 if self._in_place else LINE_SECONDS
        self._began: tuple[float, int] | None = None
        self._shown_at = -math.inf
        self._waiting: str | None = None

    def write(self, step: int, metrics: Metrics) -> None:
        """See :class:`MetricWriter`."""
        now = time.monotonic()
        if self._began is None:
            self._began = now, step
        self._waiting = f"step {step}/{self._total} | {step_line(metrics)} | {self._remaining(now, step)} left"
        if now - self._shown_at >= self._pause or step == self._total:
            self._show(now)

    def note(self, step: int, event: Event) -> None:
        """See :class:`MetricWriter`."""
        line = f"step {step}: {event_line(event)}"
        self._stream.write(f"\r\x1b[K{line}\n" if self._in_place else f"{line}\n")
        self._stream.flush()

    def close(self) -> None:
        """See :class:`MetricWriter`."""
        if self._waiting is not None:
            self._show(time.monotonic())
        if self._in_place:
            self._stream.write("\n")
            self._stream.flush()

    def _show(self, now: float) -> None:
        line, self._waiting, self._shown_at = self._waiting or "", None, now
        if self._in_place:
            self._stream.write("\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1])
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def _remaining(self, now: float, step: int) -> str:
        """By the time of all steps since the first one, with evaluations and checkpoints between them."""
        began, first = self._began or (now, step)
        if step >= self._total:
            return show_duration(0)
        return show_duration((now - began) / (step - first) * (self._total - step)) if step > first else "?"


def step_line(metrics: Metrics) -> str:
    """The metrics that one looks at while training, in one line."""
    parts = [f"loss {metrics['loss']:.4f}", f"lr {metrics['lr']:.2e}"]
    if "grad_norm" in metrics:
        parts.append(f"grad {metrics['grad_norm']:.3g}")
    speed = f"{metrics['tokens_per_second']:,.0f} tok/s"
    each = metrics.get("tokens_per_second_per_device")
    if each is not None and f"{each:,.0f}" != f"{metrics['tokens_per_second']:,.0f}":
        speed += f" ({each:,.0f} a device)"
    parts.append(speed)
    if "mfu" in metrics:
        parts.append(f"MFU {metrics['mfu']:.1%}")
    if "peak_memory_bytes" in metrics:
        parts.append(f"{metrics['peak_memory_bytes'] / GIB:.1f} GiB")
    return " | ".join(parts)


def event_line(event: Event) -> str:
    """An event in one line."""
    if event["kind"] == "evaluation":
        scores = [f"{label} {score_text(figures)}" for label, figures in list(event["scores"].items())[:7]]
        return f"held out: {'; '.join(scores)} ({event['seconds']:.1f} s)"
    if event["kind"] == "checkpoint":
        return f"saved {event['name']} ({event['bytes'] / GIB:.2f} GiB in {event['seconds']:.1f} s)"
    return str(event["message"])


def score_text(figures: dict[str, float]) -> str:
    """Loss and bits per byte of one set of texts."""
    bits = f" ({figures['bits_per_byte']:.4f} bits/byte)" if "bits_per_byte" in figures else ""
    return f"loss {figures['loss']:.4f}{bits}"


def show_duration(seconds: float) -> str:
    """Hours, minutes and seconds; days where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days} d " * (days > 0) + f"{hours}:{minutes:02}:{rest:02}"
