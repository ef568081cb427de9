"""Tokenised documents in shards, and which of them go where."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama.data.allotment import allot, deal_out, epochs_of, parse_mixture, set_aside, unique_names
from colossal_llama.data.bins import BinReader, DealtTokens, write_bins
from colossal_llama.data.corpus import gather_ranges, load_corpus
from colossal_llama.data.shard_files import NOT_FIRST, ShardBuilder, learned_runs, shard_path, write_shard
from colossal_llama.data.shuffles import permutation
from colossal_llama.errors import UserError
from tests.helpers.corpus import allotment_of, members_of, random_samples, write_corpus, write_shards


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


@pytest.mark.parametrize("length", [0, 1, 2, 3, 1000, 70_000])
def test_a_permutation_is_numpys_in_half_the_room(length: int) -> None:
    ours, numpys = (np.random.default_rng([3, length]) for _ in range(2))
    numbers = permutation(length, ours)
    assert numbers.dtype == np.int32
    assert (numbers == numpys.permutation(length)).all()
    assert ours.random() == numpys.random(), "and leaves the generator in the same state"


def test_a_list_says_where_documents_lie_and_what_is_learned(tmp_path: Path) -> None:
    samples = random_samples(50)
    corpus = write_corpus(tmp_path, samples, shards=4, inputs=[index % 2 for index in range(50)])
    assert [counter["records"] for counter in corpus.counts] == [25, 25]
    tokens = [sum(len(sample.input_ids) for sample in samples[owner::2]) for owner in range(2)]
    assert [total.tokens for total in corpus.totals] == tokens
    assert [total.documents for total in corpus.totals] == [25, 25]
    assert [total.characters for total in corpus.totals] == [2 * count for count in tokens]
    dealt = write_bins(corpus, allotment_of(corpus, [np.arange(50)]), [tmp_path / "bin.documents"])
    assert dealt == DealtTokens(taken=sum(tokens))
    documents = BinReader(tmp_path / "bin.documents")
    names, runs = list(corpus.categories), documents.runs()
    order = [*range(0, 50, 2), *range(1, 50, 2)]  # sub-dataset by sub-dataset
    columns = ("owner", "category", "length", "shard", "offset", "first_run", "runs")
    for number, (owner, code, length, shard, offset, first, count) in zip(
        order, zip(*(documents.column(name).tolist() for name in columns), strict=True), strict=True
    ):
        sample = samples[number]
        assert (owner, names[code], length) == (number % 2, sample.category, len(sample.input_ids))
        ids = np.fromfile(shard_path(tmp_path, shard, "tokens"), dtype=np.int32)[offset : offset + length]
        assert ids.tolist() == sample.input_ids.tolist()
        learned = [index for start, end in runs[first : first + count].tolist() for index in range(start, end)]
        assert learned == np.flatnonzero(sample.labels != -100).tolist()


def test_lists_are_the_same_however_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes, sub-datasets and the corpus give the order; what is on no list and what is on several is counted."""
    samples = random_samples(200, longest=30)
    write_shards(tmp_path, samples, shards=7, inputs=[0, 1, 0] * 60 + [1] * 20)
    left_out = [np.arange(len(part)) % 5 == 0 for part in np.array_split(np.arange(200), 7)]
    kept = np.flatnonzero(~np.concatenate(left_out))
    lengths = np.array([len(sample.input_ids) for sample in samples])
    found = []
    for waiting in (1, 20, 1 << 17):
        monkeypatch.setattr("colossal_llama.data.bins._WAITING", waiting)
        monkeypatch.setattr("colossal_llama.data.bins._AT_ONCE", waiting)
        corpus, members = load_corpus(tmp_path, 7, ["a", "b"], left_out=left_out)
        assert corpus.left_out_tokens == lengths.sum() - lengths[kept].sum()
        allotment = allot(members, corpus.names, [1.0, 1.0], 0.1, 2, 0)
        paths = [tmp_path / f"{name}-{waiting}.documents" for name in ("0", "1", "validation")]
        dealt = write_bins(corpus, allotment, [None, *paths[1:]])
        lists = [BinReader(path) for path in paths[1:]]
        found.append([one.column(name).tolist() for one in lists for name in ("shard", "offset", "turn", "length")])
        turns = lists[0].column("turn")
        assert (np.diff(turns) >= 0).all()
        assert (turns >> 32 == lists[0].column("owner")).all()
        assert len(np.unique(turns)) > 2, "a pass more over the smaller one"
        place = lists[1].column("shard") * (1 << 20) + lists[1].column("offset")
        assert (np.diff(place) > 0).all(), "the validation set has the order of the corpus"
        assert not paths[0].exists(), "a list that is not needed"
    assert found[0] == found[1] == found[2]
    assert dealt.left_out == corpus.left_out_tokens
    assert dealt.taken - dealt.repeated + dealt.left_out == lengths.sum()
    assert allotment.held is not None
    assert lists[1].column("length").sum() == sum(share.tokens for share in allotment.held)
    assert len(lists[1].column("length")) == sum(share.documents for share in allotment.held)


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


def test_every_bin_has_its_share_of_every_sub_dataset() -> None:
    lengths = np.random.default_rng(0).integers(1, 20, 400)
    allotment = allot(members_of([lengths[:300], lengths[300:]]), ["a", "b"], None, 0.0, 5, 0)
    assert allotment.held is None
    for own, places in zip((lengths[:300], lengths[300:]), allotment.destinations, strict=True):
        assert places.shape == (1, len(own))
        tokens = np.bincount(places[0], own, minlength=5)
        assert len(tokens) == 5
        assert np.abs(tokens - own.sum() / 5).max() < 40


def test_mixture_repeats_and_never_shortens() -> None:
    lengths = np.random.default_rng(0).integers(1, 20, 400)
    tokens = [int(lengths[:300].sum()), int(lengths[300:].sum())]
    epochs = epochs_of(tokens, [1.0, 1.0])
    allotment = allot(members_of([lengths[:300], lengths[300:]]), ["a", "b"], [1.0, 1.0], 0.0, 3, 0)
    assert allotment.epochs == epochs
    assert epochs[0] == 1
    first, second = (places != allotment.nowhere for places in allotment.destinations)
    assert first.all()
    assert first.shape == (1, 300)
    assert second[: int(epochs[1])].all()
    assert len(second) == int(epochs[1]) + 1
    drawn = second[-1].sum()
    assert drawn == round((epochs[1] - int(epochs[1])) * 100)
    taken = (second * lengths[300:]).sum()
    assert abs(tokens[0] / taken - 1) < 0.03
    assert (allotment.destinations[1][0] != allotment.destinations[1][1]).any(), "each pass is dealt out anew"
    assert epochs_of([10, 0, 30], None) == [1.0, 1.0, 1.0]
    assert epochs_of([10, 0, 30], [1, 1, 1]) == [3.0, 0.0, 1.0]


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


def test_validation_takes_whole_documents_of_every_sub_dataset() -> None:
    members = members_of([[3] * 300, [4] * 99, [5]])
    for later in range(1, 300, 3):
        members[0].heads[later] = 0  # a piece of the conversation before
    heads = np.array(members[0].heads)
    aside = set_aside(heads, 0.1, (0,))
    assert aside[heads == 1].sum() == 20
    pieces = np.flatnonzero(heads == 0)
    assert (aside[pieces] == aside[pieces - 1]).all()
    assert set_aside(heads, 0.1, (1,)).tolist() != aside.tolist()
    allotment = allot(members, ["a", "b", "c"], None, 0.1, 3, 0)
    assert allotment.held is not None
    assert [share.documents for share in allotment.held] == [20, 10, 0], "the only document stays"
    held = [places[0] == allotment.validation for places in allotment.destinations]
    assert [int(one.sum()) * length for one, length in zip(held, (3, 4, 5), strict=True)] == [
        share.tokens for share in allotment.held
    ]
    assert held[0].sum() > 20, "pieces go with their conversation"


def test_all_of_a_sub_dataset_can_be_set_aside() -> None:
    allotment = allot(members_of([[7, 7], [1] * 100]), ["a", "b"], [1.0, 1.0], 0.9, 2, 0)
    assert allotment.epochs == [0.0, 1.0]
    assert allotment.destinations[0].tolist() == [[allotment.validation] * 2]


def test_sub_datasets_by_category(tmp_path: Path) -> None:
    samples = random_samples(30)
    for index, sample in enumerate(samples):
        samples[index] = replace(sample, category=["b", "", "a"][index % 3])
    write_shards(tmp_path, samples)
    corpus, members = load_corpus(tmp_path, 3, ["input"], by_category=True)
    assert corpus.names == ["(none)", "a", "b"]
    assert [total.documents for total in corpus.totals] == [10, 10, 10]
    by_name = [[len(sample.input_ids) for sample in samples[first::3]] for first in (1, 2, 0)]
    assert [list(one.lengths) for one in members] == by_name
    assert next(corpus.shard_documents()).owners[:3].tolist() == [2, 0, 1]
    corpus, members = load_corpus(tmp_path, 3, ["input"])
    assert corpus.names == ["input"]
    assert list(members[0].lengths) == [len(sample.input_ids) for sample in samples]


def test_later_pieces_are_no_documents(tmp_path: Path) -> None:
    builder = ShardBuilder()
    for index, sample in enumerate(random_samples(4)):
        size = NOT_FIRST if index in (1, 2) else 10
        builder.add(0, sample, size, size)
    write_shard(builder, tmp_path, 0)
    corpus, [members] = load_corpus(tmp_path, 1, ["input"])
    assert (corpus.totals[0].documents, corpus.totals[0].characters, corpus.totals[0].bytes) == (2, 20, 20)
    assert members.heads.tolist() == [1, 0, 0, 1]


def test_unique_names() -> None:
    assert unique_names(["/x/zh", "/y/zh", "/y/en"]) == ["/x/zh", "/y/zh", "en"]
