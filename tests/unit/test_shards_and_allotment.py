"""Tokenised documents in shards, and which of them go where."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama.data.allotment import (
    allot,
    deal_out,
    epochs_of,
    gather_ranges,
    owners_by,
    parse_mixture,
    repeat,
    set_aside,
    unique_names,
)
from colossal_llama.data.shard_files import NOT_FIRST, learned_runs, shard_path
from colossal_llama.errors import UserError
from tests.helpers.corpus import random_samples, write_corpus


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=12), max_size=12))
def test_learned_runs_spell_the_mask(documents: list[list[bool]]) -> None:
    lengths = np.array([len(document) for document in documents], dtype=np.int32)
    flat = np.array([token for document in documents for token in document], dtype=bool)
    counts, runs = learned_runs(flat, lengths)
    position = 0
    for document, count in zip(documents, counts, strict=True):
        mask = np.zeros(len(document), dtype=bool)
        for start, end in runs[position : position + count]:
            assert start < end
            mask[start:end] = True
        position += count
        assert mask.tolist() == document
    assert position == len(runs)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5)), max_size=10))
def test_gather_ranges(ranges: list[tuple[int, int]]) -> None:
    firsts = np.array([first for first, _ in ranges], dtype=np.int64)
    counts = np.array([count for _, count in ranges], dtype=np.int64)
    expected = [first + step for first, count in ranges for step in range(count)]
    assert gather_ranges(firsts, counts).tolist() == expected


def test_a_corpus_is_its_shards_one_behind_the_other(tmp_path: Path) -> None:
    samples = random_samples(50)
    corpus = write_corpus(tmp_path, samples, shards=4, inputs=[index % 2 for index in range(50)])
    documents = corpus.documents
    assert documents.lengths.tolist() == [len(sample.input_ids) for sample in samples]
    assert [corpus.categories[code] for code in documents.categories] == [sample.category for sample in samples]
    assert [counter["records"] for counter in corpus.counts] == [25, 25]
    for number, sample in enumerate(samples):
        tokens = np.fromfile(shard_path(tmp_path, int(documents.shards[number]), "tokens"), dtype=np.int32)
        offset = documents.offsets[number]
        assert tokens[offset : offset + len(sample.input_ids)].tolist() == sample.input_ids.tolist()
        first = documents.run_firsts[number]
        runs = corpus.runs[first : first + documents.run_counts[number]]
        learned = [index for start, end in runs for index in range(start, end)]
        assert learned == np.flatnonzero(sample.labels != -100).tolist()


@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=200),
    bins=st.integers(1, 40),
    seed=st.integers(0, 3),
)
def test_bins_get_nearly_equal_tokens(lengths: list[int], bins: int, seed: int) -> None:
    dealt = deal_out(np.array(lengths), bins, (seed,))
    assert dealt.min() >= 0
    assert dealt.max() < bins
    tokens = np.bincount(dealt, lengths, minlength=bins)
    assert np.abs(tokens - sum(lengths) / bins).max() <= 2 * max(lengths)


def test_seed_decides() -> None:
    lengths = np.arange(1, 101)
    assert deal_out(lengths, 5, (1,)).tolist() == deal_out(lengths, 5, (1,)).tolist()
    assert deal_out(lengths, 5, (1,)).tolist() != deal_out(lengths, 5, (2,)).tolist()


def test_every_bin_has_its_share_of_every_sub_dataset(tmp_path: Path) -> None:
    owners = np.array([0] * 300 + [1] * 100)
    corpus = write_corpus(tmp_path, random_samples(400, longest=20), inputs=owners.tolist())
    bins = allot(corpus.documents, owners, [1.0, 1.0], 5, 0)
    assert sorted(np.concatenate(bins).tolist()) == list(range(400))
    for numbers in bins:
        share = corpus.documents.lengths[numbers[owners[numbers] == 1]].sum()
        assert abs(share - corpus.documents.lengths[300:].sum() / 5) < 40


def test_mixture_repeats_and_never_shortens(tmp_path: Path) -> None:
    owners = np.array([0] * 300 + [1] * 100)
    corpus = write_corpus(tmp_path, random_samples(400, longest=20), inputs=owners.tolist())
    tokens = np.bincount(owners, corpus.documents.lengths)
    epochs = epochs_of(tokens.tolist(), [1.0, 1.0])
    assert epochs[0] == 1
    numbers = np.concatenate(allot(corpus.documents, owners, epochs, 3, 0))
    times = np.bincount(numbers, minlength=400)
    assert (times[:300] == 1).all()
    assert set(times[300:].tolist()) == {int(epochs[1]), int(epochs[1]) + 1}
    taken = np.bincount(owners[numbers], corpus.documents.lengths[numbers])
    assert abs(taken[0] / taken[1] - 1) < 0.02
    assert epochs_of([10, 0, 30], None) == [1.0, 1.0, 1.0]
    assert epochs_of([10, 0, 30], [1, 1, 1]) == [3.0, 0.0, 1.0]


def test_repeat_draws_the_rest() -> None:
    copies = repeat(np.arange(10), 2.5, (0,))
    assert [len(copy) for copy in copies] == [10, 10, 5]
    assert len(set(copies[2].tolist())) == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("zh", "expected NAME=WEIGHT"),
        ("zh=x", "expected NAME=WEIGHT"),
        ("zh=0", "weight above 0"),
        ("zh=inf", "weight above 0"),
        ("fr=1", "no sub-dataset 'fr'; there are zh, en"),
        ("zh=1", "no weight for en"),
    ],
)
def test_wrong_mixture(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_mixture(text, ["zh", "en"])


def test_mixture_in_the_order_of_the_names() -> None:
    assert parse_mixture("en=1, zh=2.5", ["zh", "en"]) == [2.5, 1.0]


def test_validation_takes_whole_documents_of_every_sub_dataset(tmp_path: Path) -> None:
    owners = np.array([0] * 300 + [1] * 99 + [2])
    documents = write_corpus(tmp_path, random_samples(400), inputs=owners.tolist()).documents
    documents.characters[1:300:3] = NOT_FIRST  # pieces of the conversation before
    aside = set_aside(documents, owners, 0.1, 0)
    heads = documents.characters != NOT_FIRST
    assert (aside & heads & (owners == 0)).sum() == 20
    assert (aside & (owners == 1)).sum() == 10
    assert not aside[399], "the only document stays"
    pieces = np.flatnonzero(~heads)
    assert (aside[pieces] == aside[pieces - 1]).all()
    assert not set_aside(documents, owners, 0.0, 0).any()
    assert set_aside(documents, owners, 0.1, 1).tolist() != aside.tolist()


def test_sub_datasets_by_category(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, random_samples(30))
    owners, names = owners_by(corpus.documents, ["b", "", "a"], True, ["input"])
    assert names == ["(none)", "a", "b"]
    assert owners[:3].tolist() == [2, 0, 1]
    owners, names = owners_by(corpus.documents, ["b", "", "a"], False, ["input"])
    assert names == ["input"]


def test_unique_names() -> None:
    assert unique_names(["/x/zh", "/y/zh", "/y/en"]) == ["/x/zh", "/y/zh", "en"]
