"""Table and plots of ``vocabulary_expansion.py``'s curves."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BASELINE = "no expansion"
AXES = {"chinese_bytes": "Chinese text trained on (bytes)", "flops": "training compute (floating point operations)"}

Result = dict[str, Any]


def value_at(result: Result, axis: str, place: float, figure: str) -> float | None:
    """A curve's figure at a place of an axis, linear between its points; None beyond its end."""
    points = result["points"]
    for before, after in itertools.pairwise(points):
        if before[axis] <= place <= after[axis]:
            share = (place - before[axis]) / (after[axis] - before[axis])
            return before[figure] + share * (after[figure] - before[figure])
    return None


def gap(result: Result, baseline: Result, axis: str, figure: str = "chinese") -> float | None:
    """How far the curve is above the baseline's at the end of the shorter of the two (below 0: expansion wins)."""
    place = min(result["points"][-1][axis], baseline["points"][-1][axis])
    own, other = value_at(result, axis, place, figure), value_at(baseline, axis, place, figure)
    return None if own is None or other is None else own - other


def wins_from(result: Result, baseline: Result, axis: str) -> float | None:
    """The place from which on the curve's Chinese figure stays below the baseline's, to the end of the shorter one.

    The curves are straight between their points. None where it is not below at the end.
    """
    end = min(result["points"][-1][axis], baseline["points"][-1][axis])
    places = sorted(
        {point[axis] for one in (result, baseline) for point in one["points"] if point[axis] <= end} | {end}
    )
    gaps = [
        (place, own - other)
        for place in places
        if (own := value_at(result, axis, place, "chinese")) is not None
        and (other := value_at(baseline, axis, place, "chinese")) is not None
    ]
    if gaps[-1][1] >= 0:
        return None
    for (left, over), (right, under) in zip(reversed(gaps[:-1]), reversed(gaps[1:]), strict=True):
        if over >= 0:
            return left + (right - left) * over / (over - under)
    return gaps[0][0]


def baseline_of(result: Result, results: Sequence[Result]) -> Result:
    """The arm without new pieces to compare an arm with: the one with its learning rate, where there is one."""
    without = [one for one in results if not one["arm"]["pieces"]]
    same_rate = [one for one in without if one["arm"]["lr"] == result["arm"]["lr"]]
    return (same_rate or [one for one in without if one["name"] == BASELINE])[0]


def table(results: Sequence[Result]) -> str:
    """Markdown: every arm at the end of the short budget, and against its baseline at equal text and compute."""
    short = min(result["points"][-1]["chinese_bytes"] for result in results)
    lines = [
        f"| arm | tokens/character | untrained | Chinese at {short / 1000:.0f} kB | English there | at its end |"
        " gap at equal text | gap at equal compute | wins from (text) | wins from (compute) |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for result in results:
        points = result["points"]
        baseline = baseline_of(result, results)
        cells = [
            result["name"],
            f"{points[0]['tokens_per_character']:.3f}",
            f"{points[0]['chinese']:.3f}",
            _number(value_at(result, "chinese_bytes", short, "chinese")),
            _number(value_at(result, "chinese_bytes", short, "english")),
            f"{points[-1]['chinese']:.3f} ({points[-1]['chinese_bytes'] / 1000:.0f} kB)",
        ]
        for axis in AXES:
            cells.append("" if result is baseline else _number(gap(result, baseline, axis), sign=True))
        for axis in AXES:
            place = None if result is baseline else wins_from(result, baseline, axis)
            cells.append("" if result is baseline else "not here" if place is None else _place(axis, place))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _number(value: float | None, sign: bool = False) -> str:
    return "" if value is None else f"{value:+.3f}" if sign else f"{value:.3f}"


def _place(axis: str, place: float) -> str:
    return f"{place:.1e}" if axis == "flops" else f"{place / 1000:.0f} kB"


def draw(results: Sequence[Result], path: Path) -> None:
    """PNG: the sizes of the vocabulary above, the ways with one size below; against text and against compute."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 2, figsize=(13, 10), sharey="row", layout="constrained")
    plain = ("expansion", "pieces", "rate 3e-4")
    sizes = [one for one in results if one["name"].removesuffix(", aligned").endswith(plain)]
    ways = [one for one in results if one["name"] == BASELINE or one["arm"]["pieces"] == 1000]
    for row, (title, chosen) in enumerate((("size of the expansion", sizes), ("1000 pieces, in every way", ways))):
        for column, (axis, label) in enumerate(AXES.items()):
            panel = panels[row][column]
            for one in chosen:
                # The untrained models would take all the room.
                points = one["points"][1:]
                style = {"linewidth": 1.3} if one["arm"]["pieces"] else {"color": "black", "linewidth": 2.2}
                style["linestyle"] = "--" if "rate 3e-4" in one["name"] else "-"
                horizontal, vertical = [[point[key] for point in points] for key in (axis, "chinese")]
                panel.plot(horizontal, vertical, marker="o", markersize=3, label=one["name"], **style)
            panel.set_xscale("log")
            panel.set_xlabel(label)
            panel.set_title(title)
            panel.grid(alpha=0.3, which="both")
        panels[row][0].set_ylabel("bits per byte of Chinese")
        panels[row][1].legend(fontsize=8)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def write_report(results: Sequence[Result], output: Path) -> None:
    """Write ``table.md``, ``curves.png`` and ``results.json``, and print the table."""
    if not any(result["name"] == BASELINE for result in results):
        raise SystemExit(f"no report without the arm {BASELINE!r}; run it as well")
    text = table(results)
    print(text)
    (output / "table.md").write_text(text + "\n", encoding="utf-8")
    (output / "results.json").write_text(json.dumps(list(results), indent=2) + "\n", encoding="utf-8")
    draw(results, output / "curves.png")
