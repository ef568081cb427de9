"""Random rows for measuring speed without data."""

import numpy as np

from colossal_llama.data.loader import Row

DOCUMENTS = 4
"""Documents in a row: an SFT row of a few thousand tokens holds about as many conversations."""


class RandomRows:
    """``count`` rows of ``length`` random token ids with loss everywhere; the same rows for the same seed.

    ``seq_lengths`` cut each row into four documents, nearly equal in length.
    """

    has_seq_lengths = True

    def __init__(self, count: int, length: int, vocab_size: int, seed: int) -> None:
        self._count = count
        self._length = length
        self._vocab_size = vocab_size
        self._seed = seed

    @property
    def bucket_sizes(self) -> list[int]:
        """All rows in one bucket."""
        return [self._count]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Row:
        ids = np.random.default_rng([self._seed, index]).integers(0, self._vocab_size, self._length, np.int32)
        ends = np.arange(DOCUMENTS + 1, dtype=np.int32) * self._length // DOCUMENTS
        return {"input_ids": ids, "labels": ids.copy(), "seq_lengths": np.diff(ends)}

    def fingerprint(self) -> str:
        """What the rows follow from."""
        return f"random-{self._seed}-{self._length}-{self._vocab_size}"

    def check_documents(self) -> None:
        """They add up."""
