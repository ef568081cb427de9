"""What the rows of new tokens start from: one registered method for each ``--init_method``.

A method computes in float32 and yields its rows in blocks, so that it needs memory for the old matrix and one block,
whatever the number of new tokens. All methods give input embeddings, output embeddings and output bias their rows in
the same way, each from its own old rows.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from colossal_llama.errors import UserError
from colossal_llama.model.row_mixture import RowMixture
from colossal_llama.registry import Registry

if TYPE_CHECKING:
    import torch

    from colossal_llama.model.auxiliary import AuxiliaryVectors

BLOCK = 1024
"""Rows computed at a time: 16 MiB of float32 for a model 4,096 wide."""

POSITION_DECAY = 0.8
"""Factor between the weights of neighbouring sub-tokens in ``weighted_mean``; see :func:`position_weights`."""

Role = Literal["input", "output", "tied"]


@dataclasses.dataclass(frozen=True)
class NewTokens:
    """The step from an old vocabulary to a wider one, in plain numbers.

    Attributes:
        old_ids: the ids that the model was trained with.
        new_ids: the ids to add, ascending, none of them an old one.
        sub_tokens: for each new id, the old ids that it replaces in running text, in their order; empty where
            the old tokenizer knows nothing of it.
        sub_token_lengths: for each of ``sub_tokens``, the characters of text that it stands for; at least 1.
        control_ids: ids of control tokens, whose rows must be neither zero nor equal to another.
    """

    old_ids: Sequence[int]
    new_ids: Sequence[int]
    sub_tokens: Sequence[Sequence[int]]
    sub_token_lengths: Sequence[Sequence[int]]
    control_ids: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True)
class OldRows:
    """One tensor with a row a token, and what a method may use to extend it.

    Attributes:
        weight: (rows, width) of any floating dtype, on the CPU; a bias has width 1.
        mean: (width,) in float32, the mean of the old tokens' rows.
        role: what the model does with the tensor; ``tied`` is both.
        is_bias: whether it is the output bias.
        seed: of whatever is drawn; differs between the tensors of a model.
        deviation: standard deviation of a fresh row (``initializer_range`` of the model's configuration).
        auxiliary: vectors that say which tokens are similar, for the methods that need them.
    """

    weight: "torch.Tensor"
    mean: "torch.Tensor"
    role: Role
    is_bias: bool = False
    seed: int = 0
    deviation: float = 0.02
    auxiliary: "AuxiliaryVectors | None" = None


InitMethod = Callable[[OldRows, NewTokens], "Iterator[torch.Tensor]"]
"""Yields the rows of ``new_ids`` in order, in blocks of (any number, width), float32."""

INIT_METHODS: Registry[InitMethod] = Registry("--init_method")


@INIT_METHODS.register("mean")
def mean(old: OldRows, tokens: NewTokens) -> "Iterator[torch.Tensor]":
    """The mean of the sub-tokens' rows; a sub-token that comes twice counts twice.

    Gee et al. 2022, Fast Vocabulary Transfer. Tokens of the same sub-tokens in another order start identical.
    """
    for at in _blocks(tokens):
        yield RowMixture.of(tokens.sub_tokens[at]).mix(old.weight, old.mean)


@INIT_METHODS.register("weighted_mean")
def weighted_mean(old: OldRows, tokens: NewTokens) -> "Iterator[torch.Tensor]":
    """The sub-tokens' rows weighted by their characters and by their position (:func:`position_weights`)."""
    for at in _blocks(tokens):
        weights = [
            [length * factor for length, factor in zip(lengths, position_weights(len(lengths), old.role), strict=True)]
            for lengths in tokens.sub_token_lengths[at]
        ]
        yield RowMixture.of(tokens.sub_tokens[at], weights).mix(old.weight, old.mean)


@INIT_METHODS.register("global_mean")
def global_mean(old: OldRows, tokens: NewTokens) -> "Iterator[torch.Tensor]":
    """The mean of all old tokens' rows, the same for every new token (Hewitt 2021)."""
    for at in _blocks(tokens):
        yield old.mean.repeat(len(tokens.new_ids[at]), 1)


@INIT_METHODS.register("gaussian")
def gaussian(old: OldRows, tokens: NewTokens) -> "Iterator[torch.Tensor]":
    """Draws from the normal distribution with mean and covariance of the old tokens' rows (Hewitt 2021).

    A millionth of the mean variance is added to every variance, so that the covariance has a Cholesky factor
    where the rows span fewer directions than they are wide.
    """
    import torch

    covariance = torch.zeros(len(old.mean), len(old.mean))
    for first in range(0, len(tokens.old_ids), BLOCK):
        centred = old.weight[tokens.old_ids[first : first + BLOCK]].float() - old.mean
        covariance.addmm_(centred.T, centred)
    covariance /= max(len(tokens.old_ids) - 1, 1)
    covariance.diagonal().add_(1e-6 * covariance.diagonal().mean() + torch.finfo(torch.float32).tiny)
    factor = torch.linalg.cholesky(covariance)
    del covariance
    draw = torch.Generator().manual_seed(old.seed)
    for at in _blocks(tokens):
        noise = torch.randn(len(tokens.new_ids[at]), len(factor), generator=draw)
        yield torch.addmm(old.mean, noise, factor.T)


@INIT_METHODS.register("random")
def random(old: OldRows, tokens: NewTokens) -> "Iterator[torch.Tensor]":
    """Fresh rows as transformers makes them: normal around 0 with ``initializer_range``; a bias is 0. A baseline."""
    import torch

    draw = torch.Generator().manual_seed(old.seed)
    deviation = 0.0 if old.is_bias else old.deviation
    for at in _blocks(tokens):
        yield deviation * torch.randn(len(tokens.new_ids[at]), old.weight.shape[1], generator=draw)


@INIT_METHODS.register("focus")
def focus(old: OldRows, tokens: NewTokens) -> "Iterator[torch.Tensor]":
    """Combinations of the rows of similar old tokens (FOCUS, Dobler and de Melo 2023, section 2.2).

    The similarity is the cosine of auxiliary vectors, the weights are its sparsemax over all old tokens that
    have a vector. A new token without a vector starts from the mean of its sub-tokens.

    Raises:
        UserError: there are no auxiliary vectors.
    """
    import torch

    from colossal_llama.model.auxiliary import similar_tokens

    if old.auxiliary is None:
        raise UserError("--init_method focus needs --auxiliary_embeddings: vectors that say which tokens are similar")
    for at in _blocks(tokens):
        rows = RowMixture.of(tokens.sub_tokens[at]).mix(old.weight, old.mean)
        new_ids = torch.tensor(tokens.new_ids[at])
        known = old.auxiliary.places[new_ids] >= 0
        if known.any():
            rows[known] = similar_tokens(old.auxiliary, new_ids[known]).mix(old.weight, old.mean)
        yield rows


def position_weights(count: int, role: Role) -> list[float]:
    """Weights of ``count`` sub-tokens by position: 1 at one end, ``POSITION_DECAY`` times less at each step from it.

    The output row of a token must be found where the model used to predict its first sub-token, so there the
    first one weighs most; after the input row the model goes on as after the last sub-token, so there the last
    one does. Tied rows are weighted like output rows. docs/embeddings.md has the measurements behind this.

    Two orders of the same sub-tokens get different rows: a row is fixed by the sum of the factors at the places
    of each sub-token, and no two different sets of powers of 4/5 have the same sum, because 4/5 is no root of
    a polynomial with coefficients -1, 0 and 1 (4 would have to divide its last one).
    """
    weights = [POSITION_DECAY**step for step in range(count)]
    return weights[::-1] if role == "input" else weights


def mean_of_rows(weight: "torch.Tensor", ids: Sequence[int]) -> "torch.Tensor":
    """The mean of many rows: (width,) in float32; blocks are summed in float32, their sums in float64."""
    import torch

    total = torch.zeros(weight.shape[1], dtype=torch.float64)
    for block in torch.tensor(list(ids)).split(BLOCK):
        total += weight[block].float().sum(0)
    return (total / len(ids)).float()


def _blocks(tokens: NewTokens) -> Iterator[slice]:
    for first in range(0, len(tokens.new_ids), BLOCK):
        yield slice(first, first + BLOCK)
