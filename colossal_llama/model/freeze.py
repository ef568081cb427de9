"""Choosing what is trained."""

from __future__ import annotations

from typing import Any


def freeze_non_embedding_parameters(model: Any) -> tuple[int, int]:
    """Leave only the input and the output embedding trainable (the alignment stage after vocabulary expansion).

    Works for every causal LM of transformers: the embeddings are found by ``get_input_embeddings`` and
    ``get_output_embeddings``, tied or not.

    Returns:
        Number of trainable parameters and number of all parameters.
    """
    embeddings = [model.get_input_embeddings(), model.get_output_embeddings()]
    kept = {id(param) for module in embeddings if module is not None for param in module.parameters()}
    for param in model.parameters():
        param.requires_grad = id(param) in kept
    trainable = sum(param.numel() for param in model.parameters() if param.requires_grad)
    return trainable, sum(param.numel() for param in model.parameters())
