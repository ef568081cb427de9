"""How many tokens text really costs: measured by encoding, after widening the tokenizer for good."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from colossal_llama.errors import UserError
from colossal_llama.tokenizer.expansion import VocabularyExpansion, expand_tokenizer
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.tokenizer.plain_text import plain_encoder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BATCH_CHARACTERS = 1_000_000

SPACING = 2.0
"""Each size of a curve is this many times the one before, until the knee is looked for between two of them."""


@dataclass(frozen=True)
class CurvePoint:
    """One measured widening.

    Attributes:
        pieces: pieces given, the best ones.
        vocabulary: ids afterwards, intermediate tokens included.
        tokens: that the text costs.
        compression: tokens per character.
    """

    pieces: int
    vocabulary: int
    tokens: int
    compression: float


def batches(texts: Iterable[str], characters: int = BATCH_CHARACTERS) -> Iterator[list[str]]:
    """Texts in lists of about so many characters."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def id_counts(encoder: "Tokenizer", texts: Iterable[str], size: int) -> np.ndarray:
    """How often each id occurs in the encoded texts, int64 [size]."""
    counts = np.zeros(size, dtype=np.int64)
    for batch in batches(texts):
        ids = [
            number for encoding in encoder.encode_batch_fast(batch, add_special_tokens=False) for number in encoding.ids
        ]
        counts += np.bincount(np.array(ids, dtype=np.int64), minlength=size)
    return counts


def use_widened(
    source_dir: Path, pieces: Sequence[str], texts: Iterable[str]
) -> tuple[VocabularyExpansion, np.ndarray]:
    """Widen the tokenizer in ``source_dir`` in a temporary folder and encode ``texts`` with it.

    Returns:
        What the expansion did, and how often each id of the wider tokenizer occurs.

    Raises:
        UserError: see :func:`colossal_llama.tokenizer.expansion.expand_tokenizer`.
    """
    with tempfile.TemporaryDirectory(prefix="wider-tokenizer-") as folder:
        target = Path(folder) / "tokenizer"
        expansion = expand_tokenizer(source_dir, pieces, target)
        encoder = plain_encoder(load_tokenizer(target, "--source_tokenizer_dir"), "--source_tokenizer_dir")
    return expansion, id_counts(encoder, texts, expansion.new_size)


class CompressionCurve:
    """Tokens per character of the same texts for the best 0, 1, 2, ... pieces; each point is measured once.

    Attributes:
        pieces: all pieces, best first.
        characters: of the texts.
    """

    def __init__(self, source_dir: Path, pieces: Sequence[str], texts: Sequence[str]) -> None:
        self.pieces = list(pieces)
        self.characters = sum(map(len, texts))
        self._source_dir = source_dir
        self._texts = texts
        self._points: dict[int, CurvePoint] = {}

    def at(self, count: int) -> CurvePoint:
        """The point at the best ``count`` pieces, by a real expansion and encoding."""
        if count not in self._points:
            self._points[count] = self._measure(count)
        return self._points[count]

    def _measure(self, count: int) -> CurvePoint:
        if count == 0:
            source = load_tokenizer(self._source_dir, "--source_tokenizer_dir")
            size = max(source.get_vocab().values()) + 1
            counts = id_counts(plain_encoder(source, "--source_tokenizer_dir"), self._texts, size)
        else:
            expansion, counts = use_widened(self._source_dir, self.pieces[:count], self._texts)
            size = expansion.new_size
        tokens = int(counts.sum())
        return CurvePoint(count, size, tokens, tokens / self.characters)

    def points(self) -> list[CurvePoint]:
        """What was measured so far, by number of pieces."""
        return [self._points[count] for count in sorted(self._points)]

    def measure_sizes(self, count: int, number: int) -> list[CurvePoint]:
        """Measure 0, ``count`` and ``number`` sizes between them, each twice the one before."""
        sizes = {round(count / SPACING**power) for power in range(number + 1)} | {0}
        return [self.at(size) for size in sorted(sizes)]

    def smallest(self, compression: float, most: int) -> CurvePoint:
        """The fewest pieces, of at most ``most``, with at most ``compression`` tokens per character; by bisection.

        Raises:
            UserError: no piece is needed, or even ``most`` are not enough; the message says what they reach.
        """
        if self.at(0).compression <= compression:
            raise UserError(
                f"--target_compression {compression:g}: the tokenizer needs only {self.at(0).compression:.4f} tokens "
                "per character as it is; no piece is needed"
            )
        best = self.at(most)
        if best.compression > compression:
            raise UserError(
                f"--target_compression {compression:g}: not reachable; the best are {best.compression:.4f} tokens per "
                f"character with {most:,} pieces (now {self.at(0).compression:.4f}); raise the target, --target_size, "
                "or give more text"
            )
        low, high = 0, most  # low is not enough, high is
        while high - low > max(1, high // 100):
            middle = (low + high) // 2
            low, high = (low, middle) if self.at(middle).compression <= compression else (middle, high)
        return self.at(high)


def knee(points: Sequence[CurvePoint]) -> CurvePoint | None:
    """The point farthest below the straight line from the first to the last, both axes scaled to 0..1.

    With x the vocabulary and y the compression, scaled so that the first point is (0, 1) and the last (1, 0), the
    distance from the chord is (1 - x - y) / sqrt(2): the "Kneedle" criterion of Satopaa et al., 2011.

    Returns:
        None for fewer than three points, or where no point lies below the chord.
    """
    first, last = points[0], points[-1]
    width, height = last.vocabulary - first.vocabulary, first.compression - last.compression
    if len(points) < 3 or width <= 0 or height <= 0:
        return None

    def below_chord(point: CurvePoint) -> float:
        x = (point.vocabulary - first.vocabulary) / width
        y = (point.compression - last.compression) / height
        return (1 - x - y) / 2**0.5

    best = max(points[1:-1], key=below_chord)
    return best if below_chord(best) > 0 else None


def find_knee(curve: CompressionCurve, count: int, number: int) -> CurvePoint | None:
    """Measure ``number`` sizes up to ``count`` and two more beside the knee; returns the knee among all."""
    points = curve.measure_sizes(count, number)
    rough = knee(points)
    if rough is None:
        return None
    at = points.index(rough)
    for neighbour in (points[at - 1], points[at + 1]):
        points.append(curve.at((rough.pieces + neighbour.pieces) // 2))
    return knee(sorted(points, key=lambda point: point.pieces))
