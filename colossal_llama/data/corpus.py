"""What is known of all finished shards together: totals, and of each document its length.

Whatever else is asked about a document is read from its shard again, one shard after the other, so that memory holds
five bytes a document, and those only until it is decided which document goes where. The order of the corpus is fixed
by the input files, so nothing here depends on who tokenised what, when, or how often the preparation was killed.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from colossal_llama.data.formats.field_use import count_names
from colossal_llama.data.readers import Reject
from colossal_llama.data.shard_files import NOT_FIRST, DocumentColumns, ShardIndex, read_index


@dataclass(slots=True)
class Members:
    """The documents of one sub-dataset, in the order of the corpus, without those that are left out.

    Attributes:
        lengths: tokens, four bytes each.
        heads: 1 for a document, 0 for the later pieces of a conversation.
    """

    lengths: "array[int]" = field(default_factory=lambda: array("i"))
    heads: "array[int]" = field(default_factory=lambda: array("B"))


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts of one sub-dataset with what is left out of it; a conversation in pieces is one document."""

    documents: int
    characters: int
    bytes: int
    tokens: int


@dataclass(slots=True)
class ShardDocuments:
    """The documents of one shard.

    Attributes:
        number: of the shard.
        columns: what its index says of them.
        categories: index of each one's category in the corpus, int32.
        owners: number of each one's sub-dataset, int32.
        kept: rows of those that are not left out, ascending.
    """

    number: int
    columns: DocumentColumns
    categories: np.ndarray
    owners: np.ndarray
    kept: np.ndarray


@dataclass(slots=True)
class Corpus:
    """All finished shards.

    Attributes:
        folder, shards: where they are, and their number.
        names: of the sub-datasets.
        totals: of the sub-datasets.
        categories: index by name.
        ranks: number of the sub-dataset of each category; None where sub-datasets are inputs.
        left_out: for each shard, which of its documents are left out as duplicates; None if none are.
        left_out_tokens: their tokens.
        counts, dropped, unread: for each input, counters of records and turns, of records dropped by reason, and of
            records with fields that are not read, by their names.
        first_reject: the first record that was rejected.
    """

    folder: Path
    shards: int
    names: list[str]
    totals: list[Totals]
    categories: dict[str, int]
    ranks: np.ndarray | None
    left_out: Sequence[np.ndarray] | None
    left_out_tokens: int
    counts: list[Counter[str]]
    dropped: list[Counter[str]]
    unread: list[Counter[str]]
    first_reject: Reject | None

    def shard_documents(self) -> Iterator[ShardDocuments]:
        """The documents of one shard after the other, read from its index."""
        for number in range(self.shards):
            columns = read_index(self.folder, number).columns
            codes = _category_codes(columns, self.categories)
            owners = columns.inputs if self.ranks is None else self.ranks[codes]
            yield ShardDocuments(number, columns, codes, owners, _kept_rows(columns, number, self.left_out))


def load_corpus(
    folder: Path,
    shards: int,
    inputs: Sequence[str],
    by_category: bool = False,
    left_out: Sequence[np.ndarray] | None = None,
    note_reject: Callable[[Reject], None] = lambda reject: None,
) -> tuple[Corpus, list[Members]]:
    """Read the indexes of all shards.

    Args:
        folder, shards: where the shards 0 to ``shards`` - 1 are.
        inputs: names of the inputs.
        by_category: a sub-dataset is a category (in the order of their names); else an input.
        left_out: for each shard, which of its documents are left out.
        note_reject: gets the rejected records, in order.
    """
    counts: list[Counter[str]] = [Counter() for _ in inputs]
    dropped: list[Counter[str]] = [Counter() for _ in inputs]
    unread: list[Counter[str]] = [Counter() for _ in inputs]
    categories: dict[str, int] = {}
    members = [] if by_category else [Members() for _ in inputs]
    totals = np.zeros((len(members), 4), dtype=np.int64)
    left_out_tokens, first_reject = 0, None
    for number in range(shards):
        index = read_index(folder, number)
        columns = index.columns
        _add_counts(index, counts, dropped, unread)
        for reject in index.rejects:
            first_reject = first_reject or reject
            note_reject(reject)
        codes = _category_codes(columns, categories)
        new = len(categories) - len(members) if by_category else 0
        members += [Members() for _ in range(new)]
        keys = codes if by_category else columns.inputs
        totals = np.pad(totals, ((0, new), (0, 0))) + _count(columns, keys, len(members))
        kept = _kept_rows(columns, number, left_out)
        left_out_tokens += int(columns.lengths.sum(dtype=np.int64) - columns.lengths[kept].sum(dtype=np.int64))
        _append(members, columns, keys, kept)
    names, ranks = list(inputs), None
    if by_category:
        order = [categories[name] for name in sorted(categories)]
        names, ranks = [name or "(none)" for name in sorted(categories)], np.argsort(order).astype(np.int32)
        members, totals = [members[code] for code in order], totals[order]
    corpus = Corpus(
        folder=folder,
        shards=shards,
        names=names,
        totals=[Totals(*row) for row in totals.tolist()],
        categories=categories,
        ranks=ranks,
        left_out=left_out,
        left_out_tokens=left_out_tokens,
        counts=counts,
        dropped=dropped,
        unread=unread,
        first_reject=first_reject,
    )
    return corpus, members


def _add_counts(
    index: ShardIndex, counts: list[Counter[str]], dropped: list[Counter[str]], unread: list[Counter[str]]
) -> None:
    """Add the counters of a shard to those of the inputs."""
    for own, found in ((counts, index.counts), (dropped, index.dropped)):
        for owner, counter in found.items():
            own[owner].update(counter)
    for owner, counter in index.unread.items():
        count_names(unread[owner], counter)


def _category_codes(columns: DocumentColumns, categories: dict[str, int]) -> np.ndarray:
    """Index of each document's category in ``categories``, to which new ones are added."""
    codes = np.array([categories.setdefault(name, len(categories)) for name in columns.names], dtype=np.int32)
    return codes[columns.categories]


def _kept_rows(columns: DocumentColumns, number: int, left_out: Sequence[np.ndarray] | None) -> np.ndarray:
    return np.arange(len(columns.lengths)) if left_out is None else np.flatnonzero(~left_out[number])


def _count(columns: DocumentColumns, keys: np.ndarray, size: int) -> np.ndarray:
    """Documents, characters, bytes and tokens by key: int64 ``[size, 4]``."""
    heads = columns.characters != NOT_FIRST
    values = (heads, columns.characters * heads, columns.bytes * heads, columns.lengths)
    return np.stack([np.bincount(keys, value, minlength=size) for value in values], axis=1).astype(np.int64)


def _append(members: list[Members], columns: DocumentColumns, keys: np.ndarray, rows: np.ndarray) -> None:
    heads = (columns.characters != NOT_FIRST).astype(np.uint8)
    for key, own in rows_by(keys, rows):
        members[key].lengths.frombytes(columns.lengths[own].astype(np.int32, copy=False).tobytes())
        members[key].heads.frombytes(heads[own].tobytes())


def rows_by(keys: np.ndarray, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each key that some of ``rows`` have, ascending, and those rows, in their order."""
    if not len(rows):
        return
    order = rows[np.argsort(keys[rows], kind="stable")]
    present, firsts = np.unique(keys[order], return_index=True)
    yield from zip(present.tolist(), np.split(order, firsts[1:]), strict=True)


def firsts_of(counts: np.ndarray) -> np.ndarray:
    """Where each of consecutive groups of these sizes begins: int64."""
    return np.cumsum(counts, dtype=np.int64) - counts


def gather_ranges(firsts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The numbers ``firsts[i]`` to ``firsts[i] + counts[i] - 1`` for every i, one range behind the other: int64."""
    return np.repeat(firsts - firsts_of(counts), counts) + np.arange(int(counts.sum()), dtype=np.int64)
