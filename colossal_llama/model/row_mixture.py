"""Weighted means of a matrix's rows, many at a time."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclasses.dataclass(frozen=True)
class RowMixture:
    """What several new rows are made of, one after the other.

    Attributes:
        numbers: (all parts,) int64, row numbers.
        weights: (all parts,) float32, positive; within a row only their ratios matter.
        lengths: (rows,) int64, how many parts each row has; 0 is allowed.
    """

    numbers: "torch.Tensor"
    weights: "torch.Tensor"
    lengths: "torch.Tensor"

    @classmethod
    def of(cls, groups: Sequence[Sequence[int]], weights: Sequence[Sequence[float]] | None = None) -> "RowMixture":
        """From row numbers and, unless all weigh the same, weights of each row."""
        import torch

        numbers = torch.tensor([number for group in groups for number in group], dtype=torch.int64)
        factors = torch.ones(len(numbers))
        if weights is not None:
            factors = torch.tensor([factor for group in weights for factor in group], dtype=torch.float32)
        return cls(numbers, factors, torch.tensor([len(group) for group in groups], dtype=torch.int64))

    def mix(self, weight: "torch.Tensor", default: "torch.Tensor") -> "torch.Tensor":
        """The rows.

        Args:
            weight: (old rows, width) of any floating dtype; only the rows in use become float32.
            default: (width,) float32, the row that has no parts.

        Returns:
            (rows, width) in float32, in which the means are computed too.
        """
        import torch

        used, position = torch.unique(self.numbers, return_inverse=True)
        starts = torch.cumsum(self.lengths, 0) - self.lengths
        totals = torch.zeros(len(self.lengths)).index_add_(
            0, torch.repeat_interleave(torch.arange(len(self.lengths)), self.lengths), self.weights
        )
        rows = torch.nn.functional.embedding_bag(
            position, weight[used].float(), starts, mode="sum", per_sample_weights=self.weights
        )
        rows /= totals.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1)
        rows[self.lengths == 0] = default
        return rows
