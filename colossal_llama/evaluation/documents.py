"""Scores of whole documents by category, with confidence intervals, and the difference of two models on them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from colossal_llama.evaluation.bootstrap import Interval, interval, resampled_sums
from colossal_llama.evaluation.perplexity import check_lengths, encode_texts, plan_batches, score_each, split_text
from colossal_llama.tables import ALL

if TYPE_CHECKING:
    import numpy as np

NATS, TOKENS, CHARACTERS, BYTES = range(4)


@dataclass(frozen=True)
class Document:
    """A text and what it is filed under."""

    text: str
    category: str


@dataclass(frozen=True)
class Windows:
    """How texts go through a model.

    Attributes:
        characters: of a piece at most.
        batch_tokens: tokens in each forward pass.
        parse_special: whether control tokens that a text spells out become tokens.
    """

    characters: int
    batch_tokens: int
    parse_special: bool = False


@dataclass(frozen=True)
class DocumentScores:
    """Sums over the pieces of each document.

    Attributes:
        categories: of each document.
        sums: float64 ``[4, documents]``: nats, tokens, characters, UTF-8 bytes.
    """

    categories: list[str]
    sums: np.ndarray

    def groups(self) -> dict[str, np.ndarray]:
        """Indices of the documents of each category, in order of first appearance, and of :data:`ALL` at the end."""
        import numpy as np

        names = list(dict.fromkeys(self.categories))
        places = {name: [i for i, one in enumerate(self.categories) if one == name] for name in names}
        groups = {name: np.array(indices) for name, indices in places.items()}
        if len(names) != 1:
            groups[ALL] = np.arange(len(self.categories))
        return groups

    def as_json(self) -> dict[str, Any]:
        """What :meth:`from_json` takes."""
        return {"categories": self.categories, "sums": self.sums.tolist()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> DocumentScores:
        """The scores that :meth:`as_json` gave."""
        import numpy as np

        return cls(content["categories"], np.array(content["sums"], dtype=np.float64).reshape(4, -1))


@dataclass(frozen=True)
class CategoryFigures:
    """How well a model does on one category.

    Attributes:
        documents, tokens, characters, utf8_bytes: sizes; special tokens do not count.
        bits_per_byte: cross entropy, the same unit for every tokenizer.
        perplexity: of each token, so it compares models with one tokenizer only.
    """

    documents: int
    tokens: int
    characters: int
    utf8_bytes: int
    bits_per_byte: Interval
    perplexity: Interval

    @property
    def tokens_per_character(self) -> float:
        """Length of the tokenized text per character."""
        return self.tokens / self.characters

    def as_json(self) -> dict[str, Any]:
        """All figures as a mapping."""
        sizes = {name: getattr(self, name) for name in ("documents", "tokens", "characters", "utf8_bytes")}
        return {
            **sizes,
            "tokens_per_character": self.tokens_per_character,
            "bits_per_byte": self.bits_per_byte.as_json(),
            "perplexity": self.perplexity.as_json(),
        }


def score_documents(model: Any, tokenizer: Any, documents: Sequence[Document], windows: Windows) -> DocumentScores:
    """Score every document; longer ones piece by piece.

    Raises:
        UserError: a piece has more tokens than the model has positions.
    """
    import numpy as np

    pieces = [split_text(document.text, windows.characters) for document in documents]
    owners = [number for number, parts in enumerate(pieces) for _ in parts]
    encoded = encode_texts(tokenizer, [part for parts in pieces for part in parts], windows.parse_special)
    check_lengths(model, encoded, windows.characters)
    nats = score_each(model, encoded, plan_batches(encoded, tokens=windows.batch_tokens))
    sums = np.zeros((4, len(documents)))
    np.add.at(sums[NATS], owners, nats)
    np.add.at(sums[TOKENS], owners, [len(ids) - 1 for ids in encoded])
    sums[CHARACTERS] = [len(document.text) for document in documents]
    sums[BYTES] = [len(document.text.encode()) for document in documents]
    return DocumentScores([document.category for document in documents], sums)


def figures_by_category(scores: DocumentScores, resamples: int, seed: int) -> dict[str, CategoryFigures]:
    """The figures of each category, and of all where there are several."""
    return {name: _figures(scores.sums[:, places], resamples, seed) for name, places in scores.groups().items()}


def _figures(sums: np.ndarray, resamples: int, seed: int) -> CategoryFigures:
    import numpy as np

    totals = sums.sum(axis=1)
    draws = resampled_sums(sums, resamples if sums.shape[1] > 1 else 0, seed)
    with np.errstate(over="ignore"):
        perplexities = np.exp(draws[:, NATS] / draws[:, TOKENS])
        perplexity = float(np.exp(totals[NATS] / totals[TOKENS]))
    bits = draws[:, NATS] / math.log(2) / draws[:, BYTES]
    return CategoryFigures(
        documents=sums.shape[1],
        tokens=int(totals[TOKENS]),
        characters=int(totals[CHARACTERS]),
        utf8_bytes=int(totals[BYTES]),
        bits_per_byte=interval(float(totals[NATS] / math.log(2) / totals[BYTES]), bits),
        perplexity=interval(perplexity, perplexities),
    )


@dataclass(frozen=True)
class Change:
    """One model against another on the same documents, resampled in pairs.

    Attributes:
        bits_per_byte: difference in bits per byte; below 0 is better.
        relative: the same as a fraction of the other model's.
        tokens: how many more tokens, as a fraction of the other tokenizer's.
    """

    bits_per_byte: Interval
    relative: Interval
    tokens: float

    def as_json(self) -> dict[str, Any]:
        """All figures as a mapping."""
        return {
            "bits_per_byte": self.bits_per_byte.as_json(),
            "relative": self.relative.as_json(),
            "tokens": self.tokens,
        }


def change_by_category(before: DocumentScores, after: DocumentScores, resamples: int, seed: int) -> dict[str, Change]:
    """The change of each category from one model to another that scored the same documents."""
    return {
        name: _change(before.sums[:, places], after.sums[:, places], resamples, seed)
        for name, places in before.groups().items()
    }


def _change(before: np.ndarray, after: np.ndarray, resamples: int, seed: int) -> Change:
    import numpy as np

    columns = np.stack([before[NATS], after[NATS], before[BYTES]])
    old, new, size = columns.sum(axis=1)
    draws = resampled_sums(columns, resamples if columns.shape[1] > 1 else 0, seed)
    drawn_old, drawn_new, drawn_size = draws.T
    return Change(
        bits_per_byte=interval((new - old) / math.log(2) / size, (drawn_new - drawn_old) / math.log(2) / drawn_size),
        relative=interval(new / old - 1, drawn_new / drawn_old - 1),
        tokens=float(after[TOKENS].sum() / before[TOKENS].sum() - 1),
    )


def documents_fingerprint(documents: Iterable[Document]) -> str:
    """SHA-256 of the texts and categories in their order."""
    digest = hashlib.sha256()
    for document in documents:
        for part in (document.category, document.text):
            encoded = part.encode("utf-8", "surrogatepass")
            digest.update(f"{len(encoded)} ".encode())  # the length keeps parts apart
            digest.update(encoded)
    return digest.hexdigest()
