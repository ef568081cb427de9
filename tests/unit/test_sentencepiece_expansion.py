"""Widening a SentencePiece tokenizer: old ids and text, slow and fast alike, settings kept."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from colossal_llama.errors import UserError
from colossal_llama.tokenizer import families
from colossal_llama.tokenizer.expansion import expand_tokenizer
from colossal_llama.tokenizer.expansion_report import VocabularyExpansion
from colossal_llama.tokenizer.fingerprint import tokenizer_fingerprint
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.tokenizer.sentencepiece import read_model
from tests.helpers import assets
from tests.helpers.sentencepiece_models import build_model, write_dir

# 饕餮: neither character is in the old vocabulary; 孔明曰之 has no halves in it; a tie: 三十|九 and 三|十九.
PIECES = ["中国", "孔明", "曹操", "三十", "十九", "三十九", "饕餮", "孔明曰之", "▁你好", "，却说", "玄德"]


@pytest.fixture(scope="module", params=[True, False], ids=["legacy", "not-legacy"])
def expansion(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, VocabularyExpansion]:
    folder = tmp_path_factory.mktemp("spm")
    source = assets.write_sentencepiece_dir(folder / "source", legacy=request.param)
    return source, folder / "target", expand_tokenizer(source, PIECES, folder / "target")


def both(expansion: tuple[Path, Path, VocabularyExpansion]) -> list[PreTrainedTokenizerBase]:
    return [load_tokenizer(folder, "--tokenizer_dir") for folder in expansion[:2]]


def differing(
    one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, lines: list[str]
) -> list[tuple[str, list[str], list[str]]]:
    """The lines that two tokenizers encode differently (short enough for pytest to print)."""
    pairs = zip(lines, one(lines).input_ids, other(lines).input_ids, strict=True)
    return [
        (line[:50], one.convert_ids_to_tokens(a)[:50], other.convert_ids_to_tokens(b)[:50])
        for line, a, b in pairs
        if a != b
    ][:3]


def lines_of(text: str, step: int) -> list[str]:
    return [line for line in text.splitlines() if line.strip()][::step]


def test_old_ids_stay_and_new_ones_follow_in_order(expansion: tuple) -> None:
    old, new = both(expansion)
    report = expansion[2]
    assert old.get_vocab().items() <= new.get_vocab().items()
    assert new.convert_tokens_to_ids(PIECES) == list(range(32000, 32000 + len(PIECES)))
    assert report.old_size == 32000
    assert report.new_size == len(new) == 32000 + len(PIECES) + len(report.intermediates)
    assert {"饕", "餮"} <= set(report.intermediates)


def test_text_without_new_pieces_keeps_its_ids(expansion: tuple) -> None:
    old, new = both(expansion)
    added = expansion[2].pieces + expansion[2].intermediates
    lines = lines_of(assets.english_text(), 1) + [
        line for line in lines_of(assets.sanguo_text(), 1) if not any(piece in line for piece in added)
    ]
    assert sum(not line.isascii() for line in lines) > 100
    assert differing(old, new, lines) == []


def test_slow_and_fast_agree(expansion: tuple) -> None:
    target = expansion[1]
    slow = AutoTokenizer.from_pretrained(str(target), use_fast=False)
    fast = load_tokenizer(target, "--tokenizer_dir")
    lines = [*lines_of(assets.sanguo_text(), 60), "三十九", "饕餮 饕", "<s>中国的</s>"]
    lines += ["x" + piece.replace("▁", " ") for piece in PIECES]
    assert not slow.is_fast
    assert fast.is_fast
    assert differing(slow, fast, lines) == []


def test_every_piece_is_reached_inside_text(expansion: tuple) -> None:
    new = load_tokenizer(expansion[1], "--tokenizer_dir")
    assert expansion[2].unreachable == []
    for piece in PIECES:
        text = "x" + piece.replace("▁", " ") + "x"
        assert piece in new.tokenize(text), piece


def test_fast_file_equals_a_fresh_conversion(expansion: tuple, tmp_path: Path) -> None:
    """tokenizer.json, which loads at once, must say the same as tokenizer.model."""
    copied = tmp_path / "copy"
    shutil.copytree(expansion[1], copied)
    (copied / "tokenizer.json").unlink()
    lines = lines_of(assets.sanguo_text(), 60) + lines_of(assets.english_text(), 60)
    written, converted = load_tokenizer(expansion[1], "--t"), load_tokenizer(copied, "--t")
    assert differing(written, converted, lines) == []


def test_dummy_prefix_and_settings_are_kept(expansion: tuple) -> None:
    source, target, _ = expansion
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        assert (target / name).read_bytes() == (source / name).read_bytes()
    old, new = both(expansion)
    assert read_model(target / "tokenizer.model").proto.normalizer_spec.add_dummy_prefix
    assert new.padding_side == old.padding_side == "right"
    message = [{"role": "user", "content": "你好"}]
    assert new.apply_chat_template(message, tokenize=False) == "[user]你好"
    assert new("Hello").input_ids == old("Hello").input_ids == [1, *old("Hello").input_ids[1:]]


def test_new_scores_lie_below_the_lowest_old_one(expansion: tuple) -> None:
    old = read_model(expansion[0] / "tokenizer.model").proto.pieces
    new = read_model(expansion[1] / "tokenizer.model").proto.pieces
    assert [(p.piece, p.score, p.type) for p in new[:32000]] == [(p.piece, p.score, p.type) for p in old]
    scores = [piece.score for piece in new[32000:]]
    assert max(scores) < min(piece.score for piece in old)
    assert scores == sorted(set(scores), reverse=True)


def test_added_tokens_beyond_the_model_keep_their_ids(sentencepiece_dir: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    tokenizer = AutoTokenizer.from_pretrained(str(sentencepiece_dir))
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.add_tokens(["<think>"])
    tokenizer.save_pretrained(str(source))
    (source / "tokenizer.json").unlink()  # as published before there were fast tokenizers
    expand_tokenizer(source, PIECES, tmp_path / "target")
    for use_fast in (True, False):
        new = AutoTokenizer.from_pretrained(str(tmp_path / "target"), use_fast=use_fast)
        assert new.pad_token_id == 32000
        assert new.convert_tokens_to_ids(["<think>", "中国"]) == [32001, 32002]
        ids = new("在<think>中国<pad>", add_special_tokens=False).input_ids
        assert [token_id for token_id in ids if token_id >= 32000] == [32001, 32002, 32000]
        assert new.decode(ids, skip_special_tokens=True).replace(" ", "") == "在<think>中国"


def test_a_gap_before_an_added_token_is_refused(sentencepiece_dir: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(sentencepiece_dir, source)
    tokenizer = AutoTokenizer.from_pretrained(str(sentencepiece_dir))
    model = json.loads(tokenizer.backend_tokenizer.to_str())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    # Ids 32000 and 32001 exist in tokenizer.json only; 32001 is not an added token, so 32002 follows a gap.
    model["model"]["vocab"] |= {"<gap>": 32000, "<pad>": 32001}
    model["added_tokens"].append({"id": 32001, "content": "<pad>", **flags})
    (source / "tokenizer.json").write_text(json.dumps(model), encoding="utf-8")
    with pytest.raises(UserError, match=r"'<pad>' has id 32001.*gap"):
        expand_tokenizer(source, PIECES, tmp_path / "target")
    del model["model"]["vocab"]["<pad>"]
    model["added_tokens"].pop()
    (source / "tokenizer.json").write_text(json.dumps(model), encoding="utf-8")
    with pytest.raises(UserError, match=r"has 32000 pieces, but tokenizer.json gives '<gap>' id 32000"):
        expand_tokenizer(source, PIECES, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_an_old_piece_without_halves_becomes_reachable_in_both_versions(tmp_path: Path) -> None:
    """xyz was never produced; with the new xy it is, and before any other new piece."""
    scores = {"▁": -1.0, "x": -2.0, "y": -3.0, "z": -4.0, "xyz": -5.0}
    source = write_dir(tmp_path / "source", build_model("bpe", scores))
    report = expand_tokenizer(source, ["xy", "zz"], tmp_path / "target", check_texts={"a": ["xyz", "xyzz", "xzy"]})
    for use_fast in (True, False):
        new = AutoTokenizer.from_pretrained(str(tmp_path / "target"), use_fast=use_fast)
        assert new.tokenize("xyz") == ["▁", "xyz"]
    counts = report.comparisons[1]
    assert (counts.changed, counts.changed_without_new) == (2, 2)
    assert counts.examples["changed_without_new"] == "▁|x|y|z instead of ▁|xyz"


def test_other_ids_in_the_slow_tokenizer_are_refused(
    sentencepiece_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_swapped(folder: Path, proto: Any, backend: dict[str, Any]) -> None:
        one, other = proto.pieces[-1], proto.pieces[-2]
        one.piece, other.piece = other.piece, one.piece
        write(folder, proto, backend)

    write = families._write_sentencepiece
    monkeypatch.setattr(families, "_write_sentencepiece", write_swapped)
    with pytest.raises(UserError, match=r"slow LlamaTokenizer would give '中国' id 32001 instead of 32000"):
        expand_tokenizer(sentencepiece_dir, ["中国", "大人"], tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


def test_broken_models_are_refused_without_a_trace(sentencepiece_dir: Path, tmp_path: Path) -> None:
    for name, content in {
        "truncated": (sentencepiece_dir / "tokenizer.model").read_bytes()[:100_000],
        "text": b"this is not a sentencepiece model\n",
    }.items():
        source = tmp_path / name
        shutil.copytree(sentencepiece_dir, source)
        (source / "tokenizer.model").write_bytes(content)
        with pytest.raises(UserError, match="truncated or not a SentencePiece model") as caught:
            expand_tokenizer(source, PIECES, tmp_path / "target")
        assert str(source) in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text", "truncated"]


def test_existing_target_needs_overwrite(sentencepiece_dir: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match="already exists"):
        expand_tokenizer(sentencepiece_dir, ["中国"], target)
    assert (target / "precious.txt").read_text() == "mine"
    expand_tokenizer(sentencepiece_dir, ["中国"], target, overwrite=True)
    assert not (target / "precious.txt").exists()
    with pytest.raises(UserError, match="is the source folder"):
        expand_tokenizer(target, ["玄德"], target, overwrite=True)


def test_fingerprint_is_of_the_vocabulary_not_of_the_folder(sentencepiece_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(sentencepiece_dir, tmp_path / "copy")
    expand_tokenizer(sentencepiece_dir, ["中国"], tmp_path / "wider")
    original, copy, wider = (
        tokenizer_fingerprint(load_tokenizer(path, "--t"))
        for path in (sentencepiece_dir, tmp_path / "copy", tmp_path / "wider")
    )
    assert original == copy
    assert original != wider
    renamed = load_tokenizer(tmp_path / "copy", "--t")
    renamed.eos_token = "<unk>"
    assert tokenizer_fingerprint(renamed) != original


def test_loading_errors_name_flag_and_folder(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    file = tmp_path / "file"
    file.write_text("x")
    for path, reason in ((tmp_path / "absent", "no such"), (empty, "no tokenizer here"), (file, "is a file")):
        with pytest.raises(UserError, match=f"--tokenizer_dir {path}: {reason}"):
            load_tokenizer(path, "--tokenizer_dir")
    (empty / "tokenizer.json").write_text('{"truncat')
    (empty / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(UserError, match="cannot be read"):
        load_tokenizer(empty, "--tokenizer_dir")
