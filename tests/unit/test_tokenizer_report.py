"""The tokenizer report: every figure against a count made another way, and what the files look like."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from colossal_llama.commands import tokenizer_report
from colossal_llama.tokenizer.comparison import (
    Comparison,
    TokenizerMeter,
    embedding_cost,
    measure_texts,
    read_model_shape,
)
from colossal_llama.tokenizer.comparison_report import to_html, to_markdown, to_terminal
from colossal_llama.tokenizer.expansion import expand_tokenizer
from colossal_llama.tokenizer.loading import load_tokenizer

TEXTS = [("poem", "床前明月光，疑是地上霜。\n举头望明月"), ("prose", "An old <s> habit, 中国"), ("poem", "明月 " * 3)]


def save_word_tokenizer(folder: Path) -> Path:
    """One that folds case and knows two words: it cannot give text back, and has unknown tokens."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import WordLevel

    backend = Tokenizer(WordLevel({"[UNK]": 0, "an": 1, "old": 2}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]").save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def meters(sentencepiece_dir: Path, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("report")
    expand_tokenizer(sentencepiece_dir, ["明月", "疑是", "罕见"], folder / "wider")
    folders = {"old": sentencepiece_dir, "wider": folder / "wider", "bytes": tokenizer_dir}
    folders["words"] = save_word_tokenizer(folder / "words")
    meters = {name: TokenizerMeter(name, load_tokenizer(path, "--t"), "--t") for name, path in folders.items()}
    measure_texts(list(meters.values()), TEXTS)
    return meters


def test_sizes_are_those_of_the_texts(meters: dict) -> None:
    for meter in meters.values():
        total, poem = meter.total, meter.categories["poem"]
        assert total.samples == 3
        assert total.characters == sum(len(text) for _, text in TEXTS)
        assert total.bytes == sum(len(text.encode()) for _, text in TEXTS)
        assert (poem.samples, poem.characters) == (2, len(TEXTS[0][1]) + len(TEXTS[2][1]))


def test_tokens_are_the_tokenizers_own(meters: dict) -> None:
    for name in ("old", "wider", "bytes"):
        meter = meters[name]
        ids = meter.tokenizer([TEXTS[0][1], TEXTS[2][1]], add_special_tokens=False).input_ids
        assert meter.categories["poem"].tokens == sum(map(len, ids))
        assert set(meter.categories["poem"].used.nonzero()[0].tolist()) == {number for row in ids for number in row}
    assert meters["wider"].total.tokens < meters["old"].total.tokens


def test_special_tokens_inside_of_text_are_text(meters: dict) -> None:
    old = meters["old"]
    assert not old.total.used[old.tokenizer.bos_token_id]
    assert old.total.failures == 0


def test_byte_fallback_counts_parts_of_characters(meters: dict) -> None:
    old = meters["old"]
    pieces = [token for _, text in TEXTS for token in old.tokenizer.tokenize(text)]
    high = [piece for piece in pieces if piece.startswith("<0x") and int(piece[3:5], 16) >= 0x80]
    assert high
    assert "<0x0A>" in pieces  # a whole character, though written as a byte
    assert old.total.byte_tokens == len(high)
    # Trained on English alone: each byte of a Chinese character is a token.
    foreign = sum(len(letter.encode()) for _, text in TEXTS for letter in text if not letter.isascii())
    assert meters["bytes"].total.byte_tokens == foreign


def test_unknown_words_and_failed_round_trips_are_found(meters: dict) -> None:
    words = meters["words"]
    assert words.categories["prose"].unknown == words.categories["prose"].tokens - 2
    assert words.total.failures == 3
    (prose,) = [example for example in words.examples if example.category == "prose"]
    assert prose.original.startswith("An old")
    assert prose.decoded.startswith("an old")
    assert all(meters[name].total.failures == meters[name].total.unknown == 0 for name in ("old", "wider", "bytes"))


def test_only_a_wider_vocabulary_widens(meters: dict) -> None:
    assert meters["wider"].widens(meters["old"])
    assert not meters["old"].widens(meters["wider"])
    assert not meters["old"].widens(meters["old"])
    assert not meters["old"].widens(meters["bytes"])


def test_embedding_cost() -> None:
    cost = embedding_cost(36_115, 4096, tied=False, tokens_per_parameter=20)
    assert (cost.rows, cost.parameters, cost.training_tokens) == (36_115, 295_854_080, 5_917_081_600)
    assert embedding_cost(10, 64, tied=True, tokens_per_parameter=2).training_tokens == 1280
    assert embedding_cost(-10, 64, tied=True, tokens_per_parameter=2).training_tokens == 0


def test_model_shape(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 576, "tie_word_embeddings": true}')
    assert read_model_shape(tmp_path, "--model") == (576, True)


def test_batches_do_not_change_the_figures(meters: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("colossal_llama.tokenizer.comparison.BATCH_CHARACTERS", 5)
    again = TokenizerMeter("old", meters["old"].tokenizer, "--t")
    measure_texts([again], TEXTS)
    assert again.total.tokens == meters["old"].total.tokens
    assert again.categories.keys() == meters["old"].categories.keys()


def comparison(meters: dict, **settings: object) -> Comparison:
    return Comparison(list(meters.values()), **settings)  # type: ignore[arg-type]


def test_markdown_has_whole_tables(meters: dict) -> None:
    text = to_markdown(comparison(meters, hidden_size=64, tied=True))
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    for table in tables:
        assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    row = next(line for line in tables[0] if line.startswith("| wider |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    old, wider = meters["old"].total, meters["wider"].total
    assert cells[2:4] == [str(wider.tokens), f"{wider.tokens / wider.characters:.4f}"]
    assert cells[6] == f"{wider.tokens / old.tokens - 1:+.1%}"
    # Added: three pieces and the characters that they are put together from, of which the text has 明月 and 疑是.
    added = meters["wider"].size - 32_000
    occurring = sum(1 for number in wider.used.nonzero()[0] if number >= 32_000)
    assert 2 <= occurring < added
    assert cells[10] == f"{occurring / added:.2%}"
    assert f"| wider | +{added} | +{added * 64}" in text
    assert "rule of thumb" in text
    assert "'an old" in text


def test_html_is_one_well_formed_file_that_fetches_nothing(meters: dict) -> None:
    meters["old"].categories["<b>&"] = meters["old"].categories["poem"]
    page = to_html(Comparison([meters["old"]]))
    del meters["old"].categories["<b>&"]
    open_tags: list[str] = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list) -> None:
            assert not {"src", "href"} & {name for name, _ in attrs}
            if tag not in ("meta",):
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Checker().feed(page)
    assert open_tags == []
    assert "&lt;b&gt;&amp;" in page
    assert "<b>&" not in page
    assert "http" not in page


def test_terminal_columns_stand_below_each_other(meters: dict) -> None:
    first = to_terminal(comparison(meters)).split("\n\n")[0].splitlines()[1:]
    assert len({len(line) for line in first}) == 1


def test_command_writes_both_files_and_refuses_bad_input(
    tokenizer_dir: Path, sentencepiece_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [{"target": text, "category": category} for category, text in TEXTS]
    text, empty = tmp_path / "text.jsonl", tmp_path / "empty.txt"
    text.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    empty.write_text("\n")
    markdown, html = tmp_path / "out" / "r.md", tmp_path / "out" / "r.html"
    base = [str(tokenizer_dir), f"other={sentencepiece_dir}", "--text", str(text)]
    flags = [*base, "--markdown", str(markdown), "--html", str(html), "--hidden_size", "64"]
    assert tokenizer_report.main(flags) == 0
    printed = capsys.readouterr().out
    assert "poem" in printed
    assert "Embedding rows" in printed
    assert "| other |" in markdown.read_text(encoding="utf-8")
    assert html.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    (tmp_path / "config.json").write_text("{}")
    cases = {
        "already exists": flags,
        "no such directory": [*base[:2], "--text", str(tmp_path / "absent")],
        "no text": [*base[:2], "--text", str(empty)],
        "no tokenizer here": [str(tmp_path), *base[2:]],
        "no such folder": [str(tmp_path / "absent"), *base[2:]],
        "given twice": [f"a={tokenizer_dir}", f"a={sentencepiece_dir}", *base[2:]],
        "does not say a hidden_size": [*base, "--model", str(tmp_path)],
        "no config.json here": [*base, "--model", str(tmp_path / "out")],
        "--tied: needs": [*base, "--tied"],
        "missing required --tokenizers": base[2:],
    }
    for message, arguments in cases.items():
        assert tokenizer_report.main(arguments) == 2, message
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert sorted(path.name for path in markdown.parent.iterdir()) == ["r.html", "r.md"]
