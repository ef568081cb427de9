"""Random access to prepared rows, and the checks before training."""

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from colossal_llama.data.dataset import PackedDataset
from colossal_llama.data.manifest import PartInfo, Share, read_manifest, write_manifest
from colossal_llama.errors import UserError
from tests.helpers.corpus import make_manifest, random_samples, write_corpus, write_parts

BINS = 4
MAX_LENGTH = 32


def write_dataset(folder: Path, documents: int) -> Path:
    corpus = write_corpus(folder / "shards", random_samples(documents, longest=40))
    parts = write_parts(folder, corpus, np.array_split(np.arange(documents), BINS), MAX_LENGTH, with_jsonl=False)
    write_manifest(make_manifest(parts, MAX_LENGTH), folder / "arrow")
    return folder / "arrow"


@pytest.fixture
def arrow(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "prepared", 40)


def test_rows_equal_those_of_datasets(arrow: Path) -> None:
    dataset = PackedDataset([arrow])
    loaded = [datasets.load_from_disk(str(arrow / f"part-{n:05d}")) for n in range(BINS)]
    assert dataset.bucket_sizes == [len(part) for part in loaded]
    assert len(dataset) == sum(dataset.bucket_sizes)
    rows = [row for part in loaded for row in part]
    for index, row in enumerate(rows):
        labels = [-100] * len(row["input_ids"])
        for start, end in zip(row["learned"][::2], row["learned"][1::2], strict=True):
            labels[start:end] = row["input_ids"][start:end]
        for name, values in {**row, "labels": labels}.items():
            if name in ("input_ids", "labels", "seq_lengths"):
                assert dataset[index][name].dtype == np.int32
                assert dataset[index][name].tolist() == values
    for wrong in (-1, len(dataset)):
        with pytest.raises(IndexError):
            dataset[wrong]


def write_part(folder: Path, rows: list[list[int]], files: int) -> Path:
    features = datasets.Features({name: datasets.Sequence(datasets.Value("int32")) for name in ("input_ids", "labels")})
    part = datasets.Dataset.from_dict({"input_ids": rows, "labels": rows}, features=features)
    part.save_to_disk(str(folder), num_shards=files)
    return folder


def test_the_fingerprint_is_that_of_the_rows_and_their_order(tmp_path: Path) -> None:
    rows = [[1, 2, 3], [4, 5], [6], [7, 8]]
    changed = {
        "another id": [[1, 2, 9], *rows[1:]],
        "other lengths": [[1, 2], [3, 4, 5], *rows[2:]],
        "another order": rows[::-1],
        "a row less": rows[:-1],
    }
    one = PackedDataset([write_part(tmp_path / "one", rows, 1)]).fingerprint()
    assert len(one) == 16
    assert PackedDataset([write_part(tmp_path / "in three files", rows, 3)]).fingerprint() == one
    halves = [write_part(tmp_path / "a", rows[:2], 1), write_part(tmp_path / "b", rows[2:], 1)]
    others = [PackedDataset(halves).fingerprint(), PackedDataset(halves[::-1]).fingerprint()]
    others += [PackedDataset([write_part(tmp_path / name, what, 1)]).fingerprint() for name, what in changed.items()]
    assert len({one, *others}) == 1 + len(others)


def test_parts_in_the_order_given_and_pickled(arrow: Path) -> None:
    one = PackedDataset([arrow / "part-00000"])
    both = PackedDataset([arrow / "part-00002", str(arrow / "part-00000")])
    start = both.bucket_sizes[0]
    assert both[start]["input_ids"].tolist() == one[0]["input_ids"].tolist()
    assert [manifest is not None for manifest in both.manifests] == [True, True]
    copy = pickle.loads(pickle.dumps(both))
    assert copy.bucket_sizes == both.bucket_sizes
    assert copy[start]["labels"].tolist() == both[start]["labels"].tolist()


def test_empty_parts_are_empty_buckets(tmp_path: Path) -> None:
    dataset = PackedDataset([write_dataset(tmp_path / "few", 2)])
    assert dataset.bucket_sizes.count(0) == BINS - 2
    assert len(dataset[1]["input_ids"]) > 0


def test_check(arrow: Path) -> None:
    dataset = PackedDataset([arrow])
    dataset.check("f" * 64, 1000, MAX_LENGTH)
    with pytest.raises(UserError, match="prepared with another tokenizer"):
        dataset.check("e" * 64, 1000, MAX_LENGTH)
    with pytest.raises(UserError, match="token ids up to 999"):
        dataset.check("f" * 64, 999, MAX_LENGTH)
    with pytest.raises(UserError, match="longer than --max_length 16"):
        dataset.check("f" * 64, 1000, 16)


def test_folder_without_manifest_is_accepted(tmp_path: Path) -> None:
    rows = {"input_ids": [[1, 2, 3], [4, 5]], "labels": [[1, 2, 3], [-100, 5]], "other": ["a", "b"]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "up/part-00000"))  # int64 lists
    for path in ("up", "up/part-00000"):
        dataset = PackedDataset([tmp_path / path])
        assert dataset.manifests == [None]
        assert dataset[1]["labels"].tolist() == [-100, 5]
        assert dataset[1]["labels"].dtype == np.int32
        dataset.check("anything", 6, 3)
        with pytest.raises(UserError, match="token ids up to 5"):
            dataset.check("anything", 5, 3)


def test_documents_fill_the_rows_of_a_prepared_dataset(arrow: Path) -> None:
    dataset = PackedDataset([arrow])
    assert dataset.has_seq_lengths
    dataset.check_documents()
    rows = [dataset[index] for index in range(len(dataset))]
    assert max(len(row["seq_lengths"]) for row in rows) > 1
    for row in rows:
        starts = np.cumsum(row["seq_lengths"]) - row["seq_lengths"]
        assert starts[-1] + row["seq_lengths"][-1] == len(row["input_ids"])
        # Nothing of a document's own stands before its first token, so nothing may be asked to predict it.
        assert (row["labels"][starts] == -100).all()
    assert pickle.loads(pickle.dumps(dataset)).has_seq_lengths


@pytest.mark.parametrize(
    "lengths",
    [None, [[3.0], [2.0]], ["3", "2"], [[3], None], [[3], [None]]],
    ids=["absent", "floats", "no lists", "no list", "gap"],
)
def test_rows_that_do_not_say_their_documents(lengths: list[Any] | None, tmp_path: Path) -> None:
    columns = {"input_ids": [[1, 2, 3], [4, 5]], "labels": [[1, 2, 3], [4, 5]]}
    part = tmp_path / "part-00000"
    datasets.Dataset.from_dict(columns | ({} if lengths is None else {"seq_lengths": lengths})).save_to_disk(str(part))
    dataset = PackedDataset([part])
    assert not dataset.has_seq_lengths
    assert set(dataset[0]) == {"input_ids", "labels"}
    with pytest.raises(UserError, match=r"part-00000: no column seq_lengths .* train with --document_mask off"):
        dataset.check_documents()


@pytest.mark.parametrize("lengths", [[1, 3], [2, 1], [3, -1], [], [2, 2, -2]], ids=str)
def test_documents_that_do_not_fill_their_row(lengths: list[int], tmp_path: Path) -> None:
    tokens = [[1, 2, 3], [4, 5], [6, 7]]
    columns = {"input_ids": tokens, "labels": tokens, "seq_lengths": [[1, 2], [2], lengths]}
    datasets.Dataset.from_dict(columns).save_to_disk(str(tmp_path / "part-00000"))
    dataset = PackedDataset([tmp_path / "part-00000"])
    assert dataset[0]["seq_lengths"].tolist() == [1, 2]
    assert dataset[0]["seq_lengths"].dtype == np.int32
    with pytest.raises(UserError, match=r"row 2 has 2 tokens but its seq_lengths do not add up .*\(sum "):
        dataset.check_documents()


def test_what_is_no_dataset(tmp_path: Path, arrow: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x", encoding="utf-8")
    (tmp_path / "nothing").mkdir()
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "text"))
    empty = datasets.Dataset.from_dict({"input_ids": [], "labels": []})
    empty.save_to_disk(str(tmp_path / "empty"), num_shards=1)
    for path, message in {
        tmp_path / "gone": "no such folder",
        file: "is a file",
        tmp_path / "nothing": "not a prepared dataset",
        arrow.parent: "did you mean",
        tmp_path / "text": "no column input_ids, labels",
        tmp_path / "empty": "holds no row",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            PackedDataset([path])
        assert f"--dataset {path}" in str(caught.value)
    with pytest.raises(UserError, match="at least one folder"):
        PackedDataset([])


def test_damaged_folders(arrow: Path) -> None:
    (arrow / "part-00001/data-00000-of-00001.arrow").write_bytes(b"damaged")
    with pytest.raises(UserError, match="part-00001: cannot be read as a dataset"):
        PackedDataset([arrow])
    (arrow / "manifest.json").write_text('{"format_version": 99}', encoding="utf-8")
    with pytest.raises(UserError, match="format version 99"):
        PackedDataset([arrow])
    (arrow / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="not valid JSON"):
        PackedDataset([arrow])


def test_manifest_round_trip(tmp_path: Path) -> None:
    part = PartInfo("part-00000", 1, 2, 3, 4, 5, 6, 7, {"texts": Share(8, 9)})
    manifest = dataclasses.replace(make_manifest([part], MAX_LENGTH), dropped={"空": 1}, validation=part)
    write_manifest(manifest, tmp_path)
    assert read_manifest(tmp_path, "--dataset") == manifest
    assert read_manifest(tmp_path / "elsewhere", "--dataset") is None
