"""Pieces that no text can give, why, and what to do about them.

A piece is reachable when its own text is encoded as that piece alone. Byte-pair encoding builds a token from two
tokens, so a piece whose halves are no tokens is never built, however often it occurs.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from colossal_llama.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPAIR, DROP, KEEP, ERROR = "repair", "drop", "keep", "error"
MODES = (REPAIR, DROP, KEEP, ERROR)
"""What to do with unreachable pieces: add what they lack, leave them out, add them all the same, or stop."""


@dataclasses.dataclass(frozen=True)
class Unreachable:
    """A piece that its own text would not give.

    Attributes:
        piece: the piece.
        parts: the tokens that its text gives instead, readable.
        missing: tokens that would have to exist, readable; empty where no token would help.
    """

    piece: str
    parts: tuple[str, ...]
    missing: tuple[str, ...]

    def describe(self) -> str:
        """One clause for people: ``孔明曰之: stays 孔明|曰|之; lacks 孔明曰``."""
        lacks = f"lacks {' '.join(self.missing)}" if self.missing else "the old tokens score better"
        return f"{self.piece}: stays {'|'.join(self.parts)}; {lacks}"


Finder = Callable[[list[str]], list[Unreachable]]
"""Which of the pieces could not be reached if exactly these were added."""


def settle(pieces: list[str], find: Finder, mode: str) -> tuple[list[str], list[Unreachable]]:
    """Choose the pieces to add.

    Args:
        pieces: usable pieces, in order of priority.
        find: the family's finder; asked again after a drop, since a dropped piece may have been part of another.
        mode: one of :data:`MODES`.

    Returns:
        The pieces to add, and every piece found unreachable on the way.

    Raises:
        UserError: the mode is ``error`` and a piece is unreachable, or ``drop`` leaves no piece.
    """
    found = find(pieces)
    if mode == ERROR and found:
        raise UserError(
            f"{len(found)} of {len(pieces)} pieces could never be produced, such as {found[0].describe()}; add what "
            f"they lack to --expand_tokens_file, or give --unreachable {REPAIR} or {DROP}"
        )
    if mode != DROP:
        return pieces, found
    dropped = list(found)
    while found and pieces:
        gone = {entry.piece for entry in found}
        pieces = [piece for piece in pieces if piece not in gone]
        found = find(pieces)
        dropped += found
    if not pieces:
        raise UserError(f"--unreachable {DROP} leaves no piece to add; give other pieces or --unreachable {REPAIR}")
    return pieces, dropped


def unreachable_pieces(
    tokenizer: "PreTrainedTokenizerBase", pieces: Iterable[str], spell: Callable[[str], str]
) -> list[str]:
    """The pieces that the fast tokenizer's model does not give for their own text: the proof of the above."""
    vocabulary = tokenizer.get_vocab()
    model = tokenizer.backend_tokenizer.model  # type: ignore[attr-defined]
    if hasattr(model, "ignore_merges"):
        model.ignore_merges = False  # would hide an unreachable piece that stands alone, but not inside a word
    return [
        piece for piece in pieces if [token.id for token in model.tokenize(spell(piece))] != [vocabulary[spell(piece)]]
    ]
