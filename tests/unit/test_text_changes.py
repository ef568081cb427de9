"""The comparison of two tokenizers finds what an expansion must not do, shown on expansions that do it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from colossal_llama.errors import UserError
from colossal_llama.tokenizer import sentencepiece_bpe
from colossal_llama.tokenizer.expansion import expand_tokenizer
from colossal_llama.tokenizer.loading import load_slow_tokenizer, load_tokenizer
from colossal_llama.tokenizer.text_changes import TextComparer, TextComparison, piece_lines
from tests.helpers import assets
from tests.helpers.sentencepiece_models import train_model, write_dir


def test_counts_of_a_sound_expansion(sentencepiece_dir: Path, tmp_path: Path) -> None:
    texts = ["Hello, world", "曹操大喜", "", "次日，曹操与孔明说"]
    report = expand_tokenizer(sentencepiece_dir, ["曹操", "孔明"], tmp_path / "target", check_texts={"a": texts})
    old, new = (load_tokenizer(folder, "--t") for folder in (sentencepiece_dir, tmp_path / "target"))
    expected = TextComparison(
        name="a",
        documents=4,
        characters=sum(map(len, texts)),
        old_tokens=sum(len(old.encode(text, add_special_tokens=False)) for text in texts),
        new_tokens=sum(len(new.encode(text, add_special_tokens=False)) for text in texts),
        changed=2,
    )
    assert report.comparisons[1] == expected


def test_upstream_s_equal_scores_are_refused(
    sentencepiece_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With zero for every new score the slow tokenizer joins the leftmost tie, the fast one the first in its list."""
    monkeypatch.setattr(sentencepiece_bpe, "new_scores", lambda proto, count: [0.0] * count)
    with pytest.raises(UserError, match=r"would differ in \d+ of \d+ texts where those of"):
        expand_tokenizer(
            sentencepiece_dir, ["十九", "三十"], tmp_path / "target", check_texts={"novel": ["得三十九人"]}
        )
    assert list(tmp_path.iterdir()) == []


def edited(folder: Path, edit: Callable[[dict[str, Any]], None]) -> PreTrainedTokenizerBase:
    """The tokenizer of ``folder`` with the model of its tokenizer.json edited."""
    tokenizer = load_tokenizer(folder, "--t")
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    edit(content["model"])
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(content))
    return tokenizer


def test_new_merges_above_old_ones_are_counted(sentencepiece_dir: Path) -> None:
    def put_first(model: dict[str, Any]) -> None:
        model["vocab"]["wk"] = len(model["vocab"])
        model["merges"].insert(0, ["w", "k"])

    old, new = load_tokenizer(sentencepiece_dir, "--t"), edited(sentencepiece_dir, put_first)
    counts = TextComparer(old, new).compare("english", ["so awkward", "nothing here"])
    assert old.tokenize("so awkward") == ["▁so", "▁awkward"]
    assert new.tokenize("so awkward") == ["▁so", "▁a", "wk", "ward"]
    assert (counts.changed, counts.changed_without_new, counts.cut, counts.moved) == (1, 0, 2, 2)
    assert counts.examples == {"cut_or_moved": "so awkward"}


def test_a_changed_document_without_new_tokens_is_counted(sentencepiece_dir: Path) -> None:
    def forget(model: dict[str, Any]) -> None:
        model["merges"] = [pair for pair in model["merges"] if "".join(pair) != "▁often"]

    comparer = TextComparer(load_tokenizer(sentencepiece_dir, "--t"), edited(sentencepiece_dir, forget))
    counts = comparer.compare("x", ["He often said", "He said"])
    assert (counts.documents, counts.changed, counts.changed_without_new) == (2, 1, 1)
    assert " instead of " in counts.examples["changed_without_new"]


def test_intermediates_in_text_without_a_piece_are_counted_apart(smollm2_tokenizer_dir: Path, tmp_path: Path) -> None:
    # 饖 shares its first two bytes, E9 A5, with 饕; the intermediate of the latter joins them.
    texts = {"a": ["饖", "饕", "x"]}
    report = expand_tokenizer(smollm2_tokenizer_dir, ["饕"], tmp_path / "target", check_texts=texts)
    counts = report.comparisons[1]
    assert (counts.changed, counts.changed_by_intermediates, counts.changed_without_new) == (2, 1, 0)
    assert (counts.cut, counts.moved) == (0, 0)
    assert not report.slow_checked
    assert "no slow tokenizer" in report.describe()


def test_differences_of_the_source_itself_are_counted_and_not_refused(tmp_path: Path) -> None:
    """The fast Llama tokenizer does not normalize, so with an NFKC model slow and fast differ from the start."""
    model = train_model("bpe", normalization_rule_name="nfkc", remove_extra_whitespaces=True)
    source = write_dir(tmp_path / "source", model)
    texts = ["ＡＢＣ", "two  spaces", "孔明曰之"]
    report = expand_tokenizer(source, ["孔明曰之", "ＡＢ"], tmp_path / "target", check_texts={"a": texts})
    counts = report.comparisons[1]
    assert (counts.slow_differs, counts.slow_differed_before, counts.slow_unexplained) == (2, 2, 0)
    assert report.pieces == ["孔明曰之"]
    assert "2 already with the source tokenizer" in report.describe()


def test_ties_of_a_unigram_model_are_told_from_differences(sentencepiece_dir: Path) -> None:
    tokenizer = load_tokenizer(sentencepiece_dir, "--t")
    comparer = TextComparer(tokenizer, tokenizer, None, load_slow_tokenizer(sentencepiece_dir), scores=[-1.0] * 32000)
    result = TextComparison("x")
    comparer._count_slow(result, "", slow=[5, 6, 7], fast=[7, 6, 5], old_fast=[])
    assert (result.slow_differs, result.slow_ties, result.slow_unexplained) == (1, 1, 0)
    comparer._count_slow(result, "", slow=[5, 6, 7], fast=[7, 6], old_fast=[])
    assert (result.slow_differs, result.slow_ties, result.slow_unexplained) == (2, 1, 1)
    assert "slow_differs" in result.examples


def test_lines_of_pieces_hold_every_piece_and_start_with_no_space() -> None:
    pieces = [f"p{number}" if number % 3 else f"▁p{number}" for number in range(5000)]
    lines = list(piece_lines(pieces))
    joined, single = lines[: -(-5000 // 16)], lines[-(-5000 // 16) :]
    assert "".join(line.removeprefix("x") for line in joined).replace(" ", "▁") == "".join(pieces)
    assert {line.removeprefix("x").replace(" ", "▁") for line in single} <= set(pieces)
    assert 1000 < len(single) <= 2000
    assert not any(line.startswith(" ") for line in lines)


def test_baichuan_like_model_without_dummy_prefix(tmp_path: Path) -> None:
    model = train_model("bpe", add_dummy_prefix=False, user_defined_symbols=["<reserved_1>", "0", "1"])
    source = write_dir(tmp_path / "source", model, add_prefix_space=False)
    pieces = ["孔明曰之", "饕餮", "▁却说", "曰0"]
    texts = {"a": [*assets.sanguo_text().splitlines()[:50], "a <reserved_1>b 10 饕餮", " x  y"]}
    report = expand_tokenizer(source, pieces, tmp_path / "target", check_texts=texts)
    assert report.pieces == pieces[:3]  # text is split at 0, a user-defined symbol
    assert report.comparisons[1].slow_unexplained == 0
    old, new = load_tokenizer(source, "--t"), load_tokenizer(tmp_path / "target", "--t")
    assert old.tokenize("Hello<reserved_1>") == new.tokenize("Hello<reserved_1>")
    assert new.tokenize("饕餮")[0] == "饕餮"
