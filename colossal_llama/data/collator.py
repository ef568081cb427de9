"""From rows to one batch of tensors."""

from collections.abc import Sequence

import numpy as np
import torch

from colossal_llama.constants import IGNORE_INDEX


class PackedCollator:
    """Pads rows on the right and shifts the labels, once and here.

    No attention mask is made, and none is needed: attention is causal and padding comes last, so no real
    position can see it, and the targets of padding are ignored. (A mask of ``ids != pad_token_id`` would hide
    every real end-of-sequence token wherever the padding token is the end-of-sequence token.)

    Attributes:
        pad_token_id: id that fills up; any id of the vocabulary will do.
        max_length: length of the batch in mode "max_length", and the longest row accepted.
        padding_mode: "max_length" gives batches of one shape; "longest" fits each batch to its longest row.
        multiple_of: the batch's length is rounded up to a multiple of this.
    """

    def __init__(self, pad_token_id: int, max_length: int, padding_mode: str, multiple_of: int = 1) -> None:
        if padding_mode not in ("max_length", "longest"):
            raise ValueError(f"padding_mode must be max_length or longest, not {padding_mode!r}")
        self.pad_token_id = pad_token_id
        self.max_length = max_length
        self.padding_mode = padding_mode
        self.multiple_of = multiple_of

    def __call__(self, rows: Sequence[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
        """Collate rows.

        Args:
            rows: dictionaries of ``input_ids`` and ``labels``, int arrays [length].

        Returns:
            ``input_ids`` and ``targets``, int64 [B, S]; ``targets[b, t]`` is ``labels[b, t + 1]``, and
            ``IGNORE_INDEX`` at a row's last position and in padding.

        Raises:
            ValueError: a row is longer than ``max_length``.
        """
        length = self._length(rows)
        input_ids = np.full((len(rows), length), self.pad_token_id, dtype=np.int64)
        targets = np.full((len(rows), length), IGNORE_INDEX, dtype=np.int64)
        for number, row in enumerate(rows):
            size = len(row["input_ids"])
            input_ids[number, :size] = row["input_ids"]
            targets[number, : max(size - 1, 0)] = row["labels"][1:]
        return {"input_ids": torch.from_numpy(input_ids), "targets": torch.from_numpy(targets)}

    def _length(self, rows: Sequence[dict[str, np.ndarray]]) -> int:
        longest = max((len(row["input_ids"]) for row in rows), default=0)
        if longest > self.max_length:
            raise ValueError(f"a row of {longest} tokens is longer than max_length {self.max_length}")
        length = self.max_length if self.padding_mode == "max_length" else max(longest, 1)
        return -(-length // self.multiple_of) * self.multiple_of
