"""Parts: nothing lost, nothing twice, labels right, reproducible, made once."""

import json
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest

from colossal_llama.data import parts as parts_module
from colossal_llama.data.dataset import PackedDataset
from colossal_llama.data.tokenization import TokenizedSample
from tests.helpers.corpus import random_samples, write_corpus, write_parts

MAX_LENGTH = 64


def expected_pieces(samples: list[TokenizedSample]) -> Counter[tuple[int, ...]]:
    """Ids and labels of every piece; the first label of a piece is ignored."""
    pieces: Counter[tuple[int, ...]] = Counter()
    for sample in samples:
        for start in range(0, len(sample.input_ids), MAX_LENGTH):
            labels = sample.labels[start : start + MAX_LENGTH].tolist()
            pieces[(*sample.input_ids[start : start + MAX_LENGTH].tolist(), -100, *labels[1:])] += 1
    return pieces


@pytest.mark.parametrize("batch_tokens", [1, 100, 1 << 22])
@pytest.mark.parametrize("bins", [1, 3, 30])
def test_every_piece_lands_in_exactly_one_part(
    tmp_path: Path, bins: int, batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_module, "BATCH_TOKENS", batch_tokens)
    monkeypatch.setattr(parts_module, "OPEN_SHARDS", 2)
    samples = random_samples(20)
    corpus = write_corpus(tmp_path / "shards", samples, shards=5)
    infos = write_parts(tmp_path, corpus, np.array_split(np.arange(20), bins), MAX_LENGTH)
    assert sorted(path.name for path in (tmp_path / "arrow").iterdir()) == [info.name for info in infos]
    found: Counter[tuple[int, ...]] = Counter()
    for info in infos:
        part = datasets.load_from_disk(str(tmp_path / "arrow" / info.name))
        assert part.column_names == ["input_ids", "learned", "seq_lengths", "category"]
        rows = [json.loads(line) for line in (tmp_path / f"jsonl/{info.name}.jsonl").open(encoding="utf-8")]
        assert len(rows) == len(part) == info.rows
        ours = PackedDataset([tmp_path / "arrow" / info.name]) if rows else []
        for row, arrow, own in zip(rows, part, ours, strict=True):
            assert row["input_ids"] == arrow["input_ids"] == own["input_ids"].tolist()
            assert row["labels"] == own["labels"].tolist()
            assert row["seq_lengths"] == arrow["seq_lengths"] == own["seq_lengths"].tolist()
            assert len(row["input_ids"]) == len(row["labels"]) == sum(row["seq_lengths"]) <= MAX_LENGTH
            assert len(row["category"]) == len(row["seq_lengths"])
            start = 0
            for length in row["seq_lengths"]:
                stretch = slice(start, start + length)
                found[(*row["input_ids"][stretch], *row["labels"][stretch])] += 1
                start += length
    assert found == expected_pieces(samples)
    assert sum(info.tokens for info in infos) == sum(len(sample.input_ids) for sample in samples)
    learned = sum(count * sum(label >= 0 for label in key[len(key) // 2 :]) for key, count in found.items())
    assert sum(info.target_tokens for info in infos) == learned


@pytest.mark.parametrize(("way", "dropped"), [("split", 0), ("truncate", 1), ("sample", 1)])
@pytest.mark.parametrize("packing", ["best_fit", "concat", "none"])
def test_tokens_are_accounted_for(tmp_path: Path, way: str, dropped: int, packing: str) -> None:
    samples = random_samples(60)
    corpus = write_corpus(tmp_path / "shards", samples)
    [info] = write_parts(tmp_path, corpus, [np.arange(60)], MAX_LENGTH, way, packing)
    lengths = np.array([len(sample.input_ids) for sample in samples])
    assert info.tokens + info.dropped_tokens == lengths.sum()
    assert info.dropped_tokens == dropped * (lengths - np.minimum(lengths, MAX_LENGTH)).sum()
    assert info.documents == 60
    assert info.sub_datasets["input 0"].tokens == lengths.sum()
    if packing != "concat":
        assert info.cut_documents == (1 - dropped) * (lengths > MAX_LENGTH).sum()


def test_a_part_is_made_once_and_always_the_same(tmp_path: Path) -> None:
    samples = random_samples(40)
    for name in ("a", "b"):
        corpus = write_corpus(tmp_path / name / "shards", samples, shards=3 if name == "a" else 7)
        write_parts(tmp_path / name, corpus, [np.arange(40)], MAX_LENGTH)
    files = [
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name / "arrow").rglob("*.*")}
        for name in ("a", "b")
    ]
    assert files[0] == files[1]
    data = tmp_path / "a/arrow/part-00000/data-00000-of-00001.arrow"
    before = data.stat().st_mtime_ns
    write_parts(tmp_path / "a", corpus, [np.arange(40)], MAX_LENGTH)
    assert data.stat().st_mtime_ns == before


def test_a_truncated_shard_is_noticed(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "shards", random_samples(10), shards=1)
    tokens = tmp_path / "shards/shard-000000.tokens"
    tokens.write_bytes(tokens.read_bytes()[:-4])
    with pytest.raises(OSError, match="shorter than its index says"):
        write_parts(tmp_path, corpus, [np.arange(10)], MAX_LENGTH)
    assert not list((tmp_path / "arrow").iterdir())


def test_a_document_can_be_in_a_bin_twice(tmp_path: Path) -> None:
    samples = random_samples(3, longest=20)
    corpus = write_corpus(tmp_path / "shards", samples)
    [info] = write_parts(tmp_path, corpus, [np.array([0, 1, 1, 2, 1])], MAX_LENGTH)
    assert info.documents == 5
    assert info.tokens == sum(len(samples[index].input_ids) for index in (0, 1, 1, 2, 1))


def test_disk_holds_little_more_than_the_ids(tmp_path: Path) -> None:
    samples = random_samples(2000, longest=600, shortest=100)
    corpus = write_corpus(tmp_path / "shards", samples)
    [info] = write_parts(tmp_path, corpus, [np.arange(2000)], 2048, with_jsonl=False)
    size = sum(path.stat().st_size for path in (tmp_path / "arrow").rglob("*") if path.is_file())
    assert size <= 1.15 * 4 * info.tokens
