"""Scores of new pieces in a SentencePiece unigram model.

A unigram model picks the segmentation with the largest sum of log-probabilities, so a new piece competes with every
segmentation of the text around it. It gets the score of the best segmentation of its own text without it, plus a gain:

    score(piece) = max over segmentations s of piece, shorter new pieces included, of sum(score(s)) + gain(rank)

In other words its parts are taken to be independent, and the gain is its pointwise mutual information. Without a corpus
that is not known; a collocation's is several nats, so a gain of GAIN_LAST to GAIN_FIRST is a low guess. It suffices for
the piece to win its own text, and it rarely outweighs the margin by which an old segmentation next to it was the best.
Falling with the rank, it settles which of two overlapping new pieces wins. Equal gains would leave ties, which
SentencePiece (32-bit sums) and the fast tokenizer (64-bit) break differently.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from colossal_llama.errors import UserError
from colossal_llama.tokenizer.reachability import Unreachable

NORMAL, USER_DEFINED = 1, 4
UNKNOWN_PENALTY = 10.0
"""An unknown character scores this much below the lowest piece (SentencePiece's kUnkPenalty)."""

GAIN_FIRST, GAIN_LAST = 5.0, 0.5
"""Gain of the first and of the last piece of the list, in nats."""


def best_segmentation(text: str, scores: Mapping[str, float], unknown: float) -> tuple[float, tuple[str, ...]]:
    """The segmentation of ``text`` with the largest sum of scores (Viterbi).

    Args:
        text: a few dozen characters.
        scores: log-probability of each piece, in nats.
        unknown: score of a character that is no piece.

    Returns:
        The sum and the segmentation.
    """
    best: list[tuple[float, int]] = [(0.0, 0)] + [(float("-inf"), 0)] * len(text)
    for start in range(len(text)):
        before = best[start][0]
        for end in range(start + 1, len(text) + 1):
            score = scores.get(text[start:end], unknown if end == start + 1 else None)
            if score is not None and before + score > best[end][0]:
                best[end] = (before + score, start)
    parts, end = [], len(text)
    while end:
        start = best[end][1]
        parts.append(text[start:end])
        end = start
    return best[-1][0], tuple(reversed(parts))


def new_scores(proto: Any, pieces: Sequence[str]) -> list[float]:
    """The scores of ``pieces``, given in order of priority, by the rule of this module.

    Two bounds keep all old text as it was. The model's lowest score sets the score of an unknown character, so a new
    piece may only fall below it where each character of an old piece is a piece of its own: then an unknown character
    has no alternative, and its score does not matter. And its highest score, which sets the score of user-defined
    pieces, is not exceeded: no piece is more probable than the most probable old one. (Scores of 0 and more are no
    log-probabilities; without user-defined pieces they bound nothing.)
    """
    scores = _normal_scores(proto)
    lowest, highest = min(scores.values()), max(scores.values())
    unknown = lowest - UNKNOWN_PENALTY
    closed = all(character in scores for piece in scores for character in piece)
    floor = float("-inf") if closed else lowest
    bounded = highest < 0 or any(piece.type == USER_DEFINED for piece in proto.pieces)
    ceiling = highest if bounded else float("inf")
    rank = {piece: number for number, piece in enumerate(pieces)}
    for piece in sorted(pieces, key=len):
        score = best_segmentation(piece, scores, unknown)[0] + _gain(rank[piece], len(pieces))
        scores[piece] = min(max(score, floor), ceiling)
    return [scores[piece] for piece in pieces]


def find_unreachable(proto: Any, pieces: Sequence[str]) -> list[Unreachable]:
    """The pieces that lose their own text, which only happens where the ceiling of :func:`new_scores` cut them."""
    scores = _normal_scores(proto)
    unknown = min(scores.values()) - UNKNOWN_PENALTY
    scores |= dict(zip(pieces, new_scores(proto, pieces), strict=True))
    found = []
    for piece in pieces:
        own = scores.pop(piece)
        other, parts = best_segmentation(piece, scores, unknown)
        scores[piece] = own
        if other >= own:
            found.append(Unreachable(piece, parts, ()))
    return found


def check_same_pieces(proto: Any, vocabulary: Sequence[Sequence[Any]], path: Path) -> None:
    """Check that the fast tokenizer numbers the model's pieces as the model does, which not every class does.

    Raises:
        UserError: a piece has another id (XLM-R shifts them by one).
    """
    for token_id, piece in enumerate(proto.pieces):
        if token_id >= len(vocabulary) or vocabulary[token_id][0] != piece.piece:
            raise UserError(
                f"{path}: the fast tokenizer gives id {token_id} to another token than the model's {piece.piece!r}; "
                "only tokenizers that keep the model's ids (LlamaTokenizer does) can be widened"
            )


def _normal_scores(proto: Any) -> dict[str, float]:
    return {piece.piece: piece.score for piece in proto.pieces if piece.type == NORMAL}


def _gain(rank: int, count: int) -> float:
    return GAIN_LAST + (GAIN_FIRST - GAIN_LAST) * (count - rank) / count
