"""Curves as inline SVG: no script, no library, so that a report opens offline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

COLORS = ("#3b74c4", "#d08a2e", "#3d9a6d", "#b0506f", "#7a63b8", "#5b8a99", "#8c7a4a", "#777f8f")

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 12, 30
MOST_POINTS = 1200
"""Points of a curve; of more, the lowest and highest of each stretch are drawn, so that no spike is lost."""
LEGEND_LINE = 18
LETTER_WIDTH = 6.4


@dataclass(frozen=True)
class Curve:
    """A line through points ``(x, y)``, x ascending; ``faint`` where another one smooths it, ``dots`` marks points."""

    label: str
    points: Sequence[tuple[float, float]]
    faint: bool = False
    dots: bool = False


def svg_curves(curves: Sequence[Curve], x_label: str = "step") -> str:
    """The curves in one frame with a common scale, a legend where there are several, and their values as tooltips."""
    curves = [Curve(curve.label, thinned(curve.points), curve.faint, curve.dots) for curve in curves if curve.points]
    if not curves:
        return ""
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points]
    x_ticks, y_ticks = ticks(min(xs), max(xs), 8), ticks(min(ys), max(ys), 5)
    low_x, high_x = min(xs), max(max(xs), min(xs) + 1e-9)
    low_y, high_y = min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        right = LEFT + (x - low_x) / (high_x - low_x) * (WIDTH - LEFT - RIGHT)
        return right, TOP + (high_y - y) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM)

    marks = _frame(x_ticks, y_ticks, place, x_label)
    for number, curve in enumerate(curves):
        marks += _curve(curve, COLORS[number % len(COLORS)], place)
    legend, lines = _legend(curves) if len(curves) > 1 else ([], 0)
    height = HEIGHT + lines * LEGEND_LINE
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(marks + legend)}</svg>'


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most :data:`MOST_POINTS` of the points, the extremes among them."""
    if len(points) <= MOST_POINTS:
        return list(points)
    stretches = MOST_POINTS // 2
    kept = []
    for start, end in pairwise(len(points) * number // stretches for number in range(stretches + 1)):
        stretch = points[start:end]
        kept += sorted({min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])})
    return kept


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """About ``wanted`` round numbers from ``low`` or just below to ``high`` or just above."""
    if high <= low:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    raw = (high - low) / wanted
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw)
    return [step * number for number in range(math.floor(low / step), math.ceil(high / step) + 1)]


def show_tick(value: float, ticks: Sequence[float]) -> str:
    """A tick's label: as many decimals as tell it from its neighbours, powers of ten for small numbers."""
    step = abs(ticks[1] - ticks[0]) if len(ticks) > 1 else abs(value) or 1.0
    if max(abs(tick) for tick in ticks) < 1e-2:
        return f"{value:.2g}" if value else "0"
    decimals = max(0, -math.floor(math.log10(step)) + (1 if f"{step:e}"[2:4] == "50" and f"{step:e}"[0] == "2" else 0))
    return f"{value:,.{decimals}f}"


def _frame(x_ticks: Sequence[float], y_ticks: Sequence[float], place: object, x_label: str) -> list[str]:
    marks = []
    bottom = HEIGHT - BOTTOM
    for y in y_ticks:
        _, height = place(0, y)  # type: ignore[operator]
        marks.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        label = show_tick(y, y_ticks)
        marks.append(f'<text x="{LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{label}</text>')
    for x in x_ticks:
        right, _ = place(x, y_ticks[0])  # type: ignore[operator]
        if not LEFT - 0.5 <= right <= WIDTH - RIGHT + 0.5 or x != int(x):
            continue
        marks.append(f'<text x="{right:.1f}" y="{bottom + 16}" text-anchor="middle">{int(x):,}</text>')
    marks.append(f'<text x="{WIDTH - RIGHT}" y="{bottom + 28}" text-anchor="end">{escape(x_label)}</text>')
    return marks


def _curve(curve: Curve, color: str, place: object) -> list[str]:
    spots = [place(x, y) for x, y in curve.points]  # type: ignore[operator]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
    look = 'stroke-width="1" stroke-opacity="0.45"' if curve.faint else 'stroke-width="1.6"'
    marks = [f'<polyline points="{path}" fill="none" stroke="{color}" stroke-linejoin="round" {look}/>']
    if curve.dots or len(spots) == 1:
        for (x, y), (step, value) in zip(spots, curve.points, strict=True):
            title = f"{escape(curve.label)}: {value:.4g} at {step:,.0f}"
            marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{color}"><title>{title}</title></circle>')
    return marks


def _legend(curves: Sequence[Curve]) -> tuple[list[str], int]:
    """The marks of the legend below the frame, and its lines."""
    marks, x, line = [], float(LEFT), 0
    for number, curve in enumerate(curves):
        label = curve.label if len(curve.label) <= 40 else curve.label[:39] + "…"
        wide = sum(2 if ord(letter) > 0x2E7F else 1 for letter in label) * LETTER_WIDTH + 30
        if x + wide > WIDTH and x > LEFT:
            x, line = float(LEFT), line + 1
        y = HEIGHT + line * LEGEND_LINE + 8
        color = COLORS[number % len(COLORS)]
        marks.append(f'<rect x="{x:.1f}" y="{y - 3}" width="14" height="4" style="fill:{color}"/>')
        marks.append(f'<text x="{x + 19:.1f}" y="{y + 3}">{escape(label)}</text>')
        x += wide
    return marks, line + 1
