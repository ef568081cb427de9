"""A benchmark's figures for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from colossal_llama.benchmarking.clock import OTHER
from colossal_llama.benchmarking.figures import RunFigures
from colossal_llama.config.benchmark import OWN_LOOP, BenchmarkConfig
from colossal_llama.planning.description import in_units


def describe(command: str, machine: dict[str, Any], config: BenchmarkConfig, figures: Sequence[RunFigures]) -> str:
    """What was run on what, the table of all contenders, and where the time of a step goes."""
    known = {name: value for name, value in machine.items() if value is not None}
    lines = [
        f"$ {command}",
        ", ".join(f"{name} {value}" for name, value in known.items()),
        f"{config.model}, rows of {config.max_length} tokens, {config.mixed_precision}, plugin {config.plugin}, "
        f"{figures[0].devices} process(es): {config.num_steps} timed steps after {config.ignore_steps}",
        "",
        *speed_lines(figures),
        *split_lines(figures),
        *notes(figures),
    ]
    return "\n".join(lines)


def speed_lines(figures: Sequence[RunFigures]) -> list[str]:
    """A row for each contender; ratios are to this project's loop."""
    head = ["", "tokens/s", "samples/s", "median step (s)", "TFLOP/s a device", "MFU", "peak memory", "loss", "ratio"]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    own = next(one for one in figures if one.contender == OWN_LOOP)
    for one in figures:
        if not one.seconds:
            lines.append(f"| {one.contender} | not measured: {one.failure} |" + " |" * (len(head) - 2))
            continue
        cells = [
            one.contender,
            f"{one.tokens_per_second:,.1f}",
            f"{one.rows_per_second:,.3f}",
            f"{one.median_seconds:.4f}",
            "" if one.tflops_per_device is None else f"{one.tflops_per_device:,.4g}",
            "" if one.mfu is None else f"{one.mfu:.1%}",
            in_units(one.peak_memory_bytes),
            f"{one.losses[-1]:.4f}",
            f"{one.tokens_per_second / own.tokens_per_second:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def split_lines(figures: Sequence[RunFigures]) -> list[str]:
    """Where the time of a step of this project's loop goes."""
    lines = []
    for one in figures:
        if not one.split or one.split_seconds is None:
            continue
        lines += ["", f"| {one.contender}: part of a step | s | share |", "|---|---:|---:|"]
        for name, seconds in one.split.items():
            shown = "the loop itself" if name == OTHER else name
            lines.append(f"| {shown} | {seconds:.4f} | {seconds / one.split_seconds:.1%} |")
        lines.append(f"| step, with the device waited for at each change | {one.split_seconds:.4f} | |")
        lines.append(f"A rank sends {in_units(one.sent_bytes or 0)} a step.")
    return lines


def notes(figures: Sequence[RunFigures]) -> list[str]:
    """What the columns mean."""
    lines = [
        "",
        "TFLOP/s: (6 N + 12 L H Q T) FLOPs a token (PaLM, appendix B) times tokens/s, by the devices; MFU: its share "
        "of a device's peak. Peak memory: tensors on a GPU, the whole process on the host.",
    ]
    lines += [
        f"{one.contender}: tensors took {in_units(one.tensor_bytes)} at most"
        for one in figures
        if one.tensor_bytes is not None
    ]
    lines += [f"{one.contender}: {one.note}" for one in figures if one.note]
    return lines
