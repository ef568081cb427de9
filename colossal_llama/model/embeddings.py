"""Widening a model's vocabulary: new embedding rows are means of old ones, in input and output embeddings."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from colossal_llama.errors import UserError
from colossal_llama.quiet import quiet_transformers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def mean_rows(weight: "torch.Tensor", groups: Sequence[Sequence[int]]) -> "torch.Tensor":
    """The mean of several rows of ``weight``, for each group of row numbers.

    Args:
        weight: (rows, ...) of any floating dtype.
        groups: row numbers, at least one in each group; a row given twice counts twice.

    Returns:
        (len(groups), ...) in float32, in which the means are computed too.
    """
    import torch

    lengths = torch.tensor([len(group) for group in groups])
    numbers = torch.tensor([row for group in groups for row in group])
    used, position = torch.unique(numbers, return_inverse=True)
    rows = weight.detach()[used.to(weight.device)].float().cpu()  # only the rows in use become float32
    means = torch.nn.functional.embedding_bag(
        position, rows.reshape(len(used), -1), torch.cumsum(lengths, 0) - lengths, mode="mean"
    )
    return means.reshape(len(groups), *weight.shape[1:])


def expand_embeddings(
    model: "PreTrainedModel",
    old_ids: Sequence[int],
    new_ids: Sequence[int],
    sub_tokens: Sequence[Sequence[int]],
    pad_to_multiple_of: int = 1,
) -> int:
    """Give ``model`` a row for each new id, in place.

    Old rows keep their bits, tied embeddings stay tied, ``config.vocab_size`` follows, the dtype stays. A
    model that already has more rows than tokens (Qwen) keeps them all, and new ids that fall on such unused
    rows overwrite them. Rows appended without a token (``pad_to_multiple_of``) get the mean of all old
    tokens' rows: their logit then is the average one, while a zero row's logit of 0 can outrank every token.

    Args:
        model: a causal language model of transformers.
        old_ids: the ids that the model was trained with.
        new_ids: the ids to add, none of them an old one.
        sub_tokens: for each new id, the old ids whose mean it starts from; at least one.
        pad_to_multiple_of: the number of rows becomes a multiple of this.

    Returns:
        The number of embedding rows now.

    Raises:
        UserError: the model has fewer rows than the old ids need.
    """
    import torch

    rows = model.get_input_embeddings().weight.shape[0]
    if rows <= max(old_ids):
        raise UserError(
            f"the model in {model.name_or_path} has {rows} embedding rows but its tokenizer has ids up to "
            f"{max(old_ids)}; give the tokenizer that the model was trained with"
        )
    new_rows = max([rows, *(token_id + 1 for token_id in new_ids)])
    new_rows += -new_rows % pad_to_multiple_of
    groups = [*sub_tokens, old_ids]
    means = [mean_rows(tensor, groups) for tensor in _row_tensors(model)]
    with quiet_transformers():
        model.resize_token_embeddings(new_rows, mean_resizing=False)
    with torch.no_grad():
        for tensor, mean in zip(_row_tensors(model), means, strict=True):
            tensor[rows:] = mean[-1].to(tensor)
            tensor[list(new_ids)] = mean[:-1].to(tensor)
    return new_rows


def _row_tensors(model: "PreTrainedModel") -> list["torch.Tensor"]:
    """The tensors with one row a token: input and output embeddings (one when tied), output bias."""
    source = model.get_input_embeddings()
    output = model.get_output_embeddings()
    tensors = [source.weight]
    if output is not None and output.weight is not source.weight:
        tensors.append(output.weight)
    if output is not None and getattr(output, "bias", None) is not None:
        tensors.append(output.bias)
    return [tensor.data for tensor in tensors]
