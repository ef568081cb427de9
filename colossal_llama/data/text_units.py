"""Units of text for n-grams: words where a script is written with spaces, single characters where it is not.

Han, kana, bopomofo, Thai, Lao, Burmese and Khmer letters are one unit each (with the marks that follow); any
other run of letters, digits and their marks is one word. Punctuation, symbols, underscores and white space only
separate. Hangul counts as words, because Korean is written with spaces.

Everything works on arrays of code points: a list of Python strings, one per unit, is ten times as slow. Hashes
are 64 bits wide and the same in every process and on every machine.
"""

import functools
import re
import sys
import unicodedata
from dataclasses import dataclass

import numpy as np

SEPARATOR, WORD, MARK, UNSPACED = range(4)

UNSPACED_RANGES = (
    (0x3005, 0x3007), (0x3021, 0x3029), (0x3031, 0x3035), (0x3038, 0x303C),  # ideographic marks and numerals
    (0x3041, 0x30FF), (0x3105, 0x312F), (0x31A0, 0x31BF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F),  # kana, bopomofo
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF),  # Han
    (0x0E01, 0x0E4E), (0x0E81, 0x0ECE), (0x1000, 0x109F), (0x1780, 0x17D3),  # Thai, Lao, Burmese, Khmer
)  # fmt: skip
"""First and last code points of scripts that are written without spaces."""

_COMMON_SEPARATORS = "，！？：；（）…\u3000"
"""NFKC would change these into other separators, and needs twice as long for a text that holds any."""

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_POSITIONS = 256
"""Powers of the multiplier; characters of longer words use them again from the start."""


@dataclass(frozen=True, slots=True)
class Units:
    """The units of a text, in order.

    Attributes:
        text: the text itself.
        starts: index of each unit's first character, int64 [units].
        lengths: characters of each unit, int64 [units].
        unspaced: whether the unit belongs to an unspaced script, bool [units].
        hashes: of the units' characters, uint64 [units].
    """

    text: str
    starts: np.ndarray
    lengths: np.ndarray
    unspaced: np.ndarray
    hashes: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def mostly_unspaced(self) -> bool:
        """Whether more than half of the units are characters of unspaced scripts."""
        return 2 * int(self.unspaced.sum()) > len(self)

    def ngram_text(self, first: int, n: int) -> str:
        """``n`` units from ``first`` on, with a space between two of them unless both are unspaced."""
        parts = []
        for index in range(first, first + n):
            if index > first and not (self.unspaced[index - 1] and self.unspaced[index]):
                parts.append(" ")
            start = int(self.starts[index])
            parts.append(self.text[start : start + int(self.lengths[index])])
        return "".join(parts)


@functools.cache
def _character_classes() -> np.ndarray:
    """The class of every code point, uint8; made once per process, in 0.3 s."""
    classes = np.full(sys.maxunicode + 1, SEPARATOR, dtype=np.uint8)
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    for match in re.finditer(r"[^\W_]+", everything):
        classes[match.start() : match.end()] = WORD
    for first, last in UNSPACED_RANGES:
        part = classes[first : last + 1]
        part[part == WORD] = UNSPACED
    # The marks' planes; \w does not hold marks, and without them Indic words would fall to pieces.
    for code in (*range(0x300, 0x20000), *range(0xE0100, 0xE01F0)):
        if unicodedata.category(chr(code)).startswith("M"):
            classes[code] = MARK
    return classes


@functools.cache
def _powers() -> np.ndarray:
    return np.multiply.accumulate(np.full(_POSITIONS, _MULTIPLIER, dtype=np.uint64))


def find_units(text: str) -> Units:
    """The units of ``text`` in its own spelling."""
    if text.isascii():
        codes = np.frombuffer(text.encode("ascii"), dtype=np.uint8)
    else:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    classes = _character_classes()[codes]
    solid = classes != SEPARATOR
    begins = solid.copy()
    # A word or a mark goes on with what is before it, except that a word ends at an unspaced character.
    begins[1:] &= ~solid[:-1] | ((classes[:-1] == UNSPACED) & (classes[1:] == WORD))
    begins |= classes == UNSPACED
    starts = np.flatnonzero(begins)
    if not len(starts):
        empty = np.empty(0, dtype=np.int64)
        return Units(text, empty, empty, np.empty(0, dtype=bool), np.empty(0, dtype=np.uint64))
    lengths = np.add.reduceat(solid, starts, dtype=np.int64)
    hashes = _hash_runs(codes, solid, starts)
    return Units(text, starts, lengths, classes[starts] == UNSPACED, hashes)


def _hash_runs(codes: np.ndarray, solid: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Polynomial hashes of the solid characters from each start to the next."""
    first = int(starts[0])
    run_lengths = np.diff(starts, append=len(codes))
    position = np.arange(first, len(codes)) - np.repeat(starts, run_lengths)
    mixed = _mix(codes[first:].astype(np.uint64) + np.uint64(1))
    mixed *= _powers()[position & (_POSITIONS - 1)]
    mixed *= solid[first:]
    return _mix(np.add.reduceat(mixed, starts - first))


def _mix(values: np.ndarray) -> np.ndarray:
    """Spread every bit of uint64 values over all 64 (in place)."""
    values *= _MULTIPLIER
    values ^= values >> np.uint64(32)
    values *= _MULTIPLIER
    values ^= values >> np.uint64(29)
    return values


def normalized_units(text: str) -> Units:
    """The units of ``text`` in lower case and Unicode's NFKC form, for comparing texts.

    NFKC makes full-width letters and digits, as they stand in Chinese texts, equal to the plain ones.
    """
    if not text.isascii():
        for separator in _COMMON_SEPARATORS:
            text = text.replace(separator, " ")
    return find_units(unicodedata.normalize("NFKC", text).lower())


def ngram_hashes(hashes: np.ndarray, n: int) -> np.ndarray:
    """Hashes of all n-grams.

    Args:
        hashes: of the units, uint64 [units].
        n: units in an n-gram, at least 1.

    Returns:
        uint64 [units - n + 1]; empty when there are fewer than ``n`` units.
    """
    count = len(hashes) - n + 1
    if count <= 0:
        return np.empty(0, dtype=np.uint64)
    combined = hashes[:count].copy()
    for offset in range(1, n):
        combined *= _MULTIPLIER
        combined += hashes[offset : offset + count]
    return _mix(combined)
