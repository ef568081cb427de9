"""Widening a SentencePiece unigram model: old text as before, each piece wins its own text, slow and fast alike."""

import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from colossal_llama.errors import UserError
from colossal_llama.tokenizer import unigram
from colossal_llama.tokenizer.expansion import expand_tokenizer
from colossal_llama.tokenizer.expansion_report import VocabularyExpansion
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.tokenizer.sentencepiece import read_model
from tests.helpers import assets
from tests.helpers.sentencepiece_models import build_model, train_model, write_dir

# Overlapping, nested, of known and of unknown characters (饕餮), with a space, in English.
PIECES = [
    "孔明曰",
    "说孔明",
    "却说孔明",
    "曹操曰",
    "饕餮",
    "饕餮兽",
    "▁却说",
    "三十九",
    "三十",
    "十九",
    "ofth",
    "expressio",
]


@pytest.fixture(scope="module")
def model() -> bytes:
    return train_model("unigram")


@pytest.fixture(scope="module", params=[True, False], ids=["legacy", "not-legacy"])
def expansion(
    request: pytest.FixtureRequest, model: bytes, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, VocabularyExpansion]:
    folder = tmp_path_factory.mktemp("unigram")
    source = write_dir(folder / "source", model, legacy=request.param)
    texts = {"novel": assets.sanguo_text().split("。")[:4000], "english": assets.english_text().splitlines()}
    return source, folder / "target", expand_tokenizer(source, PIECES, folder / "target", check_texts=texts)


def test_old_pieces_keep_ids_and_scores(expansion: tuple) -> None:
    old = read_model(expansion[0] / "tokenizer.model").proto.pieces
    new = read_model(expansion[1] / "tokenizer.model").proto.pieces
    assert [(p.piece, p.score, p.type) for p in new[: len(old)]] == [(p.piece, p.score, p.type) for p in old]
    assert [piece.piece for piece in new[len(old) :]] == PIECES
    for use_fast in (True, False):
        tokenizer = AutoTokenizer.from_pretrained(str(expansion[1]), use_fast=use_fast)
        assert tokenizer.convert_tokens_to_ids(PIECES) == list(range(len(old), len(new)))


def test_each_piece_wins_its_own_text_in_both_versions(expansion: tuple) -> None:
    assert expansion[2].found_unreachable == []
    assert expansion[2].unreachable == []
    for use_fast in (True, False):
        tokenizer = AutoTokenizer.from_pretrained(str(expansion[1]), use_fast=use_fast)
        for piece in PIECES:
            assert piece in tokenizer.tokenize("1" + piece.replace("▁", " ") + "1"), piece


def test_report_on_texts(expansion: tuple) -> None:
    pieces, novel, english = expansion[2].comparisons
    assert pieces.slow_unexplained == novel.slow_unexplained == english.slow_unexplained == 0
    assert novel.changed > 20
    assert novel.changed_without_new == english.changed_without_new == 0
    assert novel.new_tokens < novel.old_tokens
    assert novel.moved <= novel.old_tokens / 100


def test_fast_file_equals_a_fresh_conversion(expansion: tuple, tmp_path: Path) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(expansion[1], copied)
    (copied / "tokenizer.json").unlink()
    lines = assets.sanguo_text()[:100_000].split("。") + assets.english_text()[:50_000].splitlines()
    written, converted = load_tokenizer(expansion[1], "--t"), load_tokenizer(copied, "--t")
    assert (written(lines).input_ids == converted(lines).input_ids) is True


def test_the_earlier_of_two_overlapping_pieces_wins(model: bytes, tmp_path: Path) -> None:
    write_dir(tmp_path / "source", model)
    # Each is old tokens: 说|孔明|曰.
    for first, second in (("孔明曰", "说孔明"), ("说孔明", "孔明曰")):
        target = tmp_path / first
        expand_tokenizer(tmp_path / "source", [first, second], target)
        assert first in load_tokenizer(target, "--t").tokenize("1说孔明曰1")


def test_scores_follow_the_rule() -> None:
    proto = read_model_of(build_model("unigram", {"a": -10.0, "b": -11.0, "c": -12.0, "ab": -14.0, "▁": -3.0}))
    scores = unigram.new_scores(proto, ["bc", "abc", "xa"])
    gains = [scores[0] - (-23.0), scores[1] - (-26.0), scores[2] - (-10.0 - 24.0)]
    assert gains == pytest.approx([5.0, 3.5, 2.0])  # evenly from GAIN_FIRST towards GAIN_LAST
    assert unigram.best_segmentation("abcx", {"a": -1.0, "bc": -2.0, "b": -1.0, "c": -0.5}, -9.0) == (
        -11.5,
        ("a", "b", "c", "x"),
    )


def test_a_long_piece_outweighs_its_new_parts_wherever_they_stand_in_the_list() -> None:
    proto = read_model_of(build_model("unigram", dict.fromkeys("abcd", -10.0)))
    long, left, right = unigram.new_scores(proto, ["abcd", "ab", "cd"])
    assert (left, right) == pytest.approx((-16.5, -18.0))
    assert long == pytest.approx(left + right + 5.0)


def read_model_of(content: bytes) -> object:
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2.ModelProto.FromString(content)


def test_unknown_characters_inside_old_pieces_keep_their_score(tmp_path: Path) -> None:
    """b is no piece but xb is: were the lowest score to fall, wx|b would turn into w|xb."""
    scores = {"▁": -3.0, "w": -20.0, "x": -5.0, "wx": -2.0, "xb": -30.0, "q": -25.0}
    source = write_dir(tmp_path / "source", build_model("unigram", scores))
    expand_tokenizer(source, ["qqqq"], tmp_path / "target")
    old, new = load_tokenizer(source, "--t"), load_tokenizer(tmp_path / "target", "--t")
    assert old.tokenize("wxb") == ["▁", "wx", "<0x62>"]
    for tokenizer in (new, AutoTokenizer.from_pretrained(str(tmp_path / "target"), use_fast=False)):
        assert tokenizer.tokenize("wxb") == old.tokenize("wxb")
        assert "qqqq" in tokenizer.tokenize("wqqqqw")


def test_no_new_score_exceeds_the_highest_old_one(tmp_path: Path) -> None:
    """SentencePiece scores a user-defined piece by the highest score, so a higher one would change old text."""
    scores = {"▁": -3.0, "a": -1.0, "b": -1.0, "[x": -0.5, "x": -1.0, "[": -1.0, "]": -1.0}
    proto = read_model_of(build_model("unigram", scores, user_defined=("<think>",)))
    assert unigram.new_scores(proto, ["ab"]) == [-0.5]
    assert unigram.find_unreachable(proto, ["ab"]) == []
    zero = read_model_of(build_model("unigram", {"a": 0.0, "b": 0.0}, user_defined=("<think>",)))
    assert [(entry.piece, entry.parts) for entry in unigram.find_unreachable(zero, ["ab"])] == [("ab", ("a", "b"))]
    plain = read_model_of(build_model("unigram", {"a": 0.0, "b": 0.0}))
    assert unigram.new_scores(plain, ["ab"]) == [5.0]


def test_a_piece_that_cannot_win_is_refused_or_dropped(tmp_path: Path) -> None:
    source = write_dir(
        tmp_path / "source", build_model("unigram", {"a": 0.0, "b": 0.0, "▁": 0.0, "q": -1.0}, ("<think>",))
    )
    with pytest.raises(UserError, match=r"1 of 2 .*ab: stays a\|b; the old tokens score better"):
        expand_tokenizer(source, ["ab", "qq"], tmp_path / "target", unreachable="error")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    report = expand_tokenizer(source, ["ab", "qq"], tmp_path / "target", unreachable="drop")
    assert report.pieces == ["qq"]
    assert [entry.piece for entry in report.found_unreachable] == ["ab"]


def test_added_tokens_beyond_the_model_keep_their_ids(model: bytes, tmp_path: Path) -> None:
    source = write_dir(tmp_path / "plain", model)
    tokenizer = AutoTokenizer.from_pretrained(str(source))
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.add_tokens(["<think>"])
    tokenizer.save_pretrained(str(tmp_path / "source"))
    expand_tokenizer(tmp_path / "source", PIECES, tmp_path / "target")
    for use_fast in (True, False):
        new = AutoTokenizer.from_pretrained(str(tmp_path / "target"), use_fast=use_fast)
        assert new.pad_token_id == 2200
        assert new.convert_tokens_to_ids(["<think>", PIECES[0]]) == [2201, 2202]


def test_without_byte_fallback(tmp_path: Path) -> None:
    source = write_dir(tmp_path / "source", train_model("unigram", byte_fallback=False))
    report = expand_tokenizer(source, PIECES, tmp_path / "target", check_texts={"novel": [assets.sanguo_text()]})
    new = load_tokenizer(tmp_path / "target", "--t")
    assert report.unreachable == []
    assert "饕餮" in new.tokenize("1饕餮1")
    assert report.comparisons[1].slow_unexplained == 0


def test_folders_of_other_unigram_classes_are_refused(model: bytes, tmp_path: Path) -> None:
    settings = {"tokenizer_class": "T5Tokenizer", "pad_token": "<pad>", "extra_ids": 0}
    source = write_dir(tmp_path / "source", model, **settings)
    (source / "tokenizer.model").rename(source / "spiece.model")
    AutoTokenizer.from_pretrained(str(source)).save_pretrained(str(source))
    with pytest.raises(UserError, match="cannot widen this Unigram tokenizer; expected a SentencePiece"):
        expand_tokenizer(source, PIECES, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_files_that_do_not_belong_together_are_refused(model: bytes, tmp_path: Path) -> None:
    bpe = write_dir(tmp_path / "bpe", train_model("bpe"))
    other = write_dir(tmp_path / "other", train_model("unigram", vocab_size=2100))
    source = write_dir(tmp_path / "source", model)
    for folder, message in ((bpe, "tokenizer.json holds a BPE model"), (other, "gives id .* to another token")):
        AutoTokenizer.from_pretrained(str(folder)).save_pretrained(str(tmp_path / "saved"))
        shutil.copyfile(tmp_path / "saved" / "tokenizer.json", source / "tokenizer.json")
        with pytest.raises(UserError, match=message):
            expand_tokenizer(source, PIECES, tmp_path / "target")
    assert not (tmp_path / "target").exists()
