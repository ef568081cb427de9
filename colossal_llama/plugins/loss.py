"""Cross entropy summed over target tokens, in fp32, for whole and for vocabulary-parallel logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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


def token_losses(logits: torch.Tensor, targets: torch.Tensor, layout: ParallelLayout) -> torch.Tensor:
    """Negative log-likelihood (nats) of each target this rank holds logits for; without gradient.

    Args:
        logits, targets, layout: as in :func:`token_loss_sum`.

    Returns:
        fp32 ``[batch, sequence (/ sp_size)]``, 0 where there is no target.
    """
    import torch.nn.functional as F

    mine = local_targets(targets, layout)
    scores = logits.float()
    if layout.tp_group is None or scores.shape[-1] == layout.vocab_size:
        flat = F.cross_entropy(scores.flatten(0, 1), mine.flatten(), ignore_index=IGNORE_INDEX, reduction="none")
        return flat.view(mine.shape)
    return _vocabulary_parallel_losses(scores, mine, layout.tp_group)


def _vocabulary_parallel_losses(scores: torch.Tensor, targets: torch.Tensor, group: Any) -> torch.Tensor:
    """Each rank of ``group`` has an equal share of the vocabulary, in order (Colossal-AI has sum and mean only)."""
    import torch.distributed as dist

    size = scores.shape[-1]
    highest = scores.amax(dim=-1)
    dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=group)
    exponentials = (scores - highest[..., None]).exp().sum(dim=-1)
    place = targets - dist.get_rank(group) * size
    is_mine = (place >= 0) & (place < size)
    score = scores.gather(-1, place.clamp(0, size - 1)[..., None])[..., 0].masked_fill(~is_mine, 0)
    dist.all_reduce(exponentials, group=group)
    dist.all_reduce(score, group=group)
    return (exponentials.log() + highest - score).masked_fill(targets == IGNORE_INDEX, 0)
