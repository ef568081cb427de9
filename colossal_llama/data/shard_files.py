"""The files of a shard: tokenised documents on disk, between reading the corpus and writing the parts.

A shard is two files: ``shard-000000.tokens`` (int32 ids, documents one behind the other) and ``shard-000000.npz`` (one
entry a document), written last, so that a shard with an index is complete. Where near duplicates are looked for there
is a third one.
"""

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from colossal_llama.constants import IGNORE_INDEX
from colossal_llama.data.readers import Reject
from colossal_llama.data.tokenization import TokenizedSample

SHINGLES = "shingles"
"""End of the name of a shard's third file, where near duplicates are looked for: all documents' shingles (uint32)."""

NOT_FIRST = -1
"""Number of characters of the later pieces of a conversation: they are not counted as documents again."""


def shard_path(folder: Path, number: int, suffix: str) -> Path:
    """A file of a shard; ``suffix`` is ``tokens``, ``npz`` or :data:`SHINGLES`."""
    return folder / f"shard-{number:06d}.{suffix}"


@dataclass(slots=True)
class DocumentColumns:
    """One entry a document (for a conversation that was cut: one a piece), in the order of the corpus.

    Attributes:
        lengths: tokens.
        inputs: number of the input.
        categories: index into ``names``.
        characters, bytes: of the text (UTF-8); :data:`NOT_FIRST` for later pieces.
        run_counts: learned stretches of each document.
        runs: their starts and ends, counted from the document's start: int32 ``[stretches, 2]``.
        names: categories by index.
    """

    lengths: np.ndarray
    inputs: np.ndarray
    categories: np.ndarray
    characters: np.ndarray
    bytes: np.ndarray
    run_counts: np.ndarray
    runs: np.ndarray
    names: list[str]


@dataclass(slots=True)
class ShardBuilder:
    """Collects what goes into one shard."""

    samples: list[TokenizedSample] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    characters: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    signatures: list[np.ndarray] = field(default_factory=list)
    shingles: list[np.ndarray] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    counts: dict[int, Counter[str]] = field(default_factory=dict)
    dropped: dict[int, Counter[str]] = field(default_factory=dict)
    unread: dict[int, Counter[str]] = field(default_factory=dict)
    rejects: list[Reject] = field(default_factory=list)

    def counter(self, number: int) -> Counter[str]:
        """Counts of an input: records, turns."""
        return self.counts.setdefault(number, Counter())

    def unread_counter(self, number: int) -> Counter[str]:
        """Records of an input that hold fields which are not read, by the fields' names."""
        return self.unread.setdefault(number, Counter())

    def drop(self, number: int, reason: str) -> None:
        """Count a record of an input that is left out."""
        self.dropped.setdefault(number, Counter())[reason] += 1

    def reject(self, number: int, reject: Reject) -> None:
        """Count a record of an input that is left out, and list it."""
        self.drop(number, reject.reason)
        self.rejects.append(reject)

    def add(self, number: int, sample: TokenizedSample, characters: int, size: int) -> None:
        """Add a document of an input: its tokens, and the characters and bytes of its text."""
        self.samples.append(sample)
        self.inputs.append(number)
        self.characters.append(characters)
        self.sizes.append(size)


def write_shard(builder: ShardBuilder, folder: Path, number: int) -> None:
    """Write the files of a shard, the index last and at once."""
    samples = builder.samples
    nothing = np.empty(0, dtype=np.int32)
    ids = np.concatenate([nothing, *(sample.input_ids for sample in samples)])
    labels = np.concatenate([nothing, *(sample.labels for sample in samples)])
    lengths = np.array([len(sample.input_ids) for sample in samples], dtype=np.int32)
    run_counts, runs = learned_runs(labels != IGNORE_INDEX, lengths)
    names = list(dict.fromkeys(sample.category for sample in samples))
    index_of = {name: index for index, name in enumerate(names)}
    summary = {
        "names": names,
        "counts": builder.counts,
        "dropped": builder.dropped,
        "unread": builder.unread,
        "rejects": [asdict(reject) for reject in builder.rejects],
        "places": builder.places,
    }
    ids.tofile(shard_path(folder, number, "tokens"))
    if builder.shingles:
        np.concatenate(builder.shingles).tofile(shard_path(folder, number, SHINGLES))
    index = shard_path(folder, number, "npz")
    scratch = index.with_suffix(f".tmp-{os.getpid()}")
    with scratch.open("wb") as file:
        np.savez(
            file,
            lengths=lengths,
            inputs=np.array(builder.inputs, dtype=np.int32),
            categories=np.array([index_of[sample.category] for sample in samples], dtype=np.int32),
            characters=np.array(builder.characters, dtype=np.int32),
            bytes=np.array(builder.sizes, dtype=np.int32),
            run_counts=run_counts,
            runs=runs,
            keys=np.frombuffer(b"".join(builder.keys), dtype="V16"),
            signatures=np.array(builder.signatures, dtype=np.uint8),
            shingle_counts=np.array([len(shingles) for shingles in builder.shingles], dtype=np.int32),
            summary=np.frombuffer(json.dumps(summary).encode(), dtype=np.uint8),
        )
    scratch.rename(index)


def learned_runs(learned: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Stretches of learned tokens of each document.

    Args:
        learned: bool ``[tokens]``, documents one behind the other.
        lengths: int ``[documents]``, none of them 0.

    Returns:
        Number of stretches of each document (int32 ``[documents]``), and all starts and ends, counted from the
        start of their document (int32 ``[stretches, 2]``).
    """
    if not len(lengths):
        return np.zeros(0, np.int32), np.zeros((0, 2), np.int32)
    ends_of_documents = np.cumsum(lengths, dtype=np.int64)
    firsts = ends_of_documents - lengths
    begins = learned.copy()
    begins[1:] &= ~learned[:-1]
    begins[firsts] = learned[firsts]
    finishes = learned.copy()
    finishes[:-1] &= ~learned[1:]
    finishes[ends_of_documents - 1] = learned[ends_of_documents - 1]
    starts, ends = np.flatnonzero(begins), np.flatnonzero(finishes) + 1
    owners = np.searchsorted(ends_of_documents, starts, side="right")
    runs = np.stack([starts - firsts[owners], ends - firsts[owners]], axis=1).astype(np.int32)
    return np.bincount(owners, minlength=len(lengths)).astype(np.int32), runs


@dataclass(slots=True)
class ShardIndex:
    """What a finished shard says about itself.

    Attributes:
        columns: its documents.
        counts, dropped, unread: for each input, counters of records and turns, of records dropped by reason, and of
            records with fields that are not read, by their names.
        rejects: the records that were rejected, in order.
    """

    columns: DocumentColumns
    counts: dict[int, Counter[str]]
    dropped: dict[int, Counter[str]]
    unread: dict[int, Counter[str]]
    rejects: list[Reject]


@dataclass(slots=True)
class ShardMarks:
    """What duplicates are told by, one entry a document (or piece of a conversation).

    Attributes:
        places: ``file:line``.
        keys: exact keys, empty if none were asked for.
        signatures: uint8 ``[documents, permutations]``, empty if none were asked for.
        shingle_counts: shingles of each document in the shard's file of them, int32, empty if none were asked for.
    """

    places: list[str]
    keys: list[bytes]
    signatures: np.ndarray
    shingle_counts: np.ndarray


def read_index(folder: Path, number: int) -> ShardIndex:
    """The index of a finished shard."""
    with np.load(shard_path(folder, number, "npz")) as arrays:
        summary = json.loads(arrays["summary"].tobytes())
        names = ("lengths", "inputs", "categories", "characters", "bytes", "run_counts", "runs")
        columns = DocumentColumns(**{name: arrays[name] for name in names}, names=summary["names"])
    counts, dropped, unread = (
        {int(number): Counter(counter) for number, counter in summary[name].items()}
        for name in ("counts", "dropped", "unread")
    )
    return ShardIndex(columns, counts, dropped, unread, [Reject(**reject) for reject in summary["rejects"]])


def read_marks(folder: Path, number: int) -> ShardMarks:
    """The marks of a finished shard."""
    with np.load(shard_path(folder, number, "npz")) as arrays:
        places = json.loads(arrays["summary"].tobytes())["places"]
        keys = [bytes(key) for key in arrays["keys"]]
        return ShardMarks(places, keys, arrays["signatures"], arrays["shingle_counts"])
