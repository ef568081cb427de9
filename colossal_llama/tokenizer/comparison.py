"""What tokenizers make of the same text: tokens, unknown characters, round trips, by category."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from colossal_llama.errors import UserError
from colossal_llama.json_files import read_json_object
from colossal_llama.tokenizer.bytelevel import is_byte_level, is_whole_text
from colossal_llama.tokenizer.compression import BATCH_CHARACTERS
from colossal_llama.tokenizer.plain_text import plain_encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN_FAILURES = 3
"""Round-trip failures of which each tokenizer keeps an example."""

_HIGH_BYTE = re.compile(r"<0x[89A-Fa-f][0-9A-Fa-f]>")
"""A SentencePiece byte token that cannot be a character by itself."""

_EXCERPT = 20


@dataclass
class TextFigures:
    """Counts of one tokenizer on one category, or of several categories added up.

    Attributes:
        samples: texts.
        characters: in them.
        bytes: in UTF-8.
        tokens: of the texts alone, without special tokens.
        unknown: tokens that stand for characters which the vocabulary cannot express.
        byte_tokens: tokens that hold only a part of a character (byte fallback).
        failures: texts that decoding does not give back.
        used: which ids occur, bool [vocabulary].
    """

    used: np.ndarray
    samples: int = 0
    characters: int = 0
    bytes: int = 0
    tokens: int = 0
    unknown: int = 0
    byte_tokens: int = 0
    failures: int = 0

    def add(self, other: "TextFigures") -> None:
        """Add another category's counts of the same tokenizer."""
        self.used |= other.used
        for name in ("samples", "characters", "bytes", "tokens", "unknown", "byte_tokens", "failures"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(frozen=True)
class FailedRoundTrip:
    """Where a decoded text first differs from the original: an excerpt of each."""

    category: str
    original: str
    decoded: str


class TokenizerMeter:
    """Encodes and decodes text with one tokenizer and counts.

    Attributes:
        name: for the report.
        tokenizer: the tokenizer.
        size: its highest id + 1.
        categories: figures by category, in order of appearance.
        examples: the first failed round trips.
    """

    def __init__(self, name: str, tokenizer: "PreTrainedTokenizerBase", flag: str) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.vocabulary: dict[str, int] = tokenizer.get_vocab()
        self.size = max(self.vocabulary.values()) + 1
        self.categories: dict[str, TextFigures] = {}
        self.examples: list[FailedRoundTrip] = []
        self._encoder = plain_encoder(tokenizer, flag)
        self._unknown = _unknown_id(self._encoder.to_str(), self.vocabulary)
        self._is_byte = self._byte_ids(is_byte_level(json.loads(self._encoder.to_str())))

    def _byte_ids(self, byte_level: bool) -> np.ndarray:
        """Which ids stand for a part of a character, bool [vocabulary]."""
        parts = np.zeros(self.size, dtype=bool)
        added = self.tokenizer.added_tokens_encoder  # type: ignore[attr-defined]
        for token, number in self.vocabulary.items():
            if token not in added:
                parts[number] = _is_part(token) if byte_level else bool(_HIGH_BYTE.fullmatch(token))
        return parts

    def measure(self, category: str, texts: Sequence[str]) -> None:
        """Count ``texts``."""
        figures = self.categories.setdefault(category, TextFigures(np.zeros(self.size, dtype=bool)))
        encodings = self._encoder.encode_batch_fast(list(texts), add_special_tokens=False)
        decoded = self._encoder.decode_batch([encoding.ids for encoding in encodings], skip_special_tokens=False)
        for text, encoding, back in zip(texts, encodings, decoded, strict=True):
            ids = np.array(encoding.ids, dtype=np.int64)
            figures.samples += 1
            figures.characters += len(text)
            figures.bytes += len(text.encode("utf-8"))
            figures.tokens += len(ids)
            figures.unknown += int((ids == self._unknown).sum())
            figures.byte_tokens += int(self._is_byte[ids].sum())
            figures.used[ids] = True
            if back != text:
                figures.failures += 1
                if len(self.examples) < SHOWN_FAILURES:
                    self.examples.append(_failure(category, text, back))

    @property
    def total(self) -> TextFigures:
        """All categories together."""
        total = TextFigures(np.zeros(self.size, dtype=bool))
        for figures in self.categories.values():
            total.add(figures)
        return total

    def widens(self, other: "TokenizerMeter") -> bool:
        """Whether this vocabulary is the other's, with the same ids, and more."""
        old = other.vocabulary
        return len(self.vocabulary) > len(old) and all(self.vocabulary.get(token) == old[token] for token in old)


def _unknown_id(backend: str, vocabulary: dict[str, int]) -> int:
    """The model's own unknown token; -1 without one (a configured unk_token may be an ordinary token, as GPT-2's)."""
    model = json.loads(backend)["model"]
    if isinstance(model.get("unk_id"), int):
        return model["unk_id"]
    return vocabulary.get(model.get("unk_token") or "", -1)


def _is_part(token: str) -> bool:
    try:
        return not is_whole_text(token)
    except KeyError:  # not in the byte alphabet: a token of its own kind
        return False


def _failure(category: str, text: str, decoded: str) -> FailedRoundTrip:
    pairs = enumerate(zip(text, decoded, strict=False))
    at = next((index for index, (left, right) in pairs if left != right), min(len(text), len(decoded)))
    start = max(0, at - _EXCERPT // 2)
    return FailedRoundTrip(category, text[start : at + _EXCERPT], decoded[start : at + _EXCERPT])


def measure_texts(meters: Sequence[TokenizerMeter], texts: Iterable[tuple[str, str]]) -> None:
    """Give every tokenizer the same texts, in batches; memory holds one batch for each category.

    Args:
        meters: the tokenizers.
        texts: pairs of category and text.
    """
    waiting: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}

    def flush(category: str) -> None:
        for meter in meters:
            meter.measure(category, waiting[category])
        waiting[category], sizes[category] = [], 0

    for category, text in texts:
        waiting.setdefault(category, []).append(text)
        sizes[category] = sizes.get(category, 0) + len(text)
        if sum(sizes.values()) >= BATCH_CHARACTERS:
            flush(max(sizes, key=lambda name: sizes[name]))
    for category in list(waiting):
        if waiting[category]:
            flush(category)


@dataclass(frozen=True)
class EmbeddingCost:
    """What a tokenizer costs in embedding rows, against the first one of a comparison.

    Attributes:
        rows: ids more (or fewer, negative).
        parameters: rows times hidden size, twice where input and output embeddings are apart.
        training_tokens: parameters times a ratio; 0 for fewer rows. A rule of thumb, see :func:`embedding_cost`.
    """

    rows: int
    parameters: int
    training_tokens: float


def embedding_cost(rows: int, hidden_size: int, tied: bool, tokens_per_parameter: float) -> EmbeddingCost:
    """Parameters of new embedding rows, and an estimate of the training tokens that they ask for.

    The ratio of 20 tokens per parameter is the compute-optimal one of Hoffmann et al., 2022 ("Chinchilla"), found
    for whole models trained from scratch. Here it is a rule of thumb: rows that start as means of trained rows ask
    for less, rare tokens for more.
    """
    parameters = rows * hidden_size * (1 if tied else 2)
    return EmbeddingCost(rows, parameters, max(0, parameters) * tokens_per_parameter)


def read_model_shape(folder: Path, flag: str) -> tuple[int, bool]:
    """Hidden size and whether input and output embeddings are one, by a model's ``config.json``.

    Raises:
        UserError: there is none, or it does not say its hidden size.
    """
    path = folder / "config.json" if folder.is_dir() else folder
    if not path.is_file():
        raise UserError(f"{flag} {folder}: no config.json here; give a model's folder or --hidden_size")
    config = read_json_object(path, f"{flag} {path}", "copy it again, or give --hidden_size")
    inner = config.get("text_config")
    hidden_size = (inner if isinstance(inner, dict) else config).get("hidden_size")
    tied = config.get("tie_word_embeddings", False)
    if hidden_size is None:
        raise UserError(f"{flag} {path}: does not say a hidden_size; give --hidden_size")
    if not isinstance(hidden_size, int) or hidden_size < 1:
        raise UserError(f"{flag} {path}: hidden_size is {hidden_size!r}; expected a number; give --hidden_size")
    return hidden_size, bool(tied)


@dataclass(frozen=True)
class Comparison:
    """Everything that a report shows.

    Attributes:
        meters: the tokenizers, the first one is what the others are compared with.
        hidden_size: of the model; None leaves the embedding costs out.
        tied: whether its input and output embeddings are one.
        tokens_per_parameter: see :func:`embedding_cost`.
        dropped: records without text, by reason.
    """

    meters: Sequence[TokenizerMeter]
    hidden_size: int | None = None
    tied: bool = False
    tokens_per_parameter: float = 20.0
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def categories(self) -> list[str]:
        """Names of all categories, sorted."""
        return sorted(self.meters[0].categories)

    def cost(self, meter: TokenizerMeter) -> EmbeddingCost:
        """The embedding cost of one tokenizer; needs ``hidden_size``."""
        assert self.hidden_size is not None
        rows = meter.size - self.meters[0].size
        return embedding_cost(rows, self.hidden_size, self.tied, self.tokens_per_parameter)
