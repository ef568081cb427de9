"""Training only the new rows of the embeddings (the alignment stage after vocabulary expansion)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any


def freeze_first_rows(weights: Iterable[Any], rows: int, shard: int = 0) -> None:
    """Zero the gradients of the first rows of embedding weights, before anything else sees them.

    The gradient's norm, its clipping and the optimizer's moments are then those of the other rows alone. An optimizer
    whose update of an element is zero where its gradients were always zero leaves these rows as they are, to the bit,
    if it does not decay them; all of :data:`optim.OPTIMIZERS` do.

    Call it before the model is boosted: the plugins keep the parameters, and Gemini takes gradients away in a hook
    of its own, which must come later.

    Args:
        weights: float ``[vocabulary, width]`` each, trainable.
        rows: number of rows that stay.
        shard: which equal part of the vocabulary's rows this rank will hold, where it is split (its tensor-parallel
            rank).
    """
    for weight in weights:
        weight.register_hook(partial(_without_first_rows, rows=rows, shard=shard, vocabulary=weight.shape[0]))


def _without_first_rows(grad: Any, rows: int, shard: int, vocabulary: int) -> Any:
    """``grad`` (float ``[local rows, width]``) with zeros in the frozen ones of this rank's rows."""
    start = shard * grad.shape[0] if grad.shape[0] < vocabulary else 0
    frozen = min(max(rows - start, 0), grad.shape[0])
    masked = grad.clone()
    masked[:frozen] = 0
    return masked
