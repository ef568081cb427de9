"""Prepared rows on the terminal."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from colossal_llama.commands.inspect_dataset import main, use_color
from colossal_llama.commands.prepare_pretrain_dataset import main as prepare
from colossal_llama.data.dataset import PackedDataset
from colossal_llama.data.inspection import PackedRow, Segment, decode_row, open_prepared
from colossal_llama.errors import UserError
from colossal_llama.html_page import printable
from tests.helpers.assets import sanguo_text
from tests.helpers.tiny import save_rows, save_tiny_tokenizer


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``texts/`` prepared with ``tokenizer/`` into ``out/arrow``: sources, two categories, an escape character."""
    root = tmp_path_factory.mktemp("inspect")
    (root / "tokenizer").mkdir()
    save_tiny_tokenizer(root / "tokenizer")
    text = sanguo_text()
    records = [
        {
            "source": "" if n % 2 else f"问{n}：",
            "target": f"{text[n * 60 : n * 60 + 10 + n % 30]}\n\x1b[31m red\x1b",
            "category": f"c{n % 2}",
        }
        for n in range(60)
    ]
    (root / "texts").mkdir()
    lines = (json.dumps(record, ensure_ascii=False) for record in records)
    (root / "texts/a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    command = ["--data_input_dirs", str(root / "texts"), "--tokenizer_dir", str(root / "tokenizer")]
    command += ["--data_output_dirs", str(root / "out"), "--num_workers", "1", "--max_length", "256"]
    assert prepare([*command, "--num_spliced_dataset_bins", "2"]) == 0
    return root


def shown(prepared: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    capsys.readouterr()
    code = main([str(prepared / "out/arrow"), "--tokenizer_dir", str(prepared / "tokenizer"), *more])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def test_every_document_of_every_row_is_shown(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = len(PackedDataset([prepared / "out/arrow"]))
    out = shown(prepared, capsys, "--row", *map(str, range(rows)))
    assert f"rows: {rows}\n" in out
    assert out.count("===== row ") == rows
    for line in (prepared / "texts/a.jsonl").read_text(encoding="utf-8").split("\n"):
        record = json.loads(line)
        # The first token is never learned: here it is <s>, and the source that follows it.
        document = f"⟦<s>{record['source']}⟧{record['target']}</s>\n".replace("\x1b", "␛")
        assert f"category '{record['category']}'" in out
        assert document in out
    assert "\x1b" not in out


def test_colours(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = shown(prepared, capsys, "--color", "never")
    assert shown(prepared, capsys) == plain  # not a terminal
    colored = shown(prepared, capsys, "--color", "always")
    assert re.search("\x1b\\[90m<s>[^\x1b]*\x1b\\[0m\x1b\\[32m[^\x1b]+\x1b\\[0m", colored)
    for line in colored.split("\n"):
        assert line.count("\x1b[0m") * 2 == line.count("\x1b")
    without = re.sub("\x1b\\[[0-9;]*m", "", colored)
    assert without.replace(", not learned", ", ⟦not learned⟧") == re.sub("⟦(?!not learned)([^⟧]*)⟧", r"\1", plain)


def test_auto_means_a_terminal_without_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert use_color("auto")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not use_color("auto")
    assert use_color("always")
    assert not use_color("never")


def test_without_a_tokenizer_rows_show_as_ids(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = PackedDataset([prepared / "out/arrow"])[1]
    assert main([str(prepared / "out/arrow"), "--row", "1"]) == 0
    out = capsys.readouterr().out.split("===== row 1")[1].split("\n", 1)[1].split("\n\n")[0]
    lines = [line for line in out.split("\n") if not line.startswith("-----")]
    numbers = [int(text) for text in re.findall(r"\d+", " ".join(lines))]
    assert numbers == row["input_ids"].tolist()


def test_a_part_and_a_dataset_of_another_program(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = prepared / "out/arrow/part-00001"
    assert main(["--dataset", str(part)]) == 0
    assert "kind: pretrain" in capsys.readouterr().out
    save_rows(tmp_path, 3)
    assert main([str(tmp_path / "part-00000"), "--row", "0", "2"]) == 0
    out = capsys.readouterr().out
    assert "no manifest.json" in out
    assert out.count("----- document 1 of 1: no category") == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--row", "100000"], "--row 100000: the dataset has "),
        (["--row", "-1"], "--row -1: must be at least 0"),
        (["--tokenizer_dir", "gone"], "--tokenizer_dir gone: no such folder"),
    ],
)
def test_wrong_flags(prepared: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str) -> None:
    assert main([str(prepared / "out/arrow"), *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gone"]) == 2
    assert "--dataset gone: no such folder" in capsys.readouterr().err


def test_another_tokenizer_is_refused(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny_tokenizer(tmp_path, 600)
    assert main([str(prepared / "out/arrow"), "--tokenizer_dir", str(tmp_path)]) == 2
    assert "prepared with another tokenizer" in capsys.readouterr().err


def test_broken_manifest_is_named(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match=r"manifest\.json: expected a JSON object"):
        open_prepared(tmp_path, "--dataset")


def packed(ids: list[int], learned: list[bool]) -> PackedRow:
    labels = [one if keep else -100 for one, keep in zip(ids, learned, strict=True)]
    return PackedRow(np.array(ids, dtype=np.int32), np.array(labels, dtype=np.int32), [len(ids)], [""])


@pytest.mark.parametrize("folder", ["sentencepiece_dir", "smollm2_tokenizer_dir"])
def test_characters_split_over_tokens_stay_whole(folder: str, request: pytest.FixtureRequest) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(request.getfixturevalue(folder)))
    text = "Say 龘𠮷 or é now"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) > len(text) * 0.6
    for border in range(1, len(ids)):
        row = packed(ids, [index >= border for index in range(len(ids))])
        (document,) = decode_row(row, tokenizer)
        assert "".join(segment.text for segment in document.segments) == text
        assert [segment.learned for segment in document.segments] in ([False, True], [True])
        assert document.learned_tokens == len(ids) - border


def test_segments_without_a_tokenizer() -> None:
    (document,) = decode_row(packed([5, 6, 7, 8], [False, True, True, False]), None)
    assert document.segments == [Segment("5", False), Segment("6 7", True), Segment("8", False)]


def test_rows_are_numbered_over_all_parts(prepared: Path) -> None:
    folder, dataset = open_prepared(prepared / "out/arrow", "--dataset"), PackedDataset([prepared / "out/arrow"])
    assert len(folder) == len(dataset)
    for number in range(len(dataset)):
        row = folder.row(number)
        assert row.input_ids.tolist() == dataset[number]["input_ids"].tolist()
        assert row.labels.tolist() == dataset[number]["labels"].tolist()
        assert sum(row.seq_lengths) == len(row.input_ids)
    for number in (-1, len(dataset)):
        with pytest.raises(IndexError):
            folder.row(number)


def test_control_characters_are_shown_as_pictures() -> None:
    assert printable("a\x00\x1b[2J\x7f\x9b\t\n") == "a␀␛[2J␡\ufffd\t\n"
