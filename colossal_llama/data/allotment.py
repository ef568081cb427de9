"""Which document goes where: validation, bins, and how often.

Everything here follows from the documents' lengths and the seed, one sub-dataset after the other.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from colossal_llama.data.corpus import Members
from colossal_llama.data.manifest import Share
from colossal_llama.data.shuffles import permutation
from colossal_llama.errors import UserError

_VALIDATION, _COPIES, _BINS = range(3)
"""Streams of random numbers: each purpose has its own."""

_AT_ONCE = 1 << 16
"""Documents that are looked at together, so that eight bytes for each do not count."""


@dataclass(slots=True)
class Allotment:
    """Which documents go where.

    Attributes:
        bins: number of bins.
        names: of the sub-datasets.
        epochs: passes over each.
        held: what of each is in the validation set; None without one.
        destinations: for each sub-dataset, number of the bin of each of its documents in each pass, or
            ``validation``, or ``nowhere``: unsigned integers ``[passes, documents]`` as small as they can be.
    """

    bins: int
    names: list[str]
    epochs: list[float]
    held: list[Share] | None
    destinations: list[np.ndarray]

    @property
    def validation(self) -> int:
        """Stands for the validation set, after the bins."""
        return self.bins

    @property
    def nowhere(self) -> int:
        """Stands for documents that a pass leaves out."""
        return self.bins + 1


def allot(
    members: list[Members], names: list[str], weights: Sequence[float] | None, fraction: float, bins: int, seed: int
) -> Allotment:
    """Deal the documents out: bin i gets bin i of every sub-dataset.

    Args:
        members: the documents of each sub-dataset; forgotten on the way, to make room for where they go.
        names: of the sub-datasets.
        weights: shares of all tokens, see :func:`epochs_of`.
        fraction: of each sub-dataset's documents for the validation set, see :func:`set_aside`.
        bins: number of bins.
        seed: of all draws.
    """
    held = [Share(0, 0)] * len(members)
    asides: list[np.ndarray | None] = [None] * len(members)
    for owner, one in enumerate(members if fraction else []):
        heads = np.asarray(one.heads)
        chosen = set_aside(heads, fraction, (seed, _VALIDATION, owner))
        held[owner] = Share(_sum(heads[chosen]), _sum(np.asarray(one.lengths)[chosen]))
        asides[owner] = chosen
    tokens = [_sum(np.asarray(one.lengths)) - share.tokens for one, share in zip(members, held, strict=True)]
    allotment = Allotment(bins, names, epochs_of(tokens, weights), held if fraction else None, [])
    for owner, aside in enumerate(asides):
        lengths = np.asarray(members[owner].lengths)
        members[owner], asides[owner] = Members(), None
        allotment.destinations.append(_destinations(allotment, owner, lengths, aside, seed))
    return allotment


def _sum(numbers: np.ndarray) -> int:
    return int(numbers.sum(dtype=np.int64))


def _destinations(
    allotment: Allotment, owner: int, lengths: np.ndarray, aside: np.ndarray | None, seed: int
) -> np.ndarray:
    """Where a sub-dataset's documents go in each pass: whole passes, and of the last, fractional one a seeded draw."""
    epochs, left = allotment.epochs[owner], len(lengths) - (0 if aside is None else int(aside.sum()))
    whole = int(epochs)
    rest = round((epochs - whole) * left)
    passes = whole + (rest > 0)
    smallest = np.min_scalar_type(allotment.nowhere)
    result = np.full((max(passes, 1), len(lengths)), allotment.nowhere, dtype=smallest)
    for copy in range(passes):
        taken: np.ndarray | slice = slice(None) if aside is None else ~aside
        if copy == whole:
            drawn, every = np.zeros(left, dtype=bool), np.zeros(len(lengths), dtype=bool)
            drawn[permutation(left, np.random.default_rng([seed, _COPIES, owner]))[:rest]] = True
            every[taken] = drawn
            taken = every
        result[copy][taken] = deal_out(lengths[taken], allotment.bins, (seed, _BINS, owner, copy))
    if aside is not None:
        result[0][aside] = allotment.validation
    return result


def set_aside(heads: np.ndarray, fraction: float, seed: Sequence[int]) -> np.ndarray:
    """Choose a sub-dataset's documents for the validation set: bool ``[documents]``.

    The fraction of its documents, rounded, and at least one where it has two or more. The pieces of a conversation stay
    together.

    Args:
        heads: 1 for each document, 0 for the later pieces of a conversation.
        fraction: above 0 and less than 1.
        seed: of the draw.
    """
    count = int(heads.sum(dtype=np.int64))
    wanted = max(round(fraction * count), 1) if count > 1 else 0
    chosen = np.zeros(count, dtype=bool)
    chosen[permutation(count, np.random.default_rng(list(seed)))[:wanted]] = True
    return chosen[np.cumsum(heads, dtype=np.int32 if count < 1 << 31 else np.int64) - 1]


def epochs_of(tokens: Sequence[int], weights: Sequence[float] | None) -> list[float]:
    """How often each sub-dataset is gone through so that their shares of all tokens are as the weights.

    No sub-dataset is shortened: the one that is largest for its weight is gone through once, the others more often.

    Args:
        tokens: of each sub-dataset.
        weights: shares wanted, in any unit; None takes everything once.

    Returns:
        Epochs, 1 or more each (0 for a sub-dataset without tokens).
    """
    if weights is None:
        return [1.0] * len(tokens)
    wanted = [weight / count if count else 0.0 for count, weight in zip(tokens, weights, strict=True)]
    least = min(value for value in wanted if value)
    return [value / least for value in wanted]


def parse_mixture(text: str, names: Sequence[str]) -> list[float]:
    """Weights from ``name=weight,name=weight``, one for every sub-dataset, in the order of ``names``.

    Raises:
        UserError: malformed, an unknown or missing name, or a weight that is not above 0.
    """
    weights: dict[str, float] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = entry.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = 0.0
        if not name or not 0 < weight < float("inf"):
            raise UserError(f"--mixture {entry!r}: expected NAME=WEIGHT with a weight above 0")
        if name not in names:
            raise UserError(f"--mixture: no sub-dataset {name!r}; there are {', '.join(names)}")
        weights[name] = weight
    missing = [name for name in names if name not in weights]
    if missing:
        raise UserError(f"--mixture gives no weight for {', '.join(missing)}; every sub-dataset needs one")
    return [weights[name] for name in names]


def deal_out(lengths: np.ndarray, bins: int, seed: Sequence[int]) -> np.ndarray:
    """Bin of each of one sub-dataset's documents: a seeded shuffle, cut into ``bins`` stretches of equal tokens.

    Args:
        lengths: tokens of the documents.
        bins: number of bins; with fewer documents than bins some bins get none.
        seed: of the shuffle.

    Returns:
        Unsigned integers ``[documents]``. The bins' tokens differ by less than two documents.
    """
    order = permutation(len(lengths), np.random.default_rng(list(seed)))
    result = np.empty(len(lengths), dtype=np.min_scalar_type(bins - 1))
    total, before = _sum(lengths), 0
    for start in range(0, len(order), _AT_ONCE):
        chosen = order[start : start + _AT_ONCE]
        sizes = lengths[chosen]
        ends = before + np.cumsum(sizes, dtype=np.int64)
        middles = ends - sizes / 2
        result[chosen] = np.minimum((middles * bins / total).astype(np.int64), bins - 1)
        before = int(ends[-1])
    return result


def unique_names(paths: Iterable[str]) -> list[str]:
    """A short name for each input: its last part, or more of the path where that is taken twice."""
    paths = [str(Path(path)) for path in paths]
    names = [Path(path).name for path in paths]
    return [path if names.count(name) > 1 else name for path, name in zip(paths, names, strict=True)]
