"""The parts that only the data report's page is made of: values in plain words and inline SVG, without scripts."""

from collections.abc import Sequence
from html import escape
from typing import Any


def show_number(value: float) -> str:
    """A number with separators; three decimals where it is no integer."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"


def show_share(part: float, whole: float) -> str:
    """A share in percent; nothing of nothing."""
    return f"{part / whole:.2%}" if whole else ""


def show_value(value: Any) -> str:
    """A manifest value in plain words."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return show_number(value)
    if isinstance(value, dict):
        return ", ".join(f"{words(name)}: {show_value(inner)}" for name, inner in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(show_value, value)) or "none"
    return str(value)


def words(name: str) -> str:
    """The name of a field in words."""
    return str(name).replace("_", " ")


def svg_bars(values: Sequence[int], labels: Sequence[str]) -> str:
    """Vertical bars as inline SVG; a bar's label and value are its tooltip."""
    width, height, left, bottom, top = 640, 240, 58, 74, 12
    highest = max([*values, 1])
    step = (width - left) / max(1, len(values))
    tall = height - bottom - top
    marks = []
    for value in sorted({0, highest // 2, highest}):
        y = top + tall * (1 - value / highest)
        marks.append(f'<line x1="{left}" x2="{width}" y1="{y:.1f}" y2="{y:.1f}"/>')
        marks.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value:,}</text>')
    every = -(-len(values) // 16)
    for index, (value, label) in enumerate(zip(values, labels, strict=True)):
        x, bar = left + index * step, tall * value / highest
        bar = max(bar, 1.0) if value else 0.0
        marks.append(
            f'<rect x="{x + step * 0.08:.1f}" y="{top + tall - bar:.1f}" width="{step * 0.84:.1f}" '
            f'height="{bar:.1f}"><title>{escape(label)}: {value:,}</title></rect>'
        )
        if index % every == 0:
            place = f"{x + step / 2:.1f} {top + tall + 12}"
            marks.append(f'<text transform="translate({place}) rotate(-45)" text-anchor="end">{escape(label)}</text>')
    return f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(marks)}</svg>'


STYLE = """
svg { width: 100%; height: auto; } svg text { font-size: 11px; fill: #5a6478; }
svg line { stroke: #e3e7ee; } svg rect { fill: #3b74c4; }
.row { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid #d5dae3; border-radius: 6px;
  padding: .5rem .8rem; max-height: 24rem; overflow-y: auto; }
.learned { background: #dff3e3; }
.given { color: #6b7280; background: #f1f1f3; text-decoration: underline dotted; }
.mark { display: block; width: fit-content; margin: .4rem 0 .1rem; padding: 0 .5rem; border-radius: 4px;
  background: #23406e; color: #fff; font-size: .8rem; text-decoration: none; }
p .mark { display: inline; }
"""
"""What the report adds to the style of all pages."""
