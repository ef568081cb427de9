"""The HTML report on a prepared dataset."""

import json
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from colossal_llama.commands.prepare_pretrain_dataset import main as prepare
from colossal_llama.commands.prepare_sft_dataset import main as prepare_sft
from colossal_llama.data.dataset import PackedDataset
from colossal_llama.data.inspection import open_prepared
from colossal_llama.data.part_statistics import part_statistics
from colossal_llama.data.report import write_report
from colossal_llama.errors import UserError
from tests.helpers.assets import sanguo_text
from tests.helpers.corpus import write_jsonl
from tests.helpers.tiny import save_rows

MAX_LENGTH = 200
VOID = {"meta"}


class Page(HTMLParser):
    """Cards, tables, spans and attributes of a report; fails where tags do not nest."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[tuple[str, str]] = []
        self.tables: list[list[list[str]]] = []
        self.spans: list[tuple[str, str]] = []
        self.cards: dict[str, str] = {}
        self.titles: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self._value = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "span":
            self.spans.append((dict(attrs).get("class") or "", ""))
        elif tag == "title":
            self.titles.append("")
        if tag not in VOID:
            self.open.append((tag, dict(attrs).get("class") or ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if not self.open:
            assert not data.strip()
            return
        tag = self.open[-1][0]
        if tag in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif tag == "span" and ("div", "card") in self.open:
            self.cards[data] = self._value
        elif tag == "span":
            kind, text = self.spans[-1]
            self.spans[-1] = (kind, text + data)
        elif tag == "b":
            self._value = data
        elif tag == "title":
            self.titles[-1] += data

    def table(self, head: str) -> list[dict[str, str]]:
        (table,) = [table for table in self.tables if table[0][0] == head]
        return [dict(zip(table[0], row, strict=True)) for row in table[1:]]


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(str(tokenizer_dir))


def flags(inputs: str, tokenizer_dir: Path, out: Path) -> list[str]:
    base = ["--data_input_dirs", inputs, "--tokenizer_dir", str(tokenizer_dir), "--num_workers", "1"]
    return [*base, "--data_arrow_output_dir", str(out), "--max_length", str(MAX_LENGTH)]


@pytest.fixture(scope="module")
def arrow(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    root = tmp_path_factory.mktemp("report")
    text = sanguo_text()
    for name in ("one", "two"):
        records = [
            {
                "source": "" if n % 2 else "<script>alert('&')</script>",
                "target": text[n * 211 : n * 211 + 3 + n * 2],
                "category": "<b>novel</b>" if n % 3 else "",
            }
            for n in range(60)
        ]
        write_jsonl(root / name / "a.jsonl", [*records, {"target": " "}])
    assert prepare([*flags(f"{root / 'one'},{root / 'two'}", tokenizer_dir, root / "arrow")]) == 0
    return root / "arrow"


def figure(text: str) -> int:
    return int(text.replace(",", ""))


def test_figures_are_those_of_the_arrow_data(arrow: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    write_report(arrow, tokenizer, tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    dataset = PackedDataset([arrow])
    rows = [dataset[number] for number in range(len(dataset))]
    tokens = sum(len(row["input_ids"]) for row in rows)
    learned = sum(int((row["labels"] != -100).sum()) for row in rows)
    manifest = json.loads((arrow / "manifest.json").read_text(encoding="utf-8"))
    assert page.cards["rows"] == f"{len(rows):,}"
    assert page.cards["tokens"] == f"{tokens:,}"
    assert page.cards["tokens with loss"] == f"{learned:,}"
    assert page.cards["documents tokenised"] == "120"
    assert page.cards["padding to full rows"] == f"{1 - tokens / len(rows) / MAX_LENGTH:.2%}"
    assert page.cards["tokens per character"] == f"{tokens / manifest['characters']:.3f}"
    buckets = page.table("bucket")
    assert [bucket["bucket"] for bucket in buckets] == [f"part-{number:05d}" for number in range(10)]
    assert [figure(bucket["rows"]) for bucket in buckets] == dataset.bucket_sizes
    assert sum(figure(bucket["tokens"]) for bucket in buckets) == tokens
    assert sum(figure(bucket["tokens with loss"]) for bucket in buckets) == learned
    assert [entry["name"] for entry in page.table("name")] == ["one", "two"]
    assert [entry["dropped"] for entry in page.table("path")] == ["empty target: 1"] * 2
    assert page.table("reason") == [{"reason": "empty target", "number": "2"}]
    categories = page.table("category")
    assert [entry["category"] for entry in categories] == ["<b>novel</b>", "(none)"]
    assert sum(figure(entry["tokens"]) for entry in categories) == tokens
    assert sum(figure(entry["pieces"]) for entry in categories) == figure(page.cards["pieces after cutting"])


def test_histograms_hold_every_piece_row_and_token(
    arrow: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    write_report(arrow, tokenizer, tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    bars = [title.rsplit(": ", 1) for title in page.titles[1:]]
    pieces = sum(figure(value) for label, value in bars if "%" not in label and not label.startswith("part"))
    assert pieces == figure(page.cards["pieces after cutting"])
    assert sum(figure(value) for label, value in bars if "%" in label) == figure(page.cards["rows"])
    assert sum(figure(value) for label, value in bars if label.startswith("part")) == figure(page.cards["tokens"])


@pytest.mark.parametrize("batch_rows", [3, 4096])
def test_statistics_agree_with_plain_counting(arrow: Path, monkeypatch: pytest.MonkeyPatch, batch_rows: int) -> None:
    monkeypatch.setattr("colossal_llama.data.part_statistics._BATCH_ROWS", batch_rows)
    folder = open_prepared(arrow, "--dataset")
    for part in folder.parts:
        rows = [part.row(number) for number in range(part.table.num_rows)]
        statistics = part_statistics(part)
        assert statistics.learned_tokens == sum(int((row.labels != -100).sum()) for row in rows)
        assert statistics.row_lengths == Counter(len(row.input_ids) for row in rows)
        assert statistics.piece_lengths == Counter(length for row in rows for length in row.seq_lengths)
        assert statistics.category_pieces == Counter(name for row in rows for name in row.categories)
        expected: Counter[str] = Counter()
        for row in rows:
            for name, length in zip(row.categories, row.seq_lengths, strict=True):
                expected[name] += length
        assert statistics.category_tokens == expected


def test_rows_show_what_is_learned(arrow: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    write_report(arrow, tokenizer, tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    given = [text for kind, text in page.spans if kind == "given"]
    assert "<s><script>alert('&')</script>" in given
    learned = [text for kind, text in page.spans if kind == "learned"]
    content = sanguo_text()
    assert sum(text.removesuffix("</s>") in content for text in learned) > 3
    assert any(kind == "mark" and "<b>novel</b>" in text for kind, text in page.spans)


def test_nothing_is_loaded_or_run(arrow: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    write_report(arrow, tokenizer, tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    names = {name for _, name, _ in page.attributes}
    assert not names & {"src", "href", "srcset", "data", "action", "xlink:href"}
    assert not any(name.startswith("on") for name in names)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    for forbidden in ("<script", "<link", "<img", "<iframe", "@import", "url(", "http"):
        assert forbidden not in source


def test_same_input_gives_same_bytes(arrow: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    shutil.copytree(arrow, tmp_path / "elsewhere")
    write_report(arrow, tokenizer, tmp_path / "1.html")
    write_report(tmp_path / "elsewhere", tokenizer, tmp_path / "2.html")
    assert (tmp_path / "1.html").read_bytes() == (tmp_path / "2.html").read_bytes()


def test_manifests_with_more_and_with_less(arrow: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    shutil.copytree(arrow, tmp_path / "more")
    path = tmp_path / "more/manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest |= {
        "bytes": 2 * manifest["tokens"],
        "split_documents": 17,
        "rejects": {"too few characters": 1234},
        "settings": {"min_characters": 10, "off": None},
        "versions": {"tokenizers": "0.21.1"},
        "format_version": 99,
    }
    for entry in manifest["sub_datasets"]:
        entry |= {"characters": entry["tokens"] * 2, "bytes": entry["tokens"] * 3, "split_documents": 5}
    for entry in manifest["parts"]:
        entry |= {"documents": 12, "characters": entry["tokens"] * 4}
    path.write_text(json.dumps(manifest), encoding="utf-8")
    write_report(path.parent, tokenizer, tmp_path / "more.html")
    more = Page(tmp_path / "more.html")
    assert more.cards["bytes per token"] == "2.000"
    assert more.cards["documents cut"] == str(sum(part["cut_documents"] for part in manifest["parts"]))
    assert {"reason": "too few characters", "number": "1,234"} in more.table("reason")
    assert {"field": "settings: min characters", "value": "10"} in more.table("field")
    assert {"field": "versions: tokenizers", "value": "0.21.1"} in more.table("field")
    assert {entry["tokens per character"] for entry in more.table("name")} == {"0.500"}
    assert {entry["bytes per token"] for entry in more.table("name")} == {"3.000"}
    assert {entry["tokens per character"] for entry in more.table("bucket")} == {"0.250"}
    assert {entry["documents"] for entry in more.table("bucket")} == {"12"}
    for content in ("{}", None):
        path.write_text(content, encoding="utf-8") if content else path.unlink()
        write_report(path.parent, tokenizer, tmp_path / "less.html")
        less = Page(tmp_path / "less.html")
        assert less.cards["tokens"] == more.cards["tokens"]
        assert len(less.table("bucket")) == 10
        assert "documents tokenised" not in less.cards


def test_conversations(tokenizer: PreTrainedTokenizerBase, tokenizer_dir: Path, tmp_path: Path) -> None:
    chat = [{"from": "human", "content": "你好"}, {"from": "assistant", "content": "您好，有什么事？"}]
    long = [{"from": "human", "content": "长" * 200}, {"from": "assistant", "content": "x"}]
    write_jsonl(tmp_path / "in/a.jsonl", [{"messages": chat}, {"messages": [*long, *chat]}])
    assert prepare_sft([*flags(str(tmp_path / "in"), tokenizer_dir, tmp_path / "arrow"), "--llama_version", "2"]) == 0
    write_report(tmp_path / "arrow", tokenizer, tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert ("learned", "您好，有什么事？</s>") in page.spans
    assert {"reason": "turns longer than a row", "number": "1"} in page.table("reason")
    # Most of the ten parts are empty.
    assert sorted(figure(bucket["rows"]) for bucket in page.table("bucket"))[:8] == [0] * 8


def test_rows_of_another_program_and_no_tokenizer(tmp_path: Path) -> None:
    part = save_rows(tmp_path / "data", 9)
    write_report(part, None, tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert page.cards["rows"] == "9"
    first = PackedDataset([part])[0]["input_ids"].tolist()
    assert ("learned", " ".join(map(str, first))) in page.spans


def test_a_wrong_folder_leaves_the_old_report(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("old", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="not a prepared dataset"):
        write_report(tmp_path / "empty", None, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "old"
