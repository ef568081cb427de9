"""``report.html``: what happened while a model was trained, in one file that opens offline.

Everything comes from the files that the run wrote as it went, so that a run that was killed and resumed, or that ended
badly, has a report of all its steps.
"""

from __future__ import annotations

import statistics
from html import escape
from pathlib import Path
from typing import Any

from colossal_llama.atomic import write_text_atomically
from colossal_llama.html_page import Table, html_figure, html_table, render_page
from colossal_llama.json_files import read_json_lines
from colossal_llama.metrics.line_chart import Curve, svg_curves
from colossal_llama.metrics.writers import EVENTS_FILE, GIB, METRICS_FILE, show_duration

REPORT_FILE = "report.html"

Lines = list[dict[str, Any]]

ALL = "all"
SMOOTHED_FROM = 40
"""With so many steps, a curve that wobbles is drawn faintly and its running mean over it."""
CURVES_SHOWN = 8

STYLE = """
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(400px, 1fr)); gap: 1.2rem; }
figure { margin: 0; }
svg { width: 100%; height: auto; } svg text { font-size: 11px; fill: #5a6478; } svg line { stroke: #e3e7ee; }
.shares { display: flex; height: 22px; border-radius: 4px; overflow: hidden; max-width: 660px; margin: .6rem 0; }
.shares i { display: block; height: 100%; }
td .dot { display: inline-block; width: 10px; height: 10px; border-radius: 5px; margin-right: 6px; }
"""


def write_training_report(folder: Path, facts: dict[str, Any], settings: dict[str, Any]) -> Path:
    """Write the report on the run whose metrics are in ``folder``; it is complete or unchanged afterwards.

    Args:
        folder: of ``metrics.jsonl`` and ``events.jsonl``.
        facts: what is worth saying about the run besides its flags.
        settings: all flags with their values.

    Returns:
        The file, ``report.html`` in ``folder``.
    """
    path = folder / REPORT_FILE
    page = render_training_report(_read(folder / METRICS_FILE), _read(folder / EVENTS_FILE), facts, settings)
    write_text_atomically(path, page, errors="backslashreplace")  # names of categories and folders need not be UTF-8
    return path


def _read(path: Path) -> Lines:
    return read_json_lines(path) if path.is_file() else []


def render_training_report(steps: Lines, events: Lines, facts: dict[str, Any], settings: dict[str, Any]) -> str:
    """The report as HTML.

    Args:
        steps: the lines of ``metrics.jsonl``.
        events: those of ``events.jsonl``.
        facts, settings: as in :func:`write_training_report`.
    """
    kinds: dict[str, Lines] = {kind: [] for kind in ("evaluation", "checkpoint", "skipped", "spike")}
    for event in events:
        kinds.setdefault(event["kind"], []).append(event)
    sections = [
        ("Totals", _totals(steps, kinds)),
        ("Curves", _curves(steps, kinds["evaluation"])),
        ("Held-out rows", _scores(kinds["evaluation"])),
        ("Where the time went", _time(steps, kinds)),
        ("Skipped steps and jumps of the loss", _conspicuous(kinds["skipped"] + kinds["spike"])),
        ("Checkpoints", _checkpoints(kinds["checkpoint"])),
        ("Settings", _settings(facts, settings)),
    ]
    body = "".join(f"<section><h2>{title}</h2>{content}</section>\n" for title, content in sections if content)
    return render_page("Training run", body, STYLE)


def _totals(steps: Lines, kinds: dict[str, Lines]) -> str:
    if not steps:
        return "<p>No step was finished.</p>"
    last = steps[-1]
    losses = [line["loss"] for line in steps if line["loss"] is not None]
    held_out = [event["scores"][ALL] for event in kinds["evaluation"]]
    entries = [
        ("steps", f"{last['step']:,}"),
        ("loss at the end", f"{losses[-1]:.4f}" if losses else None),
        ("held-out loss at the end", _decimals(held_out[-1]["loss"]) or None if held_out else None),
        ("held-out bits per byte", _decimals(held_out[-1].get("bits_per_byte")) or None if held_out else None),
        ("tokens learned from", f"{last.get('consumed_tokens', 0):,}"),
        ("rows", f"{last.get('consumed_samples', 0):,}"),
        ("tokens/s", f"{_rate(steps):,.0f}"),
        ("MFU, median", _percent(_median(steps, "mfu"))),
        ("padding", _percent(1 - _sum(steps, "text_tokens") / (_sum(steps, "tokens") or 1))),
        ("peak memory of a device", _gib(max((line.get("peak_memory_bytes") or 0 for line in steps), default=0))),
        ("steps skipped", f"{len(kinds['skipped']):,}"),
        ("jumps of the loss", f"{len(kinds['spike']):,}"),
        ("left out by the loss scaler", f"{_sum(steps, 'loss_scale_skip'):,.0f}" if _scaled(steps) else None),
    ]
    cards = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for name, value in entries
        if value is not None
    )
    return f'<div class="cards">{cards}</div>'


def _curves(steps: Lines, evaluations: Lines) -> str:
    held_out = [Curve("held out", _score_points(evaluations, ALL, "loss"), dots=True)]
    drawn = [("Loss (nats per target token)", svg_curves([*_smoothed(steps, "loss", "training"), *held_out]))]
    for figure, caption in (("bits_per_byte", "Held out, bits per byte"), ("loss", "Held out, loss")):
        labels = [label for label in _labels(evaluations) if _score_points(evaluations, label, figure)]
        curves = [Curve(label, _score_points(evaluations, label, figure), dots=True) for label in labels[:CURVES_SHOWN]]
        if curves and (figure == "bits_per_byte" or len(curves) > 1):
            drawn.append((caption, svg_curves(curves)))
    for name, caption in (
        ("lr", "Learning rate"),
        ("grad_norm", "Gradient norm before clipping"),
        ("tokens_per_second", "Tokens per second, padding included"),
        ("mfu", "Share of the devices' peak FLOP/s (MFU)"),
    ):
        drawn.append((caption, svg_curves(_smoothed(steps, name, name.replace("_", " ")))))
    memory = [(line["step"], line["peak_memory_bytes"] / GIB) for line in steps if line.get("peak_memory_bytes")]
    drawn.append(("Peak memory of a device so far (GiB)", svg_curves([Curve("memory", memory)])))
    return f'<div class="figures">{"".join(html_figure(caption, svg) for caption, svg in drawn if svg)}</div>'


def _smoothed(steps: Lines, name: str, label: str) -> list[Curve]:
    points = [(line["step"], line[name]) for line in steps if line.get(name) is not None]
    if len(points) < SMOOTHED_FROM or name == "lr":
        return [Curve(label, points)]
    width = max(5, len(points) // 40)
    totals = [0.0]
    for _, value in points:
        totals.append(totals[-1] + value)
    means = []
    for index, (step, _) in enumerate(points):
        first = max(0, index + 1 - width)
        means.append((step, (totals[index + 1] - totals[first]) / (index + 1 - first)))
    return [Curve(label, points, faint=True), Curve(f"mean of {width} steps", means)]


def _labels(evaluations: Lines) -> list[str]:
    return list(dict.fromkeys(label for event in evaluations for label in event["scores"]))


def _score_points(evaluations: Lines, label: str, figure: str) -> list[tuple[float, float]]:
    scores = [(event["step"], event["scores"].get(label, {}).get(figure)) for event in evaluations]
    return [(step, value) for step, value in scores if value is not None]


def _scores(evaluations: Lines) -> str:
    if not evaluations:
        return ""
    first, last = evaluations[0], evaluations[-1]
    rows: Table = []
    for label, figures in last["scores"].items():
        before = first["scores"].get(label, {})
        row = [label, f"{figures['tokens']:,.0f}", f"{figures['bytes']:,.0f}"]
        for name in ("loss", "bits_per_byte"):
            row += [_decimals(before.get(name)), _decimals(figures.get(name)), _change(before, figures, name)]
        rows.append(row)
    steps = f"step {first['step']:,}", f"step {last['step']:,}"
    head = ["held out", "target tokens", "bytes"]
    for name in ("loss", "bits per byte"):
        head += [f"{name}, {steps[0]}", f"{name}, {steps[1]}", "change"]
    note = (
        "Loss in nats per target token. Bits per byte count the targets that are text, not special tokens, and compare "
        "models with different tokenizers."
    )
    return f"{html_table(head, rows, 'groups')}<p>{note}</p>"


def _time(steps: Lines, kinds: dict[str, Lines]) -> str:
    waiting = _sum(steps, "loader_wait_seconds")
    parts = [
        ("forward, backward, update", _sum(steps, "seconds") - waiting, "#3b74c4"),
        ("waiting for rows", waiting, "#b0506f"),
        ("evaluation", _sum(kinds["evaluation"], "seconds"), "#3d9a6d"),
        ("checkpoints", _sum(kinds["checkpoint"], "seconds"), "#d08a2e"),
    ]
    total = sum(seconds for _, seconds, _ in parts)
    if not total:
        return ""
    bar = "".join(
        f'<i style="width:{100 * seconds / total:.3f}%;background:{color}"></i>' for _, seconds, color in parts
    )
    rows = "".join(
        f'<tr><td><span class="dot" style="background:{color}"></span>{name}</td><td class=n>{seconds:,.1f}</td>'
        f"<td class=n>{show_duration(seconds)}</td><td class=n>{seconds / total:.2%}</td></tr>"
        for name, seconds, color in [*parts, ("together", total, "transparent")]
    )
    head = "<tr><th>what</th><th>seconds</th><th>h:mm:ss</th><th>share</th></tr>"
    return f'<div class="shares">{bar}</div><div class="wide"><table>{head}{rows}</table></div>'


def _conspicuous(events: Lines) -> str:
    rows = [
        [f"{event['step']:,}", event["kind"], _decimals(event["loss"]), _decimals(event["grad_norm"]), event["message"]]
        for event in sorted(events, key=lambda event: event["step"])
    ]
    table = html_table(["step", "what", "loss", "gradient norm", "where to look"], rows, "steps")
    return table or "<p>none</p>"


def _checkpoints(events: Lines) -> str:
    rows = [[f"{event['step']:,}", event["name"], f"{event['seconds']:.1f}", _gib(event["bytes"])] for event in events]
    return html_table(["step", "folder", "seconds", "size"], rows, "checkpoints")


def _settings(facts: dict[str, Any], settings: dict[str, Any]) -> str:
    rows = [[name, _shown(value)] for name, value in facts.items()]
    rows += [[f"--{name}", _shown(value)] for name, value in settings.items()]
    known = html_table(["run", "value"], rows[: len(facts)], "facts", align=False)
    return known + "<p></p>" + html_table(["flag", "value"], rows[len(facts) :], "flags", align=False)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _sum(lines: Lines, name: str) -> float:
    return sum(line.get(name) or 0 for line in lines)


def _median(lines: Lines, name: str) -> float | None:
    values = [line[name] for line in lines if line.get(name) is not None]
    return statistics.median(values) if values else None


def _rate(steps: Lines) -> float:
    seconds = _sum(steps, "seconds")
    return _sum(steps, "tokens") / seconds if seconds else 0.0


def _scaled(steps: Lines) -> bool:
    return any("loss_scale_skip" in line for line in steps)


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / (1 << 20):.1f} MiB"


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value:.1%}"


def _decimals(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _change(before: dict[str, float], after: dict[str, float], name: str) -> str:
    if not before.get(name) or after.get(name) is None:
        return ""
    return f"{after[name] / before[name] - 1:+.1%}"
