"""A comparison as one HTML file that opens offline."""

from __future__ import annotations

from html import escape

from colossal_llama.comparison.report import Comparison
from colossal_llama.evaluation.bootstrap import Interval
from colossal_llama.html_page import printable, render_page
from colossal_llama.tables import TABLE_STYLE, html_text

_COLORS = ("#8a94a6", "#3b74c4", "#d08a2e", "#3d9a6d", "#b0506f", "#7a63b8", "#5b8a99")
_MOST_CHARTS = 12

_STYLE = """
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(380px, 1fr)); gap: 0 1.5rem; }
.charts figcaption { font-weight: 600; margin-bottom: .2rem; color: #1c2330; }
.charts figure { margin: .6rem 0; }
.charts svg { width: 100%; height: auto; } .charts text { font-size: 12px; fill: #1c2330; }
.written { display: grid; gap: .8rem; margin: .4rem 0 1.4rem; }
.written div { border: 1px solid #d5dae3; border-radius: 6px; padding: .4rem .8rem; }
.written h4 { margin: 0 0 .3rem; font-size: .85rem; color: #5a6478; }
.written p, .prompt { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; }
.prompt { font-weight: 600; }
"""


def to_html(comparison: Comparison) -> str:
    """Tables, charts of bits per byte with their intervals, and what the models write, side by side."""
    sections = []
    for table in comparison.tables():
        chart = _charts(comparison) if table.title == "Texts" else ""
        sections.append(f"<section><h2>{escape(table.title)}</h2>{chart}{html_text(table)}</section>\n")
    if comparison.plan.prompts:
        sections.append(f"<section><h2>What they write</h2>{_written(comparison)}</section>\n")
    return render_page("Models compared", "".join(sections), TABLE_STYLE + _STYLE)


def _charts(comparison: Comparison) -> str:
    """Bars of bits per byte, a figure for each category, all on one scale."""
    categories = list(comparison.texts[0])
    shown = [*categories[: _MOST_CHARTS - 1], categories[-1]] if len(categories) > _MOST_CHARTS else categories
    bars = {name: [one[name].bits_per_byte for one in comparison.texts] for name in shown}
    longest = max(one.high or one.value for values in bars.values() for one in values)
    names = [one.name for one in comparison.models]
    figures = [
        f"<figure><figcaption>{escape(printable(category))}, bits per byte</figcaption>"
        f"{_bars(names, values, longest)}</figure>"
        for category, values in bars.items()
    ]
    return f'<div class="charts">{"".join(figures)}</div>'


def _bars(names: list[str], values: list[Interval], longest: float) -> str:
    """Horizontal bars with whiskers over their intervals."""
    left, right, step = 130, 310, 24
    marks = []
    for row, (name, one) in enumerate(zip(names, values, strict=True)):
        y, width = row * step, right * one.value / longest
        label = name if len(name) <= 18 else name[:17] + "…"
        marks.append(f'<text x="{left - 8}" y="{y + 16}" text-anchor="end">{escape(printable(label))}</text>')
        marks.append(
            f'<rect x="{left}" y="{y + 4}" width="{width:.1f}" height="16" rx="2" '
            f'fill="{_COLORS[row % len(_COLORS)]}"/>'
        )
        end = width
        if one.low is not None and one.high is not None:
            low, end = (right * bound / longest for bound in (one.low, one.high))
            marks.append(
                f'<path d="M{left + low:.1f} {y + 12}H{left + end:.1f}M{left + low:.1f} {y + 8}v8'
                f'M{left + end:.1f} {y + 8}v8" stroke="#1c2330" fill="none"/>'
            )
        marks.append(f'<text x="{left + end + 8:.1f}" y="{y + 16}">{one.value:.3f}</text>')
    return f'<svg viewBox="0 0 {left + right + 60} {step * len(names)}" role="img">{"".join(marks)}</svg>'


def _written(comparison: Comparison) -> str:
    columns = f"grid-template-columns: repeat({min(3, len(comparison.models))}, 1fr)"
    parts = []
    for number, prompt in enumerate(comparison.plan.prompts):
        cells = "".join(
            f"<div><h4>{escape(printable(one.name))}</h4><p>{escape(printable(one.continuations[number]))}</p></div>"
            for one in comparison.models
        )
        parts.append(f'<p class="prompt">{escape(printable(prompt))}</p><div class="written" style="{columns}">')
        parts.append(f"{cells}</div>")
    return "".join(parts)
