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
        document_mask: also say where the documents of a row begin, so that attention can stay inside them.
    """

    def __init__(
        self,
        pad_token_id: int,
        max_length: int,
        padding_mode: str,
        multiple_of: int = 1,
        document_mask: bool = False,
    ) -> None:
        if padding_mode not in ("max_length", "longest"):
            raise ValueError(f"padding_mode must be max_length or longest, not {padding_mode!r}")
        self.pad_token_id = pad_token_id
        self.max_length = max_length
        self.padding_mode = padding_mode
        self.multiple_of = multiple_of
        self.document_mask = document_mask

    def __call__(self, rows: Sequence[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
        """Collate rows.

        Args:
            rows: dictionaries of ``input_ids`` and ``labels``, int arrays [length]; with ``document_mask`` also of
                ``seq_lengths``, int [documents], which add up to the row's length.

        Returns:
            ``input_ids`` and ``targets``, int64 [B, S]; ``targets[b, t]`` is ``labels[b, t + 1]``, and
            ``IGNORE_INDEX`` at a row's last position and in padding. With ``document_mask`` also
            ``position_ids``, int64 [B, S]: they restart at 0 with every document, and padding counts as one; the
            last token of a document then has no target, whatever the next one's first label says.

        Raises:
            ValueError: a row is longer than ``max_length``, or its documents do not fill it.
        """
        length = self._length(rows)
        input_ids = np.full((len(rows), length), self.pad_token_id, dtype=np.int64)
        targets = np.full((len(rows), length), IGNORE_INDEX, dtype=np.int64)
        for number, row in enumerate(rows):
            size = len(row["input_ids"])
            input_ids[number, :size] = row["input_ids"]
            targets[number, : max(size - 1, 0)] = row["labels"][1:]
        batch = {"input_ids": input_ids, "targets": targets}
        if self.document_mask:
            batch["position_ids"] = np.stack([document_positions(row, length) for row in rows])
            # Position t is its document's last where t + 1 starts another one.
            targets[:, :-1][batch["position_ids"][:, 1:] == 0] = IGNORE_INDEX
        return {name: torch.from_numpy(values) for name, values in batch.items()}

    def _length(self, rows: Sequence[dict[str, np.ndarray]]) -> int:
        longest = max((len(row["input_ids"]) for row in rows), default=0)
        if longest > self.max_length:
            raise ValueError(f"a row of {longest} tokens is longer than max_length {self.max_length}")
        length = self.max_length if self.padding_mode == "max_length" else max(longest, 1)
        return -(-length // self.multiple_of) * self.multiple_of


def document_positions(row: dict[str, np.ndarray], length: int) -> np.ndarray:
    """Each position's distance from the start of its document; padding is the last document.

    Args:
        row: ``input_ids`` [size] and ``seq_lengths`` [documents].
        length: of the padded row.

    Returns:
        int64 [length].

    Raises:
        ValueError: the documents do not fill the row.
    """
    size = len(row["input_ids"])
    lengths = np.append(row["seq_lengths"], length - size).astype(np.int64)
    if lengths.sum() != length:
        raise ValueError(f"seq_lengths add up to {lengths[:-1].sum()}, but the row has {size} tokens")
    starts = np.cumsum(lengths) - lengths
    return np.arange(length, dtype=np.int64) - np.repeat(starts, lengths)
