"""What a wider tokenizer changes in texts: against the old tokenizer, and its slow version against its fast one."""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from colossal_llama.tokenizer.pieces import SPACE_MARK
from colossal_llama.tokenizer.plain_text import plain_encoder, text_encoder

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

BATCH = 64
"""Documents encoded at once."""

ROUNDING = 1e-6
"""Relative difference between two sums of log-probabilities that 32-bit floats do not tell apart."""

PIECES_PER_LINE = 16
PIECES_ALONE = 2000

_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclasses.dataclass
class TextComparison:
    """Counts over the documents of one file.

    Attributes:
        name: the file.
        documents: how many were encoded.
        characters: their characters.
        old_tokens: tokens with the old tokenizer, special ones left out.
        new_tokens: tokens with the new one.
        changed: documents whose ids changed.
        changed_without_new: those among them that hold no new token; nothing explains such a change.
        changed_by_intermediates: those among them that hold intermediate tokens but no new piece.
        cut: old tokens that a new token's end cuts in two.
        moved: tokens of the old vocabulary that the new tokenizer puts where the old one did not.
        slow_differs: documents that the new slow tokenizer encodes otherwise than the new fast one.
        slow_differed_before: those among them where the old slow and fast tokenizer differ, too.
        slow_ties: those among the others where both segmentations score the same but for rounding.
        examples: a short text for each count that should be zero and is not.
    """

    name: str
    documents: int = 0
    characters: int = 0
    old_tokens: int = 0
    new_tokens: int = 0
    changed: int = 0
    changed_without_new: int = 0
    changed_by_intermediates: int = 0
    cut: int = 0
    moved: int = 0
    slow_differs: int = 0
    slow_differed_before: int = 0
    slow_ties: int = 0
    examples: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def slow_unexplained(self) -> int:
        """Documents where the expansion itself made slow and fast differ."""
        return self.slow_differs - self.slow_differed_before - self.slow_ties


class TextComparer:
    """Compares an old and a new fast tokenizer on texts, and their slow versions where they exist."""

    def __init__(
        self,
        old: "PreTrainedTokenizerBase",
        new: "PreTrainedTokenizerBase",
        old_slow: "PreTrainedTokenizerBase | None" = None,
        new_slow: "PreTrainedTokenizerBase | None" = None,
        scores: Sequence[float] | None = None,
        intermediates: Iterable[str] = (),
    ) -> None:
        """Keep the four tokenizers.

        Args:
            old: the fast tokenizer before.
            new: the fast tokenizer after; every old token has its old id.
            old_slow: the slow version of ``old``.
            new_slow: the slow version of ``new``; without it nothing is said about slow tokenizers.
            scores: log-probability of each new id, where the model is a unigram model.
            intermediates: new tokens that nobody asked for, in the tokenizer's spelling.
        """
        self.old, self.new = plain_encoder(old, "tokenizer"), plain_encoder(new, "tokenizer")
        self.old_slow = None if old_slow is None else text_encoder(old_slow)
        self.new_slow = None if new_slow is None else text_encoder(new_slow)
        self.scores = scores
        self.spelling = {token_id: token for token, token_id in new.get_vocab().items()}
        self.old_ids = frozenset(old.get_vocab().values())
        vocabulary = new.get_vocab()
        self.not_pieces = self.old_ids.union(vocabulary[token] for token in intermediates)
        self.lengths = _token_lengths(new)

    def compare(self, name: str, texts: Iterable[str]) -> TextComparison:
        """Encode ``texts`` with all tokenizers and count."""
        result = TextComparison(name)
        iterator = iter(texts)
        while batch := list(itertools.islice(iterator, BATCH)):
            before = self.old.encode_batch(batch, add_special_tokens=False)
            after = self.new.encode_batch(batch, add_special_tokens=False)
            for text, old, new in zip(batch, before, after, strict=True):
                self._count(result, text, old.ids, new.ids)
        return result

    def _count(self, result: TextComparison, text: str, old: list[int], new: list[int]) -> None:
        result.documents += 1
        result.characters += len(text)
        result.old_tokens += len(old)
        result.new_tokens += len(new)
        if old != new:
            self._count_change(result, text, old, new)
        if self.new_slow is not None:
            [slow] = self.new_slow([text])
            if slow != new:
                self._count_slow(result, text, slow, new, old)

    def _count_change(self, result: TextComparison, text: str, old: list[int], new: list[int]) -> None:
        result.changed += 1
        if self.old_ids.issuperset(new):
            result.changed_without_new += 1
            result.examples.setdefault("changed_without_new", self._difference(old, new))
        elif self.not_pieces.issuperset(new):
            result.changed_by_intermediates += 1
        cut, moved = _compare_segmentation(old, new, self.lengths, self.old_ids)
        result.cut += cut
        result.moved += moved
        if cut or moved:
            result.examples.setdefault("cut_or_moved", text[:80])

    def _count_slow(
        self, result: TextComparison, text: str, slow: list[int], fast: list[int], old_fast: list[int]
    ) -> None:
        result.slow_differs += 1
        if self.old_slow is not None and self.old_slow([text]) != [old_fast]:
            result.slow_differed_before += 1
            result.examples.setdefault("slow_differed_before", self._difference(slow, fast))
        elif self.scores is not None and _same_score(self.scores, slow, fast):
            result.slow_ties += 1
        else:
            result.examples.setdefault("slow_differs", self._difference(slow, fast))

    def _difference(self, one: list[int], other: list[int]) -> str:
        """The tokens around the first place where two encodings differ: ``a|b|c instead of a|bc``."""
        start = next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), 0)
        shown = slice(max(0, start - 2), start + 6)
        sides = ("|".join(self.spelling.get(token_id, "?") for token_id in ids[shown]) for ids in (one, other))
        return " instead of ".join(sides)


def _same_score(scores: Sequence[float], one: list[int], other: list[int]) -> bool:
    sums = [sum(scores[token_id] for token_id in ids) for ids in (one, other)]
    return abs(sums[0] - sums[1]) <= ROUNDING * max(map(abs, sums))


def _compare_segmentation(
    old: list[int], new: list[int], lengths: "np.ndarray", old_ids: frozenset[int]
) -> tuple[int, int]:
    """How many old tokens a new boundary cuts, and how many tokens of the old vocabulary stand at a new place.

    Places are counted in bytes of the normalized text, which both tokenizers share. Where an unknown token makes
    the places uncertain, every new boundary counts.
    """
    import numpy as np

    old_ends, new_ends = np.cumsum(lengths[old]), np.cumsum(lengths[new])
    cut = int((~np.isin(new_ends, old_ends)).sum())
    size = len(lengths)
    old_places = old_ends * size + np.asarray(old)
    kept = np.fromiter((token_id in old_ids for token_id in new), bool, len(new))
    moved = int((kept & ~np.isin(new_ends * size + np.asarray(new), old_places)).sum())
    return cut, moved


def _token_lengths(tokenizer: "PreTrainedTokenizerBase") -> "np.ndarray":
    """The length of each id's token, int64, in bytes (a byte-level token has one character a byte)."""
    import json

    import numpy as np

    from colossal_llama.tokenizer.bytelevel import is_byte_level

    backend: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
    byte_level = is_byte_level(backend)
    added = tokenizer.added_tokens_encoder  # type: ignore[attr-defined]
    vocabulary = tokenizer.get_vocab()
    lengths = np.zeros(max(vocabulary.values()) + 1, np.int64)
    for token, token_id in vocabulary.items():
        if byte_level and token not in added:
            lengths[token_id] = len(token)
        else:
            lengths[token_id] = 1 if _BYTE_PIECE.fullmatch(token) else len(token.encode("utf-8", "surrogatepass"))
    return lengths


def piece_lines(pieces: Sequence[str]) -> Iterator[str]:
    """Texts made of the new pieces: neighbours in the list joined to lines, and single ones evenly spread."""
    for start in range(0, len(pieces), PIECES_PER_LINE):
        yield _as_text("".join(pieces[start : start + PIECES_PER_LINE]))
    step = -(-len(pieces) // PIECES_ALONE)
    yield from map(_as_text, pieces[::step])


def _as_text(piece: str) -> str:
    # Transformers' own slow and fast Llama tokenizer differ on a text's leading space where "legacy" is off.
    text = piece.replace(SPACE_MARK, " ")
    return f"x{text}" if text.startswith(" ") else text
