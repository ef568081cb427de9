"""Cross entropy summed over target tokens, in fp32, for whole and for vocabulary-parallel logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from colossal_llama.constants import IGNORE_INDEX

if TYPE_CHECKING:
    import torch

    from colossal_llama.plugins.base import ParallelLayout


def local_targets(targets: torch.Tensor, layout: ParallelLayout) -> torch.Tensor:
    """The targets of the positions whose logits this rank holds.

    Args:
        targets: int64 ``[batch, sequence]``, already shifted by one.
        layout: sequence-parallel ranks hold consecutive, equal slices of the sequence.

    Returns:
        int64 ``[batch, sequence / sp_size]``.
    """
    return targets.chunk(layout.sp_size, dim=1)[layout.sp_rank] if layout.sp_size > 1 else targets


def token_loss_sum(logits: torch.Tensor, targets: torch.Tensor, layout: ParallelLayout) -> torch.Tensor:
    """Sum of the negative log-likelihoods (nats) of the targets this rank holds logits for.

    Positions with :data:`IGNORE_INDEX` count nothing; a batch without targets gives zero, not NaN. Computed in
    fp32 whatever the logits' dtype: in bf16 the loss itself would be rounded to steps of 1/128 and coarser.

    Args:
        logits: ``[batch, sequence (/ sp_size), vocabulary (/ tp size, unless gathered)]``, any float dtype.
        targets: int64 ``[batch, sequence]``, already shifted by one.
        layout: says how the logits are split.
    """
    import torch.nn.functional as F

    flat_targets = local_targets(targets, layout).reshape(-1)
    flat_logits = logits.reshape(-1, logits.shape[-1]).float()
    if layout.tp_group is None or flat_logits.shape[-1] == layout.vocab_size:
        return F.cross_entropy(flat_logits, flat_targets, ignore_index=IGNORE_INDEX, reduction="sum")
    from colossalai.shardformer.layer.loss import cross_entropy_1d

    return cross_entropy_1d(
        flat_logits,
        flat_targets,
        ignore_index=IGNORE_INDEX,
        process_group=layout.tp_group,
        dtype=flat_logits.dtype,
        mode="sum",
    )
