"""Embedding rows of control tokens that no training has touched, and that the coming one would leave as they are.

An answer ends when the model gives its end token. Where that token's output row is all zero, or equals another token's,
and is frozen (LoRA without the embeddings), no training can teach it: answers go on to the length limit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

TINY = 1e-16
"""Rows of reserved tokens in published models (Llama 3) are not exactly zero, but smaller than this everywhere."""


def untrained_rows(weight: torch.Tensor, tokens: Mapping[str, int]) -> dict[str, str]:
    """Which tokens have rows that cannot have been trained, and why.

    Args:
        weight: float ``[vocabulary, width]``.
        tokens: ids by token.

    Returns:
        By token: ``all zero``, or ``equal to the row of id N``.
    """
    import torch

    found = {}
    for token, token_id in tokens.items():
        row = weight[token_id]
        if row.abs().max() <= TINY:
            found[token] = "all zero"
            continue
        alike = torch.nonzero(weight[:, 0] == row[0]).flatten()
        twins = [int(other) for other in alike if int(other) != token_id and torch.equal(weight[other], row)]
        if twins:
            found[token] = f"equal to the row of id {twins[0]}"
    return found


def describe_untrained(
    model: object, control_tokens: Mapping[str, int], end_tokens: Collection[str], frozen: Mapping[str, int | None]
) -> str | None:
    """One clause about control tokens whose rows are untrained and stay so, or None.

    Args:
        model: a causal LM, not wrapped yet.
        control_tokens: ids of the tokens that the data's texts hold, by token.
        end_tokens: those that the model must learn to give; only their output rows matter.
        frozen: for ``input`` and ``output``: rows below this number are not trained; None for all rows.
    """
    embeddings = {
        "input": model.get_input_embeddings(),  # type: ignore[attr-defined]
        "output": model.get_output_embeddings(),  # type: ignore[attr-defined]
    }
    for role, limit in frozen.items():
        if embeddings[role] is None:
            continue
        wanted = {
            token: token_id
            for token, token_id in control_tokens.items()
            if (limit is None or token_id < limit) and (role == "input" or token in end_tokens)
        }
        found = untrained_rows(embeddings[role].weight.detach(), wanted)
        if found:
            shown = ", ".join(f"{token} ({reason})" for token, reason in list(found.items())[:4])
            return f"rows of control tokens in the {role} embedding were never trained and would stay so: {shown}"
    return None
