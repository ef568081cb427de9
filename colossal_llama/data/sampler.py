"""The order in which rows are consumed: bucket by bucket, shuffled inside each."""

from collections.abc import Sequence

import numpy as np


class BucketSampler:
    """Order of all rows of an epoch as a function of the seed and the epoch alone.

    Buckets keep their order; inside a bucket the rows are permuted. Nothing depends on the number of processes,
    so a run can say where it stands by the number of samples consumed.

    Args:
        bucket_sizes: rows per bucket; rows are numbered through in this order.
        seed: seed of the permutations.
    """

    def __init__(self, bucket_sizes: Sequence[int], seed: int) -> None:
        self._bucket_sizes = list(bucket_sizes)
        self._seed = seed

    def epoch_order(self, epoch: int) -> np.ndarray:
        """Row numbers in the order of consumption: int64 ``[rows]``."""
        orders = []
        start = 0
        for bucket, size in enumerate(self._bucket_sizes):
            permutation = np.random.default_rng([self._seed, epoch, bucket]).permutation(size)
            orders.append(start + permutation)
            start += size
        return np.concatenate(orders).astype(np.int64) if orders else np.zeros(0, np.int64)

    def places(self, row_numbers: np.ndarray) -> dict[int, list[int]]:
        """Where rows lie: by bucket, their numbers in that bucket; both count from 0.

        Args:
            row_numbers: as :meth:`epoch_order` gives them.
        """
        starts = np.cumsum([0, *self._bucket_sizes])
        buckets = np.searchsorted(starts, row_numbers, side="right") - 1
        return {
            bucket: (row_numbers[buckets == bucket] - starts[bucket]).tolist()
            for bucket in dict.fromkeys(buckets.tolist())
        }


class GivenOrder:
    """The same rows in the same order, epoch after epoch.

    Args:
        row_numbers: the rows.
    """

    def __init__(self, row_numbers: Sequence[int] | np.ndarray) -> None:
        self._row_numbers = np.asarray(row_numbers, dtype=np.int64)

    def epoch_order(self, epoch: int) -> np.ndarray:
        """Row numbers: int64 ``[rows]``."""
        return self._row_numbers
