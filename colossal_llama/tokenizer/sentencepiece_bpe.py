"""New pieces in a SentencePiece BPE model (Llama 1 and 2, Mistral, InternLM, Baichuan).

New pieces score below the lowest old one, by rank. So every old merge is done before the first new one: the new
segmentation of a text is the old one with neighbours joined. Scores by rank also mean that the slow and the fast
tokenizer, which break ties differently, never meet a tie between two pieces.
"""

import heapq
from collections.abc import Mapping, Sequence
from typing import Any

from colossal_llama.tokenizer.merging import merge_symbols
from colossal_llama.tokenizer.reachability import Unreachable
from colossal_llama.tokenizer.sentencepiece import NORMAL


def find_unreachable(proto: Any, pieces: Sequence[str]) -> list[Unreachable]:
    """The pieces that merges of old pieces and ``pieces`` do not give.

    SentencePiece itself starts from any character, the fast tokenizer only from characters in the vocabulary; so a
    piece with a character that is no piece counts as unreachable.
    """
    ranks = _ranks(proto, pieces)
    found = []
    for piece in pieces:
        characters = [character for character in dict.fromkeys(piece) if character not in ranks]
        parts, halves = _halves(piece, ranks)
        if characters or halves:
            found.append(Unreachable(piece, tuple(parts if halves else piece), (*characters, *halves)))
    return found


def plan_intermediates(proto: Any, pieces: Sequence[str]) -> list[str]:
    """The further pieces without which some of ``pieces`` could not be put together.

    Characters come first, then the left-to-right halves that no merge reaches.

    Returns:
        Intermediate pieces in order of priority, all below ``pieces``.
    """
    ranks = _ranks(proto, pieces)
    requested = len(ranks)
    for piece in pieces:
        for character in piece:
            ranks.setdefault(character, len(ranks))
    for piece in pieces:
        for half in _halves(piece, ranks)[1]:
            ranks.setdefault(half, len(ranks))
    return [piece for piece, rank in ranks.items() if rank >= requested]


def _halves(piece: str, ranks: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """The tokens that ``piece``'s text gives, and the tokens that joining them from the left would need."""
    own: dict[str, int] = {}

    def rank(left: str, right: str) -> int | None:
        joined = left + right
        return ranks.get(joined, own.get(joined))

    tokens = parts = merge_symbols(list(piece), rank)
    while len(tokens) > 1:
        joined = tokens[0] + tokens[1]
        own[joined] = len(ranks) + len(own)
        tokens = merge_symbols(tokens, rank)
    return parts, list(own)


def _ranks(proto: Any, pieces: Sequence[str]) -> dict[str, int]:
    """Old pieces in order of decreasing score, then ``pieces``: rank 0 merges first."""
    normal = [piece for piece in proto.pieces if piece.type == NORMAL]
    normal.sort(key=lambda piece: -piece.score)  # stable: ties keep the order of ids
    return {text: rank for rank, text in enumerate([*(piece.piece for piece in normal), *pieces])}


def new_scores(proto: Any, count: int) -> list[float]:
    """``count`` scores that continue below the lowest old score."""
    score = min((piece.score for piece in proto.pieces if piece.type == NORMAL), default=0.0)
    scores = []
    for _ in range(count):
        score = _next_lower_score(score)
        scores.append(score)
    return scores


def _next_lower_score(score: float) -> float:
    """One less, or the next lower 32-bit float: next to -1e9, Mistral's lowest score, one less is no change."""
    import numpy as np

    return min(score - 1.0, float(np.nextafter(np.float32(score), np.float32(-np.inf))))


def widened_merges(proto: Any, old_merges: Sequence[Sequence[str]], absorbed: range) -> list[list[str]]:
    """The merges of ``tokenizer.json`` for a widened model: the old ones in their order, and those of new pieces.

    The order is the one that transformers derives from scores. The old merges are not derived again: their file may
    be of an older version of transformers, which ordered the halves of one piece otherwise.

    Args:
        proto: the widened model.
        old_merges: the merges before.
        absorbed: ids of absorbed added tokens, which the new pieces follow; text is split at them first, so nothing
            merges into them.
    """
    from transformers.convert_slow_tokenizer import generate_merges

    mergeable = {piece.piece: at for at, piece in enumerate(proto.pieces) if at not in absorbed}
    scores = {token: proto.pieces[at].score for token, at in mergeable.items()}
    fresh = {token for token, at in mergeable.items() if at >= absorbed.stop}
    appended, revived = [], []
    for left, right in generate_merges(mergeable, list(scores.items())):
        if left + right in fresh:
            appended.append([left, right])
        elif left in fresh or right in fresh:  # an old piece that only now can be put together
            revived.append([left, right])
    by_score = heapq.merge(old_merges, revived, key=lambda pair: -scores.get(pair[0] + pair[1], 0.0))
    return [*map(list, by_score), *appended]
