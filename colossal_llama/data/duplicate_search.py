"""Looking for duplicates in a corpus of finished shards, in the order of the input."""

from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path

import numpy as np

from colossal_llama.data.duplicates import ExactDuplicateIndex
from colossal_llama.data.near_duplicates import NearDuplicateIndex, NearDuplicateSettings
from colossal_llama.data.readers import Reject
from colossal_llama.data.shard_files import NOT_FIRST, SHINGLES, read_index, read_marks, shard_path

EXACT_DUPLICATE = "equal to an earlier text"
NEAR_DUPLICATE = "nearly equal to an earlier text"

_SHINGLE_BYTES = 4


class _ShingleFiles:
    """The shingles of documents, read from the shards when they are asked for; 8 bytes of memory a document."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ends: list[np.ndarray] = []
        self._firsts: list[int] = []

    def add_shard(self, first: int, counts: np.ndarray) -> None:
        """Tell of the next shard: the number of its first document, and the number of shingles of each."""
        self._firsts.append(first)
        self._ends.append(np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]))

    def __call__(self, document: int) -> np.ndarray:
        shard = bisect_right(self._firsts, document) - 1
        start, end = self._ends[shard][document - self._firsts[shard] :][:2].tolist()
        path = shard_path(self._folder, shard, SHINGLES)
        return np.fromfile(path, np.uint32, end - start, offset=start * _SHINGLE_BYTES)


def find_duplicates(
    folder: Path, shards: int, near: NearDuplicateSettings | None, note: Callable[[int, Reject], None]
) -> list[np.ndarray]:
    """Which documents repeat an earlier one; the first one stays.

    Args:
        folder, shards: where the documents and their marks are.
        near: also find texts that are nearly equal; the shards hold signatures and shingles then.
        note: gets the number of the input and a note for each, in order.

    Returns:
        For each shard, bool ``[documents]`` (all pieces of a conversation alike).
    """
    shingles = _ShingleFiles(folder)
    exact, similar = ExactDuplicateIndex(), None if near is None else NearDuplicateIndex(near, shingles)
    result: list[np.ndarray] = []
    position = 0
    for number in range(shards):
        marks, columns = read_marks(folder, number), read_index(folder, number).columns
        shingles.add_shard(position, marks.shingle_counts)
        repeated = np.zeros(len(columns.lengths), dtype=bool)
        for row, (place, key) in enumerate(zip(marks.places, marks.keys, strict=True)):
            if columns.characters[row] == NOT_FIRST:
                repeated[row] = repeated[row - 1]
                continue
            reason = EXACT_DUPLICATE if exact.is_duplicate(key) else None
            if reason is None and similar is not None and similar.is_duplicate(position + row, marks.signatures[row]):
                reason = NEAR_DUPLICATE
            if reason is not None:
                repeated[row] = True
                note(int(columns.inputs[row]), Reject(place, reason, f"{place}: {reason}", ""))
        position += len(repeated)
        result.append(repeated)
    return result
