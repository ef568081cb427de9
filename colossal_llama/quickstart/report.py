"""The quickstart's tables of its steps and its figure; the table of the models is the comparison's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from colossal_llama.atomic import scratch_beside

Result = dict[str, Any]


def steps_table(steps: list[Result]) -> str:
    """Markdown table of seconds and tokens of each step."""
    lines = ["| step | seconds | tokens | tokens/s |", "|---|---:|---:|---:|"]
    for step in steps:
        tokens = step.get("tokens")
        seconds = step.get("training_seconds", step["seconds"])
        rate = f"{tokens / seconds:.0f}" if tokens and seconds else ""
        lines.append(f"| {step['title']} | {step['seconds']:.1f} | {tokens or ''} | {rate} |")
    lines.append(f"| all | {sum(step['seconds'] for step in steps):.1f} | | |")
    return "\n".join(lines)


def stages_table(measurements: list[tuple[str, Result]]) -> str:
    """Markdown table of bits per byte after each stage."""
    lines = ["| after | Chinese bits/byte | English bits/byte |", "|---|---:|---:|"]
    lines += [
        f"| {name} | {result['chinese']['bits_per_byte']:.3f} | {result['english']['bits_per_byte']:.3f} |"
        for name, result in measurements
    ]
    return "\n".join(lines)


def draw_curves(path: Path, stages: list[tuple[str, list[float]]], measurements: list[tuple[str, Result]]) -> None:
    """Write a PNG: training loss over all steps, and bits per byte after each stage.

    Args:
        path: the PNG file.
        stages: label and losses (nats per target token) of each stage, in order.
        measurements: label and figures, the first before any training, then one after each stage.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (top, bottom) = pyplot.subplots(2, 1, figsize=(9, 7), sharex=True, layout="constrained")
    boundaries = [0]
    for name, losses in stages:
        first = boundaries[-1]
        top.plot(range(first + 1, first + len(losses) + 1), losses, label=name)
        boundaries.append(first + len(losses))
    top.set_ylabel("training loss (nats per target token)")
    top.legend()
    for language, marker in (("chinese", "o"), ("english", "s")):
        values = [result[language]["bits_per_byte"] for _, result in measurements]
        bottom.plot(boundaries[-len(values) :], values, marker=marker, label=language)
    bottom.set_ylabel("bits per UTF-8 byte")
    bottom.set_xlabel("optimizer step over all stages")
    bottom.set_ylim(bottom=0)
    bottom.legend()
    for axis in (top, bottom):
        axis.grid(alpha=0.3)
        for boundary in boundaries[1:-1]:
            axis.axvline(boundary, color="grey", linewidth=0.8, linestyle=":")
    with scratch_beside(path) as scratch:
        figure.savefig(scratch, dpi=120, format="png")
    pyplot.close(figure)
