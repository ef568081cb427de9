"""Unreachable pieces: found, explained, and repaired, dropped, kept or refused."""

import json
from pathlib import Path

import pytest

from colossal_llama.config.vocabulary import UNREACHABLE_MODES
from colossal_llama.errors import UserError
from colossal_llama.tokenizer.expansion import expand_tokenizer
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.tokenizer.reachability import MODES, Unreachable, settle

# 山水人中 has no halves in Mistral's vocabulary; 饕餮's characters are not in it; the others are reachable.
PIECES = ["大人", "山水人中", "饕餮", "中国"]


def test_modes_are_those_of_the_flag() -> None:
    assert MODES == UNREACHABLE_MODES


def test_dropping_goes_on_until_nothing_depends_on_what_was_dropped() -> None:
    lacks = {"abc": "ab", "ab": "a"}

    def find(pieces: list[str]) -> list[Unreachable]:
        return [
            Unreachable(piece, (), (lacks[piece],)) for piece in pieces if lacks.get(piece, "x") not in [*pieces, "x"]
        ]

    kept, found = settle(["abc", "ab", "x"], find, "drop")
    assert kept == ["x"]
    assert [entry.piece for entry in found] == ["ab", "abc"]
    with pytest.raises(UserError, match="leaves no piece"):
        settle(["abc", "ab"], find, "drop")


def test_sentencepiece_pieces_are_explained_and_repaired(sentencepiece_dir: Path, tmp_path: Path) -> None:
    report = expand_tokenizer(sentencepiece_dir, PIECES, tmp_path / "target")
    long, rare = report.found_unreachable
    assert long.describe() == "山水人中: stays 山|水|人|中; lacks 山水 山水人"
    assert rare == Unreachable("饕餮", ("饕", "餮"), ("饕", "餮"))
    assert report.intermediates == ["饕", "餮", "山水", "山水人"]
    assert report.unreachable == []
    assert "unreachable pieces: 2 found, repaired; 0 left\n  山水人中: stays" in report.describe()


def test_drop_leaves_out_exactly_the_unreachable(sentencepiece_dir: Path, tmp_path: Path) -> None:
    report = expand_tokenizer(sentencepiece_dir, PIECES, tmp_path / "target", unreachable="drop")
    assert report.pieces == ["大人", "中国"]
    assert report.intermediates == report.unreachable == []
    assert len(load_tokenizer(tmp_path / "target", "--t")) == 32002


def test_keep_adds_them_and_says_that_they_stay_unreachable(sentencepiece_dir: Path, tmp_path: Path) -> None:
    report = expand_tokenizer(sentencepiece_dir, ["大人", "山水人中"], tmp_path / "target", unreachable="keep")
    assert report.intermediates == []
    assert report.unreachable == ["山水人中"]
    assert "1 found, kept; 1 left" in report.describe()
    # The slow tokenizer would join characters that are no pieces, the fast one cannot.
    with pytest.raises(UserError, match=r"would differ in \d of 4 texts.* use --unreachable repair"):
        expand_tokenizer(sentencepiece_dir, ["饕餮", "大人", "中国"], tmp_path / "other", unreachable="keep")
    assert not (tmp_path / "other").exists()


def test_error_names_the_piece_and_leaves_nothing(sentencepiece_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="2 of 4 pieces could never be produced, such as 山水人中: stays 山"):
        expand_tokenizer(sentencepiece_dir, PIECES, tmp_path / "target", unreachable="error")
    assert list(tmp_path.iterdir()) == []
    report = expand_tokenizer(sentencepiece_dir, ["大人", "中国"], tmp_path / "target", unreachable="error")
    assert report.found_unreachable == []


def test_bytelevel_modes(smollm2_tokenizer_dir: Path, tmp_path: Path) -> None:
    pieces = ["饕餮", "大人", "中大人", "的"]
    repaired = expand_tokenizer(smollm2_tokenizer_dir, pieces, tmp_path / "repair")
    assert [entry.piece for entry in repaired.found_unreachable] == ["饕餮"]
    assert (
        repaired.found_unreachable[0]
        .describe()
        .startswith("饕餮: stays <E9>|<A5>|<95>|<E9>|<A4>|<AE>; lacks <E9 A5> 饕")
    )
    assert repaired.unreachable == []
    dropped = expand_tokenizer(smollm2_tokenizer_dir, pieces, tmp_path / "drop", unreachable="drop")
    assert dropped.pieces == ["大人", "中大人"]
    assert dropped.intermediates == dropped.unreachable == []
    kept = expand_tokenizer(smollm2_tokenizer_dir, pieces, tmp_path / "keep", unreachable="keep")
    assert kept.unreachable == ["饕餮"]
    assert kept.pieces == pieces[:3]
    with pytest.raises(UserError, match="1 of 3 pieces"):
        expand_tokenizer(smollm2_tokenizer_dir, pieces, tmp_path / "error", unreachable="error")


def test_report_file_lists_everything(smollm2_tokenizer_dir: Path, tmp_path: Path) -> None:
    pieces = ["饕餮", "中国", "中国", "the", "a b", "\ud800"]
    report = expand_tokenizer(smollm2_tokenizer_dir, pieces, tmp_path / "target", check_texts={"a.txt": ["中国 the"]})
    content = json.loads((tmp_path / "target" / "expansion.json").read_text(encoding="utf-8"))
    assert content["family"] == "byte-level"
    assert content["new_size"] == content["old_size"] + content["pieces_added"] + len(content["intermediates"])
    assert "<E9 A5>" in content["intermediates"]
    assert [entry["piece"] for entry in content["skipped_pieces"]] == ["中国", "the", "a b", "\ud800"]
    assert sum(content["skipped"].values()) == 4 == sum(report.skipped.values())
    assert content["unreachable_before"][0]["piece"] == "饕餮"
    assert content["unreachable_after"] == []
    assert content["texts"][1]["name"] == "a.txt"
    assert content["versions"]["transformers"]
    assert content["old_fingerprint"] != content["new_fingerprint"]
