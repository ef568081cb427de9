"""The picture and the table of a compression curve."""

from collections.abc import Sequence
from pathlib import Path

from colossal_llama.atomic import scratch_beside
from colossal_llama.errors import UserError
from colossal_llama.tokenizer.compression import CurvePoint


def require_matplotlib(flag: str) -> None:
    """Refuse a plot before any work is done for it.

    Raises:
        UserError: matplotlib is not installed.
    """
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise UserError(
            f"{flag}: needs matplotlib; pip install 'colossal_llama[demo]', or leave the flag out: "
            "the same figures are printed"
        )


def curve_table(points: Sequence[CurvePoint], marked: CurvePoint | None) -> str:
    """One line a point, for the terminal; the knee is marked."""
    base = points[0].tokens
    lines = [f"{'pieces':>8} {'vocabulary':>10} {'tokens':>12} {'tokens/character':>16} {'saved':>7}"]
    for point in points:
        mark = "  <- knee" if point == marked else ""
        lines.append(
            f"{point.pieces:>8,} {point.vocabulary:>10,} {point.tokens:>12,} {point.compression:>16.4f} "
            f"{1 - point.tokens / base:>7.1%}{mark}"
        )
    return "\n".join(lines)


def draw_curve(path: Path, points: Sequence[CurvePoint], marked: CurvePoint | None, title: str) -> None:
    """Write a PNG of tokens per character against vocabulary size, with the chord and the knee.

    Raises:
        UserError: the file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    sizes, rates = [point.vocabulary for point in points], [point.compression for point in points]
    axis.plot(sizes, rates, marker="o", color="#3b74c4", label="measured")
    axis.plot([sizes[0], sizes[-1]], [rates[0], rates[-1]], color="grey", linestyle=":", linewidth=1, label="chord")
    if marked is not None:
        axis.plot([marked.vocabulary], [marked.compression], marker="o", markersize=11, color="#d1495b", linestyle="")
        axis.annotate(
            f"knee: {marked.pieces:,} pieces\n{marked.compression:.3f} tokens per character",
            (marked.vocabulary, marked.compression),
            xytext=(14, 14),
            textcoords="offset points",
            color="#d1495b",
        )
    axis.set_xlabel("vocabulary size")
    axis.set_ylabel("tokens per character, held-out text")
    axis.set_title(title, fontsize=10)
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.grid(alpha=0.3)
    axis.legend()
    try:
        with scratch_beside(path) as scratch:
            figure.savefig(scratch, dpi=100, format="png")
    finally:
        pyplot.close(figure)
