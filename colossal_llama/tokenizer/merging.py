"""Byte-pair merging of one piece: which tokens a model would leave it in."""

from collections.abc import Callable, Sequence

Priority = Callable[[str, str], int | None]
"""The rank of merging two neighbours (lowest merges first), or None when the model never merges them."""


def merge_symbols(symbols: Sequence[str], priority: Priority) -> list[str]:
    """Merge neighbours, lowest rank first and leftmost among equals, until nothing merges.

    Quadratic in the number of symbols: meant for pieces, not for text.
    """
    tokens = list(symbols)
    while len(tokens) > 1:
        best, at = None, -1
        for index in range(len(tokens) - 1):
            rank = priority(tokens[index], tokens[index + 1])
            if rank is not None and (best is None or rank < best):
                best, at = rank, index
        if best is None:
            break
        tokens[at : at + 2] = [tokens[at] + tokens[at + 1]]
    return tokens
