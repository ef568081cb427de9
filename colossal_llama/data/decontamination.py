"""Training texts that hold evaluation questions, found by shared n-grams.

After Brown et al. 2020, "Language Models are Few-Shot Learners" (arXiv 2005.14165), appendix C: a text is
contaminated when it shares 13 words in a row with an evaluation example, in lower case and without punctuation.
Scripts without spaces count 13 characters (see :mod:`.text_units`). The paper cuts the surroundings of a match
out of the text; here the caller is told, and decides.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from colossal_llama.data.text_units import ngram_hashes, normalized_units
from colossal_llama.errors import UserError
from colossal_llama.json_records import parse_line

DEFAULT_N = 13

_FILTER_BITS = 22


class EvaluationNgrams:
    """The n-grams of evaluation texts, 8 bytes each and a filter of 4 MiB. Can be pickled.

    Attributes:
        n: units in an n-gram.
        texts: evaluation texts with at least one n-gram.
        too_short: evaluation texts that have none, and cannot be found.
    """

    def __init__(self, texts: Iterable[str], n: int = DEFAULT_N) -> None:
        """Take the n-grams of ``texts``.

        Raises:
            ValueError: ``n`` is not positive.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, not {n}")
        self.n = n
        self.texts = self.too_short = 0
        found = [np.empty(0, dtype=np.uint64)]
        for text in texts:
            hashes = ngram_hashes(normalized_units(text).hashes, n)
            if len(hashes):
                self.texts += 1
                found.append(hashes)
            else:
                self.too_short += 1
        self._take(np.unique(np.concatenate(found)))

    def _take(self, hashes: np.ndarray) -> None:
        self._hashes = hashes
        # Nearly every n-gram of a training text is turned away by one look into this.
        self._filter = np.zeros(1 << _FILTER_BITS, dtype=bool)
        self._filter[self._filter_places(hashes)] = True

    def save(self, path: Path) -> None:
        """Write the n-grams as a ``.npy`` file, which is complete or absent."""
        scratch = path.with_suffix(".tmp.npy")
        np.save(scratch, self._hashes)
        scratch.rename(path)

    @classmethod
    def load(cls, path: Path, n: int = DEFAULT_N) -> "EvaluationNgrams":
        """What :meth:`save` wrote, mapped, so that processes share it; the numbers of texts are not known any more."""
        result = cls([], n)
        result._take(np.load(path, mmap_mode="r"))
        return result

    @classmethod
    def from_files(cls, paths: Sequence[str | Path], n: int = DEFAULT_N, flag: str = "") -> "EvaluationNgrams":
        """Read evaluation texts.

        Args:
            paths: ``.jsonl`` files, of which every string value counts as one text however deep it lies, or
                UTF-8 text files, of which every line does.
            n: units in an n-gram.
            flag: the flag that named the files, for messages.

        Raises:
            UserError: a file cannot be read, a line is not JSON, or no text of a file has ``n`` units.
        """
        texts: list[str] = []
        for path in map(Path, paths):
            own = list(_read_texts(path, flag))
            if not any(len(normalized_units(text)) >= n for text in own):
                where = f"{flag} {path}".strip()
                raise UserError(
                    f"{where}: none of its {len(own)} texts has {n} words (or characters, where there are no "
                    "spaces); expected evaluation questions, as .jsonl or one a line"
                )
            texts.extend(own)
        return cls(texts, n)

    def __len__(self) -> int:
        """Number of different n-grams."""
        return len(self._hashes)

    def hit(self, text: str) -> str | None:
        """The first n-gram of ``text`` that an evaluation text holds too, in lower case and without punctuation.

        None if there is none. Matches are told by 64-bit hashes: with a million evaluation n-grams a wrong one
        comes once in 2e13 words of training text.
        """
        units = normalized_units(text)
        hashes = ngram_hashes(units.hashes, self.n)
        candidates = np.flatnonzero(self._filter[self._filter_places(hashes)])
        if not len(candidates) or not len(self._hashes):
            return None
        values = hashes[candidates]
        places = np.minimum(np.searchsorted(self._hashes, values), len(self._hashes) - 1)
        matches = candidates[self._hashes[places] == values]
        return units.ngram_text(int(matches[0]), self.n) if len(matches) else None

    @staticmethod
    def _filter_places(hashes: np.ndarray) -> np.ndarray:
        return (hashes >> np.uint64(64 - _FILTER_BITS)).astype(np.int64)


def _read_texts(path: Path, flag: str) -> Iterator[str]:
    where = f"{flag} {path}".strip()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror}); give a .jsonl or text file") from error
    content = content.removeprefix(b"\xef\xbb\xbf")
    for number, raw in enumerate(content.split(b"\n"), start=1):
        if not raw.strip():
            continue
        if path.suffix == ".jsonl":
            yield from _strings(parse_line(raw, f"{path}:{number}"))
        else:
            yield _decode(raw, f"{path}:{number}")


def _decode(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8; convert the file to UTF-8") from error


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if value.strip():
            yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
