"""Dealing out to bins and writing parts: nothing lost, nothing twice, near-equal, reproducible."""

from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest

from colossal_llama.data.bins import BinWriter, PartTask, cut_pieces, read_scratch, scratch_file, write_part
from colossal_llama.data.tokenization import TokenizedSample

MAX_LENGTH = 64


def make_samples(number: int, seed: int = 0, longest: int = 200) -> list[TokenizedSample]:
    random = np.random.default_rng(seed)
    samples = []
    for index in range(number):
        ids = random.integers(3, 1000, random.integers(1, longest)).astype(np.int32)
        labels = ids.copy()
        labels[: len(ids) // 3] = -100
        samples.append(TokenizedSample(ids, labels, f"类{index % 3}"))
    return samples


def fill(folder: Path, samples: list[TokenizedSample], bins: int, seed: int = 0, subs: int = 1) -> list[str]:
    folder.mkdir()
    writer = BinWriter(folder, bins, seed, subs)
    for index, sample in enumerate(samples):
        writer.add(index % subs, sample)
    return writer.finish()


def pieces_of(samples: list[TokenizedSample]) -> Counter[tuple[int, ...]]:
    return Counter(
        tuple(sample.input_ids[start : start + MAX_LENGTH].tolist())
        for sample in samples
        for start in range(0, len(sample.input_ids), MAX_LENGTH)
    )


def write_parts(scratch: Path, out: Path, categories: list[str], bins: int) -> None:
    for number in range(bins):
        source = str(scratch_file(scratch, number))
        write_part(PartTask(source, str(out), str(out), number, tuple(categories), MAX_LENGTH, 5))


@pytest.mark.parametrize("bins", [1, 3, 30, 64])
def test_every_piece_lands_in_exactly_one_of_n_parts(tmp_path: Path, bins: int) -> None:
    samples = make_samples(20)
    categories = fill(tmp_path / "scratch", samples, bins)
    write_parts(tmp_path / "scratch", tmp_path / "out", categories, bins)
    parts = sorted(path.name for path in (tmp_path / "out").glob("part-*") if path.is_dir())
    assert parts == [f"part-{number:05d}" for number in range(bins)]
    found: Counter[tuple[int, ...]] = Counter()
    for name in parts:
        part = datasets.load_from_disk(str(tmp_path / "out" / name))
        assert part.column_names == ["input_ids", "labels", "seq_lengths", "category"]
        as_json = (tmp_path / "out" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(as_json) == len(part)
        for row in part:
            assert len(row["input_ids"]) == len(row["labels"]) == sum(row["seq_lengths"]) <= MAX_LENGTH
            assert len(row["category"]) == len(row["seq_lengths"])
            start = 0
            for length in row["seq_lengths"]:
                found[tuple(row["input_ids"][start : start + length])] += 1
                assert row["labels"][start] == -100
                start += length
    assert found == pieces_of(samples)
    assert not list((tmp_path / "scratch").iterdir()), "scratch files are used up"


def test_bins_get_equal_documents_and_nearly_equal_tokens(tmp_path: Path) -> None:
    samples = make_samples(1003, longest=2000)
    fill(tmp_path / "scratch", samples, 10)
    documents, tokens = [], []
    for number in range(10):
        found = list(read_scratch(scratch_file(tmp_path / "scratch", number)))
        documents.append(len(found))
        tokens.append(sum(len(document.input_ids) for document in found))
    assert max(documents) - min(documents) <= 1
    assert max(tokens) - min(tokens) <= 4000
    assert sum(tokens) == sum(len(sample.input_ids) for sample in samples)


def test_each_sub_dataset_is_spread_over_all_bins(tmp_path: Path) -> None:
    samples = [TokenizedSample(np.full(5, index % 2 + 3, np.int32), np.zeros(5, np.int32), "") for index in range(40)]
    fill(tmp_path / "scratch", samples, 5, subs=2)
    for number in range(5):
        firsts = Counter(
            int(document.input_ids[0]) for document in read_scratch(scratch_file(tmp_path / "scratch", number))
        )
        assert firsts == {3: 4, 4: 4}


def test_seed_decides(tmp_path: Path) -> None:
    samples = make_samples(50)

    def content(name: str, seed: int) -> bytes:
        fill(tmp_path / name, samples, 4, seed)
        return b"|".join(scratch_file(tmp_path / name, number).read_bytes() for number in range(4))

    first = content("a", 1)
    assert content("b", 1) == first
    assert content("c", 2) != first


def test_documents_that_fit_are_not_cut(tmp_path: Path) -> None:
    samples = [*make_samples(30, longest=MAX_LENGTH + 1), *make_samples(5, seed=1, longest=500)]
    fill(tmp_path / "scratch", samples, 1)
    pieces = cut_pieces(read_scratch(scratch_file(tmp_path / "scratch", 0)), MAX_LENGTH)
    fitting = [sample for sample in samples if len(sample.input_ids) <= MAX_LENGTH]
    whole = Counter(tuple(piece.input_ids.tolist()) for piece in pieces)
    assert all(whole[tuple(sample.input_ids.tolist())] for sample in fitting)
