"""Corpora to prepare, and tokenised documents in shards without reading or tokenising anything."""

import json
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from colossal_llama.data.allotment import Allotment
from colossal_llama.data.bins import write_bins
from colossal_llama.data.corpus import Corpus, Members, load_corpus
from colossal_llama.data.manifest import PRETRAIN, InputInfo, Manifest, PartInfo, SubDataset
from colossal_llama.data.parts import PartTask, part_name, write_part
from colossal_llama.data.shard_files import ShardBuilder, write_shard
from colossal_llama.data.tokenization import TokenizedSample


def write_jsonl(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    """Write records one a line, making the folder; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def random_samples(number: int, seed: int = 0, longest: int = 200, shortest: int = 1) -> list[TokenizedSample]:
    """Documents of random ids, the first third of each not learned, in three categories."""
    random = np.random.default_rng(seed)
    samples = []
    for index in range(number):
        ids = random.integers(3, 1000, random.integers(shortest, longest)).astype(np.int32)
        labels = ids.copy()
        labels[: len(ids) // 3] = -100
        samples.append(TokenizedSample(ids, labels, f"类{index % 3}"))
    return samples


def write_corpus(
    folder: Path, samples: Sequence[TokenizedSample], shards: int = 3, inputs: Sequence[int] | None = None
) -> Corpus:
    """Put documents into shards; ``inputs`` gives the number of each document's input."""
    number_of_inputs = write_shards(folder, samples, shards, inputs)
    return load_corpus(folder, shards, [f"input {number}" for number in range(number_of_inputs)])[0]


def write_shards(
    folder: Path, samples: Sequence[TokenizedSample], shards: int = 3, inputs: Sequence[int] | None = None
) -> int:
    """The same, without loading them; returns the number of inputs."""
    folder.mkdir(parents=True, exist_ok=True)
    owners = [0] * len(samples) if inputs is None else list(inputs)
    for number, group in enumerate(np.array_split(np.arange(len(samples)), shards)):
        builder = ShardBuilder()
        for index in group.tolist():
            characters = len(samples[index].input_ids) * 2
            builder.add(owners[index], samples[index], characters, characters * 3)
            builder.counter(owners[index])["records"] += 1
        write_shard(builder, folder, number)
    return max(owners, default=0) + 1


def members_of(lengths: Sequence[Sequence[int]]) -> list[Members]:
    """Documents of sub-datasets by their lengths."""
    return [Members(array("i", own), array("B", [1] * len(own))) for own in lengths]


def write_parts(
    folder: Path,
    corpus: Corpus,
    bins: Sequence[np.ndarray],
    max_length: int,
    long_documents: str = "split",
    packing: str = "best_fit",
    with_jsonl: bool = True,
) -> list[PartInfo]:
    """Make the parts of bins (document numbers) in ``folder/arrow`` and ``folder/jsonl`` from ``folder/shards``."""
    tasks = [
        part_task(folder, corpus, number, max_length, long_documents, packing, with_jsonl)
        for number in range(len(bins))
    ]
    write_bins(corpus, allotment_of(corpus, bins), [Path(task.bin_file) for task in tasks])
    return [write_part(task) for task in tasks]


def part_task(
    folder: Path,
    corpus: Corpus,
    number: int,
    max_length: int,
    long_documents: str = "split",
    packing: str = "best_fit",
    with_jsonl: bool = True,
) -> PartTask:
    """How :func:`write_parts` makes a part; makes the folders."""
    for name in ("arrow", "jsonl", "bins"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return PartTask(
        name=part_name(number),
        bin_file=str(folder / "bins" / f"{part_name(number)}.documents"),
        shard_folder=str(folder / "shards"),
        arrow_folder=str(folder / "arrow"),
        jsonl_folder=str(folder / "jsonl") if with_jsonl else None,
        categories=tuple(corpus.categories),
        sub_datasets=tuple(corpus.names),
        max_length=max_length,
        long_documents=long_documents,
        packing=packing,
        seed=(5, number),
    )


def allotment_of(corpus: Corpus, bins: Sequence[np.ndarray]) -> Allotment:
    """The allotment that puts these documents (numbers over all shards) into these bins, as often as they are named."""
    owners = np.concatenate([shard.owners for shard in corpus.shard_documents()])
    places: list[list[int]] = [[] for _ in owners]
    for number, documents in enumerate(bins):
        for document in documents.tolist():
            places[document].append(number)
    allotment = Allotment(len(bins), corpus.names, [1.0] * len(corpus.names), None, [])
    table = np.full((max(map(len, places)), len(owners)), allotment.nowhere, dtype=np.uint16)
    for document, own in enumerate(places):
        table[: len(own), document] = own
    allotment.destinations = [table[:, owners == owner] for owner in range(len(corpus.names))]
    return allotment


def make_manifest(
    parts: list[PartInfo], max_length: int, fingerprint: str = "f" * 64, vocab_size: int = 1000, kind: str = PRETRAIN
) -> Manifest:
    """A manifest that describes these parts."""
    tokens = sum(part.tokens for part in parts)
    return Manifest(
        kind=kind,
        tokenizer_fingerprint=fingerprint,
        vocab_size=vocab_size,
        max_length=max_length,
        bins=len(parts),
        seed=0,
        settings={"packing": "best_fit"},
        documents=40,
        characters=1,
        bytes=1,
        tokens_in=tokens,
        tokens_repeated=0,
        tokens_dropped={},
        rows=sum(part.rows for part in parts),
        tokens=tokens,
        target_tokens=sum(part.target_tokens for part in parts),
        dropped={},
        dropped_turns=0,
        dropped_turn_tokens=0,
        trailing_human=0,
        inputs=[InputInfo("texts", 1, 40, {"空": 1})],
        sub_datasets=[SubDataset("texts", 40, 1, 1, tokens, 3, 4, 1.0)],
        parts=parts,
        validation=None,
        versions={"python": "3.11"},
    )
