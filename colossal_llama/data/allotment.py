"""Which document goes where: validation, bins, and how often.

Everything here follows from the documents' lengths and the seed. The order of the corpus is fixed by the input
files, so the allotment does not depend on who tokenised what, when, or how often the preparation was killed.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from colossal_llama.data.readers import Reject
from colossal_llama.data.shard_files import NOT_FIRST, read_index
from colossal_llama.errors import UserError

_VALIDATION, _COPIES, _BINS = range(3)
"""Streams of random numbers: each purpose has its own."""


@dataclass(slots=True)
class Documents:
    """Where documents lie and what is known of them: one entry each, in the order of the corpus.

    Attributes:
        shards: number of the shard, int32.
        offsets: first token in the shard, int64.
        lengths: tokens, int32.
        inputs: number of the input, int32.
        categories: index of the category, int32.
        characters, bytes: of the text; :data:`~colossal_llama.data.shards.NOT_FIRST` for later pieces, int32.
        run_firsts: first learned stretch in ``runs``, int64.
        run_counts: learned stretches, int32.
    """

    shards: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    inputs: np.ndarray
    categories: np.ndarray
    characters: np.ndarray
    bytes: np.ndarray
    run_firsts: np.ndarray
    run_counts: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, index: np.ndarray) -> "Documents":
        """The documents with these numbers, in this order."""
        return Documents(**{entry.name: getattr(self, entry.name)[index] for entry in fields(self)})

    def count(self) -> int:
        """Number of documents; a conversation in pieces counts once."""
        return int((self.characters != NOT_FIRST).sum())


@dataclass(slots=True)
class Corpus:
    """All finished shards.

    Attributes:
        documents: where they lie.
        runs: learned stretches of all documents, counted from their document's start: int32 ``[stretches, 2]``.
        categories: names by index.
        counts, dropped: counters of records and turns, and of records dropped by reason, for each input.
        rejects: records that were rejected, in order.
    """

    documents: Documents
    runs: np.ndarray
    categories: list[str]
    counts: list[Counter[str]]
    dropped: list[Counter[str]]
    rejects: list[Reject]


@dataclass(slots=True)
class Allotment:
    """Which documents go where.

    Attributes:
        owners: number of each document's sub-dataset.
        names: of the sub-datasets.
        epochs: passes over each.
        bins: numbers of each bin's documents.
        validation: numbers of the validation set's documents; None without one.
    """

    owners: np.ndarray
    names: list[str]
    epochs: list[float]
    bins: list[np.ndarray]
    validation: np.ndarray | None


def load_corpus(folder: Path, shards: int, inputs: int) -> Corpus:
    """Read the indexes of shards 0 to ``shards`` - 1 of a corpus of ``inputs`` inputs."""
    categories: dict[str, int] = {}
    counts: list[Counter[str]] = [Counter() for _ in range(inputs)]
    dropped: list[Counter[str]] = [Counter() for _ in range(inputs)]
    rejects: list[Reject] = []
    tables: list[Documents] = [_no_documents()]
    runs: list[np.ndarray] = [np.zeros((0, 2), np.int32)]
    run_total = 0
    for number in range(shards):
        index = read_index(folder, number)
        columns = index.columns
        codes = np.array([categories.setdefault(name, len(categories)) for name in columns.names], dtype=np.int32)
        tables.append(
            Documents(
                shards=np.full(len(columns.lengths), number, dtype=np.int32),
                offsets=_firsts(columns.lengths),
                lengths=columns.lengths,
                inputs=columns.inputs,
                categories=codes[columns.categories] if len(codes) else columns.categories,
                characters=columns.characters,
                bytes=columns.bytes,
                run_firsts=_firsts(columns.run_counts) + run_total,
                run_counts=columns.run_counts,
            )
        )
        runs.append(columns.runs)
        run_total += len(columns.runs)
        rejects.extend(index.rejects)
        for owner, counter in index.counts.items():
            counts[owner].update(counter)
        for owner, counter in index.dropped.items():
            dropped[owner].update(counter)
    documents = Documents(
        **{entry.name: np.concatenate([getattr(one, entry.name) for one in tables]) for entry in fields(Documents)}
    )
    return Corpus(documents, np.concatenate(runs), list(categories), counts, dropped, rejects)


def _no_documents() -> Documents:
    numbers, places = np.zeros(0, np.int32), np.zeros(0, np.int64)
    return Documents(numbers, places, numbers, numbers, numbers, numbers, numbers, places, numbers)


def _firsts(counts: np.ndarray) -> np.ndarray:
    """Where each of consecutive groups of these sizes begins: int64."""
    return np.cumsum(counts, dtype=np.int64) - counts


def gather_ranges(firsts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The numbers ``firsts[i]`` to ``firsts[i] + counts[i] - 1`` for every i, one range behind the other: int64."""
    return np.repeat(firsts - _firsts(counts), counts) + np.arange(int(counts.sum()), dtype=np.int64)


def set_aside(documents: Documents, owners: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Choose the documents of the validation set: bool ``[documents]``.

    Of each sub-dataset the fraction of its documents, rounded, and at least one where it has two or more. The pieces
    of a conversation stay together.

    Args:
        documents: the corpus.
        owners: number of each document's sub-dataset.
        fraction: 0 to less than 1.
        seed: of the draw.
    """
    aside = np.zeros(len(documents), dtype=bool)
    if not fraction:
        return aside
    heads = np.flatnonzero(documents.characters != NOT_FIRST)
    group_of = np.cumsum(documents.characters != NOT_FIRST) - 1
    chosen = np.zeros(len(heads), dtype=bool)
    for owner in np.unique(owners).tolist():
        groups = np.flatnonzero(owners[heads] == owner)
        wanted = max(round(fraction * len(groups)), 1) if len(groups) > 1 else 0
        draw = np.random.default_rng([seed, _VALIDATION, owner]).permutation(len(groups))
        chosen[groups[draw[:wanted]]] = True
    return chosen[group_of]


def epochs_of(tokens: Sequence[int], weights: Sequence[float] | None) -> list[float]:
    """How often each sub-dataset is gone through so that their shares of all tokens are as the weights.

    No sub-dataset is shortened: the one that is largest for its weight is gone through once, the others more often.

    Args:
        tokens: of each sub-dataset.
        weights: shares wanted, in any unit; None takes everything once.

    Returns:
        Epochs, 1 or more each (0 for a sub-dataset without tokens).
    """
    if weights is None:
        return [1.0] * len(tokens)
    wanted = [weight / count if count else 0.0 for count, weight in zip(tokens, weights, strict=True)]
    least = min(value for value in wanted if value)
    return [value / least for value in wanted]


def parse_mixture(text: str, names: Sequence[str]) -> list[float]:
    """Weights from ``name=weight,name=weight``, one for every sub-dataset, in the order of ``names``.

    Raises:
        UserError: malformed, an unknown or missing name, or a weight that is not above 0.
    """
    weights: dict[str, float] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = entry.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = 0.0
        if not name or not 0 < weight < float("inf"):
            raise UserError(f"--mixture {entry!r}: expected NAME=WEIGHT with a weight above 0")
        if name not in names:
            raise UserError(f"--mixture: no sub-dataset {name!r}; there are {', '.join(names)}")
        weights[name] = weight
    missing = [name for name in names if name not in weights]
    if missing:
        raise UserError(f"--mixture gives no weight for {', '.join(missing)}; every sub-dataset needs one")
    return [weights[name] for name in names]


def repeat(numbers: np.ndarray, epochs: float, seed: Sequence[int]) -> list[np.ndarray]:
    """Documents for ``epochs`` passes: whole copies, and of the last, fractional one a seeded draw."""
    whole = int(epochs)
    copies = [numbers] * whole
    rest = round((epochs - whole) * len(numbers))
    if rest:
        draw = np.random.default_rng(list(seed)).permutation(len(numbers))[:rest]
        copies.append(numbers[np.sort(draw)])
    return copies


def deal_out(lengths: np.ndarray, bins: int, seed: Sequence[int]) -> np.ndarray:
    """Bin of each of one sub-dataset's documents: a seeded shuffle, cut into ``bins`` stretches of equal tokens.

    Args:
        lengths: tokens of the documents.
        bins: number of bins; with fewer documents than bins some bins get none.
        seed: of the shuffle.

    Returns:
        int64 ``[documents]``. The bins' tokens differ by less than two documents.
    """
    order = np.random.default_rng(list(seed)).permutation(len(lengths))
    ends = np.cumsum(lengths[order], dtype=np.int64)
    middles = ends - lengths[order] / 2
    result = np.empty(len(lengths), dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 1
    result[order] = np.minimum((middles * bins / total).astype(np.int64), bins - 1)
    return result


def allot(documents: Documents, owners: np.ndarray, epochs: Sequence[float], bins: int, seed: int) -> list[np.ndarray]:
    """The documents of each bin, as numbers: bin i takes bin i of every sub-dataset.

    Args:
        documents: what is left after validation.
        owners: number of each document's sub-dataset.
        epochs: passes over each sub-dataset.
        bins: number of bins.
        seed: of the shuffles.
    """
    members: list[list[np.ndarray]] = [[] for _ in range(bins)]
    for owner, passes in enumerate(epochs):
        numbers = np.flatnonzero(owners == owner)
        for copy, part in enumerate(repeat(numbers, passes, (seed, _COPIES, owner))):
            dealt = deal_out(documents.lengths[part], bins, (seed, _BINS, owner, copy))
            for number in range(bins):
                members[number].append(part[dealt == number])
    nothing = np.empty(0, dtype=np.int64)
    return [np.concatenate([nothing, *parts]) for parts in members]


def owners_by(
    documents: Documents, categories: Sequence[str], by_category: bool, inputs: Sequence[str]
) -> tuple[np.ndarray, list[str]]:
    """Number of each document's sub-dataset, and the sub-datasets' names.

    Args:
        documents: the corpus.
        categories: names of the categories.
        by_category: a sub-dataset is a category; else an input.
        inputs: names of the inputs.
    """
    if not by_category:
        return documents.inputs, list(inputs)
    order = sorted(range(len(categories)), key=lambda index: categories[index])
    rank = np.empty(len(categories), dtype=np.int32)
    rank[order] = np.arange(len(categories), dtype=np.int32)
    return rank[documents.categories], [categories[index] or "(none)" for index in order]


def unique_names(paths: Iterable[str]) -> list[str]:
    """A short name for each input: its last part, or more of the path where that is taken twice."""
    paths = [str(Path(path)) for path in paths]
    names = [Path(path).name for path in paths]
    return [path if names.count(name) > 1 else name for path, name in zip(paths, names, strict=True)]
