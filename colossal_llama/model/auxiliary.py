"""Auxiliary token vectors: which tokens mean similar things, for the initialisation method ``focus``."""

import dataclasses
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from colossal_llama.errors import UserError
from colossal_llama.model.row_mixture import RowMixture

if TYPE_CHECKING:
    import torch

_FLAG = "--auxiliary_embeddings"
_BLOCK = 128
"""New tokens compared with all old ones at a time: 16 MB of similarities for 32,000 old ones."""


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
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
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


def similar_tokens(auxiliary: AuxiliaryVectors, new_ids: "torch.Tensor") -> "RowMixture":
    """Which old tokens new ones are made of: sparsemax over the cosines of the auxiliary vectors.

    Args:
        auxiliary: the vectors.
        new_ids: (n,) int64; each has a vector.

    Returns:
        n mixtures of old ids, whose weights sum to 1.
    """
    import torch

    numbers, weights, lengths = [], [], []
    for ids in new_ids.split(_BLOCK):
        shares = sparsemax(auxiliary.vectors[auxiliary.places[ids]] @ auxiliary.old.T)
        lines, columns = torch.nonzero(shares, as_tuple=True)
        numbers.append(auxiliary.old_ids[columns])
        weights.append(shares[lines, columns])
        lengths.append(torch.bincount(lines, minlength=len(ids)))
    return RowMixture(torch.cat(numbers), torch.cat(weights), torch.cat(lengths))


def sparsemax(scores: "torch.Tensor") -> "torch.Tensor":
    """The point of the probability simplex nearest to each line of ``scores`` (Martins and Astudillo 2016).

    It is ``max(scores - threshold, 0)`` with the threshold that makes the line sum to 1. The threshold is at least
    the largest score less 1; from there it rises to what the scores above it ask for, until no score drops out
    (Michelot 1986), which takes some ten steps and no sorting.

    Args:
        scores: (lines, n) float32.

    Returns:
        (lines, n), each line sums to 1.
    """
    threshold = scores.max(1, keepdim=True).values - 1
    support = None
    while True:
        above = scores > threshold
        count = above.sum(1, keepdim=True)
        if support is not None and bool((count >= support).all()):
            return (scores - threshold).clamp_min_(0)
        support = count
        threshold += ((scores - threshold).clamp_min_(0).sum(1, keepdim=True) - 1) / count
