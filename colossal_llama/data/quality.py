"""Rules that tell texts not worth learning: too short or long, hardly any letters, or full of repetition.

The repetition rules and their limits are those of Rae et al. 2021, "Scaling Language Models: Methods, Analysis
& Insights from Training Gopher" (arXiv 2112.11446), section A.1.1 and table A1. The paper counts words; where
a text is written without spaces an n-gram of n words becomes one of 2n characters, because Chinese words have
one to two characters and n single characters repeat in ordinary prose too (see :mod:`.text_units`).
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from colossal_llama.data.text_units import find_units, ngram_hashes

TOO_SHORT = "too few characters"
TOO_LONG = "too many characters"
FEW_LETTERS = "too few letters"
DUPLICATE_LINES = "repeated lines"
DUPLICATE_PARAGRAPHS = "repeated paragraphs"

TOP_NGRAMS = {2: 1.0, 3: 0.9, 4: 0.8}
"""Limits of the most frequent n-gram, relative to that of n = 2 (table A1: 0.20, 0.18, 0.16)."""

DUPLICATE_NGRAMS = {5: 1.0, 6: 14 / 15, 7: 13 / 15, 8: 12 / 15, 9: 11 / 15, 10: 10 / 15}
"""Limits of repeated n-grams, relative to that of n = 5 (table A1: 0.15, 0.14, ... 0.10)."""

CHARACTERS_PER_WORD = 2
"""Characters that stand for one word in scripts without spaces."""

_PARAGRAPH_END = re.compile(r"\n\s*\n")
_LETTERS = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class QualitySettings:
    """Limits of a :class:`QualityFilter`; None or 0 switches a rule off, and all are off by default.

    Fractions lie between 0 and 1. Lines and paragraphs are compared without the white space around them; blank
    ones do not count. A repetition is the second and every later occurrence, never the first.

    Attributes:
        min_characters: shorter texts are refused.
        max_characters: longer ones are.
        min_letter_fraction: of the characters other than white space, letters of any script.
        max_duplicate_line_fraction: of the lines, those that repeat an earlier one (paper: 0.30).
        max_duplicate_line_character_fraction: of the lines' characters, those in such lines (paper: 0.20).
        max_duplicate_paragraph_fraction: the same for paragraphs, which blank lines separate (paper: 0.30).
        max_duplicate_paragraph_character_fraction: the same for their characters (paper: 0.20).
        max_top_ngram_fraction: of the characters in words, those in the most frequent 2-gram (paper: 0.20);
            3-grams and 4-grams have 0.9 and 0.8 of this limit, as in the paper.
        max_duplicate_ngram_fraction: of the characters in words, those in repeated 5-grams (paper: 0.15); the
            limit falls to two thirds of this for 10-grams, as in the paper.
    """

    min_characters: int | None = None
    max_characters: int | None = None
    min_letter_fraction: float | None = None
    max_duplicate_line_fraction: float | None = None
    max_duplicate_line_character_fraction: float | None = None
    max_duplicate_paragraph_fraction: float | None = None
    max_duplicate_paragraph_character_fraction: float | None = None
    max_top_ngram_fraction: float | None = None
    max_duplicate_ngram_fraction: float | None = None

    def __post_init__(self) -> None:
        """Refuse limits that mean nothing.

        Raises:
            ValueError: a negative number, a fraction above 1, or a minimum above the maximum.
        """
        for name, value in vars(self).items():
            highest = 1 if name.endswith("_fraction") else math.inf
            if value is not None and not 0 <= value <= highest:
                raise ValueError(f"{name} must be 0 to {highest}, not {value}")
        if self.min_characters and self.max_characters and self.min_characters > self.max_characters:
            raise ValueError(f"min_characters {self.min_characters} is more than max_characters {self.max_characters}")


GOPHER = QualitySettings(
    max_duplicate_line_fraction=0.30,
    max_duplicate_line_character_fraction=0.20,
    max_duplicate_paragraph_fraction=0.30,
    max_duplicate_paragraph_character_fraction=0.20,
    max_top_ngram_fraction=0.20,
    max_duplicate_ngram_fraction=0.15,
)
"""The repetition limits of table A1."""


class QualityFilter:
    """Says of a text why it should not be learned. Can be pickled and holds no state."""

    def __init__(self, settings: QualitySettings) -> None:
        self.settings = settings

    def reason(self, text: str) -> str | None:
        """The first rule that ``text`` breaks, in a few words that name it but no figure; None to keep it."""
        settings = self.settings
        if settings.min_characters and len(text) < settings.min_characters:
            return TOO_SHORT
        if settings.max_characters and len(text) > settings.max_characters:
            return TOO_LONG
        if settings.min_letter_fraction and letter_fraction(text) < settings.min_letter_fraction:
            return FEW_LETTERS
        return self._repeated_blocks(text) or self._repeated_ngrams(text)

    def _repeated_blocks(self, text: str) -> str | None:
        settings = self.settings
        limits = (settings.max_duplicate_line_fraction, settings.max_duplicate_line_character_fraction)
        if any(limits) and _exceeds(duplicate_fractions(text.split("\n")), limits):
            return DUPLICATE_LINES
        limits = (settings.max_duplicate_paragraph_fraction, settings.max_duplicate_paragraph_character_fraction)
        if any(limits) and _exceeds(duplicate_fractions(_PARAGRAPH_END.split(text)), limits):
            return DUPLICATE_PARAGRAPHS
        return None

    def _repeated_ngrams(self, text: str) -> str | None:
        top, repeated = self.settings.max_top_ngram_fraction, self.settings.max_duplicate_ngram_fraction
        if not top and not repeated:
            return None
        ngrams = UnitNgrams(text)
        if top:
            for n, share in TOP_NGRAMS.items():
                if ngrams.top_fraction(n) > top * share:
                    return f"frequent {n}-gram"
        if repeated:
            lowest = repeated * min(DUPLICATE_NGRAMS.values())
            for n, share in DUPLICATE_NGRAMS.items():
                fraction = ngrams.duplicate_fraction(n)
                if fraction > repeated * share:
                    return f"repeated {n}-grams"
                # What repeated (n+1)-grams cover, repeated n-grams cover too: it can only shrink from here.
                if fraction <= lowest:
                    break
        return None


def _exceeds(fractions: tuple[float, float], limits: tuple[float | None, float | None]) -> bool:
    return any(limit and fraction > limit for fraction, limit in zip(fractions, limits, strict=True))


def letter_fraction(text: str) -> float:
    """Letters of any script by all characters other than white space; 0 for a blank text."""
    solid = sum(map(len, text.split()))
    return sum(map(len, _LETTERS.findall(text))) / solid if solid else 0.0


def duplicate_fractions(blocks: Sequence[str]) -> tuple[float, float]:
    """Which fraction of the blocks, and of their characters, repeats an earlier block.

    Blocks are lines or paragraphs; they are compared stripped, and blank ones are left out.
    """
    kept = [stripped for block in blocks if (stripped := block.strip())]
    distinct = set(kept)
    if len(distinct) == len(kept):
        return 0.0, 0.0
    characters = sum(map(len, kept))
    return 1 - len(distinct) / len(kept), 1 - sum(map(len, distinct)) / characters


class UnitNgrams:
    """The n-grams of one text, n counted in words (or in pairs of characters where there are no spaces)."""

    def __init__(self, text: str) -> None:
        units = find_units(text)
        self._scale = CHARACTERS_PER_WORD if units.mostly_unspaced() else 1
        self._hashes = units.hashes
        self._lengths = units.lengths
        self._ends = np.cumsum(np.concatenate(([0], units.lengths)))

    def top_fraction(self, n: int) -> float:
        """Fraction of the words' characters in the most frequent n-gram, 0 if none occurs twice; at most 1.

        Of several with the same number of occurrences the longest counts.
        """
        size = n * self._scale
        hashes = ngram_hashes(self._hashes, size)
        if len(hashes) < 2:
            return 0.0
        order = np.argsort(hashes)
        ordered = hashes[order]
        firsts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
        counts = np.diff(firsts, append=len(ordered))
        most = int(counts.max())
        if most < 2:
            return 0.0
        places = order[firsts[counts == most]]
        longest = int((self._ends[places + size] - self._ends[places]).max())
        return min(1.0, most * longest / int(self._ends[-1]))

    def duplicate_fraction(self, n: int) -> float:
        """Fraction of the words' characters in second and later occurrences of n-grams, none counted twice."""
        size = n * self._scale
        hashes = ngram_hashes(self._hashes, size)
        if len(hashes) < 2:
            return 0.0
        order = np.argsort(hashes, kind="stable")
        ordered = hashes[order]
        later = order[1:][ordered[1:] == ordered[:-1]]
        steps = np.zeros(len(self._lengths) + 1, dtype=np.int64)
        steps[later] += 1
        steps[later + size] -= 1
        covered = np.cumsum(steps[:-1]) > 0
        return int(self._lengths[covered].sum()) / int(self._ends[-1])
