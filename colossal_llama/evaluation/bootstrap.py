"""Confidence intervals of ratios of sums, by resampling documents (Efron's percentile bootstrap).

The documents are the units that are drawn, not tokens, because the tokens of one document depend on each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A figure with the bounds of its 95 % confidence interval; None where one document says nothing about them."""

    value: float
    low: float | None = None
    high: float | None = None

    def show(self, digits: int = 3) -> str:
        """As ``1.234 [1.200, 1.270]``."""
        if self.low is None or self.high is None:
            return f"{self.value:.{digits}f}"
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"

    def as_json(self) -> dict[str, float | None]:
        """Value and bounds as a mapping."""
        return {"value": self.value, "low": self.low, "high": self.high}


def resampled_sums(columns: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Sums over documents drawn with replacement, as many as there are.

    Args:
        columns: ``[figures, documents]``; all figures of a resample come from the same documents, so that
            differences between figures are paired.
        resamples: how often to draw.
        seed: the same seed and number of documents give the same draws.

    Returns:
        ``[resamples, figures]``.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    documents = columns.shape[1]
    sums = np.empty((resamples, columns.shape[0]))
    for row in range(resamples):
        counts = np.bincount(generator.integers(0, documents, documents), minlength=documents)
        sums[row] = columns @ counts
    return sums


def interval(value: float, draws: np.ndarray) -> Interval:
    """``value`` between the quantiles of the figure's resampled values; draws that are not finite are left out."""
    import numpy as np

    finite = draws[np.isfinite(draws)]
    if not len(finite):
        return Interval(float(value))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(finite, [tail, 1 - tail])
    return Interval(float(value), float(low), float(high))
