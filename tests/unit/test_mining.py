"""Finding new pieces: what they save is measured by real expansions, not claimed."""

import json
from collections import Counter
from pathlib import Path

import pytest

from colossal_llama.errors import UserError
from colossal_llama.tokenizer.candidates import METHODS, CandidateSettings, segments
from colossal_llama.tokenizer.compression import CompressionCurve, CurvePoint, find_knee, knee
from colossal_llama.tokenizer.expansion import expand_tokenizer
from colossal_llama.tokenizer.foreign_vocabulary import NOT_TEXT, PART_OF_CHARACTER, read_vocabulary
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.tokenizer.mining import (
    HOLDS_ASCII,
    TOO_LONG,
    TOO_RARE,
    MinedPiece,
    fitting,
    mine_pieces,
    write_pieces,
)
from colossal_llama.tokenizer.ngrams import count_runs
from colossal_llama.tokenizer.pieces import ALREADY_KNOWN, CONTROL_CHARACTER, DUPLICATE, read_pieces
from colossal_llama.tokenizer.sampling import MiningCorpus, cut_passages, sample_corpus
from tests.helpers import assets

SETTINGS = CandidateSettings(size=400, max_characters=4)


def corpus_of(texts: list[str], held_out: float = 0.0) -> MiningCorpus:
    return sample_corpus(texts, held_out, 10**9, seed=1)


@pytest.fixture(scope="module")
def novel() -> MiningCorpus:
    text = assets.sanguo_text()[:60_000]
    return corpus_of([text[start : start + 500] for start in range(0, len(text), 500)], held_out=0.4)


def test_runs_are_letters_outside_ascii() -> None:
    runs = count_runs(["却说孔明，却说 abc曹操abc123\n却说１２\u3000é"])
    assert runs == {"却说孔明": 1, "，": 1, "却说": 2, "曹操": 1, "é": 1}


def test_segments_hold_no_ascii_unless_wanted() -> None:
    texts = ["却说 孔明abc曹操\n  \nonly English", "第" * 2500]
    assert list(segments(texts, False)) == ["却说 孔明", "曹操", "第" * 1000, "第" * 1000, "第" * 500]
    assert list(segments(texts[:1], True)) == ["却说 孔明abc曹操", "  ", "only English"]


@pytest.mark.parametrize(
    ("method", "family"),
    [
        *(("bpe", "sentencepiece_dir"), ("unigram", "sentencepiece_dir")),
        *(("bpe", "smollm2_tokenizer_dir"), ("ngrams", "smollm2_tokenizer_dir")),
    ],
)
def test_mined_pieces_shorten_text_that_chose_nothing(
    method: str, family: str, novel: MiningCorpus, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source = request.getfixturevalue(family)
    old = load_tokenizer(source, "--t")
    found = mine_pieces(source, old, novel, SETTINGS, Counter(), method=method)
    pieces = [mined.piece for mined in found[:200]]
    assert {"玄德", "曹操"} <= set(pieces)
    assert all(len(piece) <= 4 and not any(letter.isascii() for letter in piece) for piece in pieces)
    assert [mined.saved for mined in found] == sorted((mined.saved for mined in found), reverse=True)
    assert not set(pieces) & set(old.get_vocab())
    point = CompressionCurve(source, pieces, novel.measuring).at(200)
    expand_tokenizer(source, pieces, tmp_path / "wider")
    new = load_tokenizer(tmp_path / "wider", "--t")
    encoded = new(novel.measuring, add_special_tokens=False).input_ids
    assert point.tokens == sum(map(len, encoded))
    assert point.vocabulary == len(new)
    before = CompressionCurve(source, pieces, novel.measuring).at(0)
    assert before.tokens == sum(map(len, old(novel.measuring, add_special_tokens=False).input_ids))
    assert point.tokens < 0.85 * before.tokens


def test_claimed_savings_are_what_an_expansion_with_all_pieces_saves(tokenizer_dir: Path) -> None:
    text = assets.sanguo_text()[:60_000]
    corpus = corpus_of(text.splitlines())
    old = load_tokenizer(tokenizer_dir, "--t")
    found = mine_pieces(tokenizer_dir, old, corpus, CandidateSettings(200, 4), Counter(), method="bpe")
    curve = CompressionCurve(tokenizer_dir, [mined.piece for mined in found], corpus.measuring)
    saved = curve.at(0).tokens - curve.at(len(found)).tokens
    assert saved == pytest.approx(sum(mined.saved for mined in found), rel=0.03)


def test_best_ngram_comes_first_and_length_is_limited(sentencepiece_dir: Path) -> None:
    old = load_tokenizer(sentencepiece_dir, "--t")

    def mine(texts: list[str], longest: int) -> list[MinedPiece]:
        settings = CandidateSettings(20, longest)
        return mine_pieces(sentencepiece_dir, old, corpus_of(texts), settings, Counter(), method="ngrams")

    texts = ["饕餮"] * 5 + ["中国"] * 9 + ["罕"]
    assert mine(texts, 4) == [MinedPiece("饕餮", 5, 25), MinedPiece("中国", 9, 9)]
    for longest in (1, 2, 3):
        assert max(len(entry.piece) for entry in mine(["饕餮之徒"] * 5, longest)) == min(longest, 2), longest


@pytest.mark.parametrize("method", list(METHODS))
def test_english_gives_nothing_unless_wanted(method: str, sentencepiece_dir: Path) -> None:
    old = load_tokenizer(sentencepiece_dir, "--t")
    corpus = corpus_of(["the zyglotrope and the zyglotropes"] * 9)
    assert mine_pieces(sentencepiece_dir, old, corpus, SETTINGS, Counter(), method=method) == []
    if METHODS.get(method).finds_ascii:
        wanted = CandidateSettings(400, 16, ascii_pieces=True)
        found = mine_pieces(sentencepiece_dir, old, corpus, wanted, Counter(), method=method)
        assert "▁zyglotrope" in {mined.piece for mined in found}


def test_what_is_left_out_is_counted(sentencepiece_dir: Path) -> None:
    dropped: Counter[str] = Counter()
    assert fitting(["孔明", "孔明", "a股", "\n", "甲乙丙丁戊", "▁", "▁第"], SETTINGS, dropped) == ["孔明", "▁第"]
    assert dropped[DUPLICATE] == dropped[HOLDS_ASCII] == dropped[CONTROL_CHARACTER] == dropped[TOO_LONG] == 1
    old = load_tokenizer(sentencepiece_dir, "--t")
    dropped.clear()
    others = ["孔明", "中", "曹操", "罕见"]
    corpus = corpus_of(["孔明孔明曹操曹操罕见"])
    found = mine_pieces(sentencepiece_dir, old, corpus, SETTINGS, dropped, method=None, others=others)
    assert {mined.piece for mined in found} == {"孔明", "曹操"}
    assert (dropped[ALREADY_KNOWN], dropped[TOO_RARE]) == (1, 1)


def test_sample_is_bounded_uniform_and_repeatable() -> None:
    texts = [f"{number:04d}" + "x" * 96 for number in range(1000)]
    first = sample_corpus(texts, 0.4, 20_000, seed=3)
    assert first == sample_corpus(iter(texts), 0.4, 20_000, seed=3)
    assert first.finding != sample_corpus(texts, 0.4, 20_000, seed=4).finding
    assert (first.passages_read, first.characters_read) == (1000, 100_000)
    assert (first.passages_kept, first.characters_kept) == (200, 20_000)
    drawn = [int(text[:4]) for part in (first.finding, first.ranking, first.measuring) for text in part]
    assert len(set(drawn)) == 200
    assert 400 < sum(drawn) / 200 < 600  # neither the head nor the tail of the corpus
    assert 90 < len(first.finding) < 150
    assert 30 < len(first.ranking) < 90
    assert 5 < len(first.measuring) < 40


def test_nothing_held_out_uses_all_text_in_order() -> None:
    corpus = sample_corpus(["b", "a", "c"], 0.0, 100, seed=1)
    assert corpus.finding == corpus.ranking == corpus.measuring == ["b", "a", "c"]
    assert "not those of new text" in corpus.describe()


def test_passages_end_at_lines_and_lose_nothing() -> None:
    text = "第一行\n" * 10 + "x" * 50 + "\n尾"
    passages = list(cut_passages(text, longest=18))
    assert "".join(passages) == text
    assert max(map(len, passages)) <= 18
    assert passages[0] == "第一行\n" * 4


def points_of(*pairs: tuple[int, float]) -> list[CurvePoint]:
    return [CurvePoint(size - 100, size, 0, rate) for size, rate in pairs]


def test_knee_is_farthest_below_the_chord() -> None:
    points = points_of((100, 2.0), (110, 1.4), (150, 1.2), (200, 1.0))
    # Scaled: (0.1, 0.4) is 0.5 below the chord (times 1/sqrt 2), (0.5, 0.2) is 0.3.
    assert knee(points) == points[1]
    assert knee(points_of((100, 2.0), (150, 1.5), (200, 1.0))) is None
    assert knee(points_of((100, 2.0), (150, 1.9), (200, 1.0))) is None
    assert knee(points[:2]) is None


def test_curve_falls_and_a_target_is_met_with_the_fewest_pieces(tokenizer_dir: Path, novel: MiningCorpus) -> None:
    old = load_tokenizer(tokenizer_dir, "--t")
    found = mine_pieces(tokenizer_dir, old, novel, SETTINGS, Counter(), method="bpe")
    curve = CompressionCurve(tokenizer_dir, [mined.piece for mined in found], novel.measuring)
    marked = find_knee(curve, 128, 3)
    rates = [point.compression for point in curve.points()]
    assert rates == sorted(rates, reverse=True)
    assert {0, 16, 32, 64, 128} < {point.pieces for point in curve.points()}
    assert marked in curve.points()
    wanted = (curve.at(0).compression + curve.at(128).compression) / 2
    reached = curve.smallest(wanted, 128)
    assert reached.compression <= wanted < curve.at(reached.pieces - 2).compression
    with pytest.raises(UserError, match="not reachable; the best are"):
        curve.smallest(curve.at(128).compression - 0.01, 128)


def test_another_models_pieces_are_read_in_both_spellings(
    sentencepiece_dir: Path, smollm2_tokenizer_dir: Path, tmp_path: Path
) -> None:
    dropped: Counter[str] = Counter()
    pieces = read_vocabulary(sentencepiece_dir / "tokenizer.model", "--merge", dropped)
    assert dropped == {NOT_TEXT: 259}  # three special pieces, 256 bytes
    assert "▁the" in pieces
    assert len(pieces) == 32_000 - 259
    dropped.clear()
    pieces = read_vocabulary(smollm2_tokenizer_dir, "--merge", dropped)
    assert "▁the" in pieces
    assert "Ġthe" not in pieces
    assert dropped[PART_OF_CHARACTER] >= 128
    assert len(pieces) + sum(dropped.values()) == 49_152


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.model", b"\x00garbage", "not a SentencePiece model"),
        ("a.json", b"[1]", "expected a JSON object"),
        ("a.json", b'{"model": {"type": "WordPiece", "vocab": {"a": 0}}}', "a WordPiece vocabulary"),
        ("a.model", b"", "holds no text"),
    ],
)
def test_what_is_no_vocabulary_is_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_vocabulary(tmp_path / name, "--merge", Counter())
    with pytest.raises(UserError, match="no such file"):
        read_vocabulary(tmp_path / "absent", "--merge", Counter())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no tokenizer here"):
        read_vocabulary(tmp_path / "empty", "--merge", Counter())


def test_written_pieces_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "pieces.jsonl"
    write_pieces(path, [MinedPiece("饕餮", 5, 25), MinedPiece("中国", 9, 9)])
    assert read_pieces(path) == ["饕餮", "中国"]
    assert json.loads(path.read_text(encoding="utf-8").splitlines()[0]) == {"piece": "饕餮", "count": 5, "saved": 25}
    assert [file.name for file in path.parent.iterdir()] == ["pieces.jsonl"]
