"""Auxiliary token vectors: which tokens mean similar things, for the initialisation method ``focus``."""

import dataclasses
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from colossal_llama.errors import UserError

if TYPE_CHECKING:
    import torch

_FLAG = "--auxiliary_embeddings"
_BLOCK = 128
"""New tokens compared with all old ones at a time: 16 MB of similarities for 32,000 old ones."""

_TOP = 512
"""How many of the most similar tokens are sorted at first; the rest only where they can get a weight."""


@dataclasses.dataclass(frozen=True)
class AuxiliaryVectors:
    """Unit vectors of the old tokens and of all tokens that have one.

    Attributes:
        old_ids: (n,) int64, the old tokens with a vector.
        old: (n, dimensions) float32, of length 1.
        places: (ids,) int64, for each id its line in ``vectors``, or -1.
        vectors: (tokens, dimensions) float32, of length 1.
    """

    old_ids: "torch.Tensor"
    old: "torch.Tensor"
    places: "torch.Tensor"
    vectors: "torch.Tensor"


def read_auxiliary(path: Path, vocabulary: Mapping[str, int], old_ids: Sequence[int]) -> AuxiliaryVectors:
    """Read the vectors of a vocabulary's tokens.

    Args:
        path: ``.npz`` with ``tokens`` (strings) and ``vectors`` (tokens, dimensions), or fastText's and
            word2vec's text format (``.vec``, ``.txt``): a token and its numbers a line, after an optional line
            with the two sizes. Tokens are spelled as in the tokenizer's vocabulary; unknown ones are ignored.
        vocabulary: token to id, of the wider tokenizer.
        old_ids: the ids that a combination may be made of.

    Raises:
        UserError: the file is missing or broken, or holds no vector of an old token.
    """
    import torch

    if not path.is_file():
        raise UserError(f"{_FLAG} {path}: no such file; expected .npz, or .vec as fastText writes it")
    ids, vectors = _read_npz(path, vocabulary) if path.suffix == ".npz" else _read_text(path, vocabulary)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    usable = (norms[:, 0] > 0) & np.isfinite(norms[:, 0])
    unit, numbers = torch.from_numpy(vectors[usable] / norms[usable]), torch.from_numpy(ids[usable])
    places = torch.full((max(vocabulary.values()) + 1,), -1, dtype=torch.int64)
    places[numbers] = torch.arange(len(numbers))
    known = torch.tensor(list(old_ids))
    known = known[places[known] >= 0]
    if not len(known):
        raise UserError(
            f"{_FLAG} {path}: holds no vector of an old token; train the vectors on text that the wider tokenizer "
            "has split, with tokens spelled as in its vocabulary"
        )
    return AuxiliaryVectors(known, unit[places[known]], places, unit)


def _read_npz(path: Path, vocabulary: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as content:
            tokens, vectors = content["tokens"], content["vectors"].astype(np.float32)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{_FLAG} {path}: expected arrays 'tokens' and 'vectors' in it ({error})") from error
    if vectors.ndim != 2 or tokens.shape != vectors.shape[:1]:
        raise UserError(
            f"{_FLAG} {path}: 'tokens' has shape {tokens.shape} and 'vectors' {vectors.shape}; expected (n,) and (n, d)"
        )
    kept = [(vocabulary[str(token)], at) for at, token in enumerate(tokens) if str(token) in vocabulary]
    return np.array([one for one, _ in kept], dtype=np.int64), vectors[[at for _, at in kept]]


def _read_text(path: Path, vocabulary: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    ids, vectors = [], []
    width = 0
    try:
        with path.open(encoding="utf-8", newline="\n") as stream:
            for number, line in enumerate(stream, start=1):
                fields = line.rstrip("\r\n ").split(" ")
                if number == 1 and len(fields) == 2:
                    continue  # the sizes
                width = width or len(fields) - 1
                if len(fields) - 1 != width or not width:
                    raise ValueError(f"line {number} has {len(fields) - 1} numbers, the first one has {width}")
                if fields[0] in vocabulary:
                    ids.append(vocabulary[fields[0]])
                    vectors.append(np.array(fields[1:], dtype=np.float32))
    except ValueError as error:  # of decoding too
        raise UserError(f"{_FLAG} {path}: {error}; expected a token and its numbers a line") from error
    return np.array(ids, dtype=np.int64), np.stack(vectors) if ids else np.zeros((0, max(width, 1)), np.float32)


def similar_tokens(auxiliary: AuxiliaryVectors, new_ids: "torch.Tensor") -> dict[int, tuple[list[int], list[float]]]:
    """Which old tokens each new one is made of: sparsemax over the cosines of the auxiliary vectors.

    Args:
        auxiliary: the vectors.
        new_ids: (n,) int64.

    Returns:
        From the place in ``new_ids`` to the old ids and their weights, which sum to 1; new tokens without a
        vector are left out.
    """
    import torch

    lines = auxiliary.places[new_ids]
    with_vector = torch.nonzero(lines >= 0)[:, 0]
    found = {}
    for first in range(0, len(with_vector), _BLOCK):
        places = with_vector[first : first + _BLOCK]
        shares = sparsemax(auxiliary.vectors[lines[places]] @ auxiliary.old.T)
        for place, share in zip(places.tolist(), shares, strict=True):
            chosen = torch.nonzero(share)[:, 0]
            found[place] = (auxiliary.old_ids[chosen].tolist(), share[chosen].tolist())
    return found


def sparsemax(scores: "torch.Tensor") -> "torch.Tensor":
    """The point of the probability simplex nearest to each line of ``scores`` (Martins and Astudillo 2016).

    Args:
        scores: (lines, n) float32.

    Returns:
        (lines, n): ``max(scores - threshold, 0)`` with the threshold that makes each line sum to 1. Only the
        largest scores decide it, so no more are sorted than may get a weight (as in Peters et al. 2019).
    """
    import torch

    size = min(_TOP, scores.shape[1])
    while True:
        largest = torch.topk(scores, size, dim=1).values
        ranks = torch.arange(1, size + 1)
        sums = torch.cumsum(largest.double(), 1) - 1
        support = (ranks * largest > sums).sum(1)
        if size == scores.shape[1] or int(support.max()) < size:
            break
        size = min(2 * size, scores.shape[1])
    threshold = sums.gather(1, support.unsqueeze(1) - 1) / support.unsqueeze(1)
    return (scores - threshold.float()).clamp_min_(0)
