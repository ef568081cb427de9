"""Memory of a preparation for each document, as the difference between a smaller and a larger corpus."""

import importlib
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from colossal_llama.commands.prepare_pretrain_dataset import main as pretrain_main
from colossal_llama.data import allotment, bins, corpus, pipeline
from colossal_llama.data.allotment import allot
from colossal_llama.data.bins import write_bins
from colossal_llama.data.corpus import load_corpus
from colossal_llama.data.manifest import PartInfo
from colossal_llama.data.parts import PartTask, write_part
from colossal_llama.data.shard_files import shard_path
from tests.helpers.corpus import part_task, random_samples, write_jsonl, write_shards

IN_A_SHARD = 500
FEW, MANY = 10, 30
"""Shards of the smaller and of the larger corpus."""

CORPORA = (FEW, FEW, MANY)
"""Shards of corpora one after the other: with the first one libraries are imported and caches filled."""


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is done at once is much less than the smaller corpus; allocations are no longer traced at the end."""
    for name in ("bins._WAITING", "bins._AT_ONCE", "allotment._AT_ONCE", "packing._AT_ONCE", "parts.BATCH_TOKENS"):
        monkeypatch.setattr(f"colossal_llama.data.{name}", 1000)
    importlib.import_module("datasets")  # which takes long while allocations are traced
    yield
    tracemalloc.stop()


def peak_of(run: Callable[[], Any]) -> int:
    """Bytes that ``run`` has allocated at most at a time."""
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def bytes_a_document(peaks: list[int]) -> float:
    """The part of a peak that grows with the documents; ``peaks`` are those of ``CORPORA``."""
    _, few, many = peaks
    return (many - few) / ((MANY - FEW) * IN_A_SHARD)


def copied_shards(folder: Path, shards: int) -> None:
    """Shards that are all alike."""
    write_shards(folder, random_samples(IN_A_SHARD, longest=8), shards=1)
    for number in range(1, shards):
        for suffix in ("tokens", "npz"):
            shutil.copy(shard_path(folder, 0, suffix), shard_path(folder, number, suffix))


@pytest.mark.parametrize(("fraction", "limit"), [(0.0, 12), (0.1, 21)], ids=["plain", "validation"])
def test_dealing_documents_out(tmp_path: Path, fraction: float, limit: int) -> None:
    """Five bytes to know it, four for its place in a shuffle, one for where it goes; some more for a validation set."""

    def deal() -> None:
        loaded, members = load_corpus(folder, shards, ["input"])
        dealt = allot(members, loaded.names, None, fraction, 10, 0)
        write_bins(loaded, dealt, [tmp_path / f"{number}.documents" for number in range(10 + (fraction > 0))])

    peaks = []
    for number, shards in enumerate(CORPORA):
        folder = tmp_path / str(number)
        copied_shards(folder, shards)
        peaks.append(peak_of(deal))
    assert bytes_a_document(peaks) < limit


@pytest.mark.parametrize(("packing", "limit"), [("best_fit", 68), ("none", 90), ("concat", 105)])
def test_making_a_part(tmp_path: Path, packing: str, limit: int) -> None:
    """All documents in one bin: what is known of each, and what packing needs for it."""
    peaks = []
    for number, shards in enumerate(CORPORA):
        folder = tmp_path / str(number)
        copied_shards(folder / "shards", shards)
        loaded, members = load_corpus(folder / "shards", shards, ["input"])
        task = part_task(folder, loaded, 0, 64, packing=packing, with_jsonl=False)
        write_bins(loaded, allot(members, loaded.names, None, 0.0, 1, 0), [Path(task.bin_file)])
        peaks.append(peak_of(partial(write_part, task)))
    assert bytes_a_document(peaks) < limit


def test_documents_are_forgotten_before_parts_are_made(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = [
        tracemalloc.Filter(True, str(Path(module.__file__)), all_frames=True) for module in (corpus, allotment, bins)
    ]
    left: list[int] = []
    write, load = pipeline._write_one_part, pipeline._load_and_allot

    def traced(*arguments: Any) -> Any:
        tracemalloc.start(5)  # frames: some of numpy are in Python
        return load(*arguments)

    def measured(setup: None, task: PartTask) -> PartInfo:
        kept = tracemalloc.take_snapshot().filter_traces(modules)
        tracemalloc.stop()
        left.append(sum(entry.size for entry in kept.statistics("filename")))
        return write(setup, task)

    monkeypatch.setattr(pipeline, "_load_and_allot", traced)
    monkeypatch.setattr(pipeline, "_write_one_part", measured)
    documents = 300, 300, 4000  # the first time caches are filled
    for number, count in enumerate(documents):
        source, out = tmp_path / f"in-{number}", tmp_path / f"out-{number}"
        write_jsonl(source / "a.jsonl", [{"target": f"{index % 9}"} for index in range(count)])
        arguments = ["--data_input_dirs", str(source), "--tokenizer_dir", str(tokenizer_dir), "--num_workers", "1"]
        arguments += ["--data_arrow_output_dir", str(out), "--num_spliced_dataset_bins", "1", "--max_length", "64"]
        assert pretrain_main(arguments) == 0
    assert (left[2] - left[1]) / (documents[2] - documents[1]) < 0.5
