"""From records to rows: what is learned of turns with flags, and that the report names what was not read."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from colossal_llama.commands.prepare_pretrain_dataset import main as pretrain_main
from colossal_llama.commands.prepare_sft_dataset import main as sft_main
from tests.helpers.corpus import write_jsonl


def arguments(inputs: Path, tokenizer_dir: Path, out: Path, *more: str) -> list[str]:
    base = ["--data_input_dirs", str(inputs), "--tokenizer_dir", str(tokenizer_dir), "--data_output_dirs", str(out)]
    return [*base, "--num_workers", "1", "--num_spliced_dataset_bins", "1", *more]


def manifest_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "arrow/manifest.json").read_text(encoding="utf-8"))


def learned_texts(out: Path, tokenizer_dir: Path) -> Iterator[str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_dir))
    for path in sorted((out / "jsonl").iterdir()):
        for line in path.read_text(encoding="utf-8").splitlines():
            yield tokenizer.decode([label for label in json.loads(line)["labels"] if label != -100])


def chat(*answers: tuple[str, int], **more: Any) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    for text, weight in answers:
        messages += [{"role": "user", "content": "问"}, {"role": "assistant", "content": text, "weight": weight}]
    return {"messages": messages, **more}


def test_turns_without_weight_give_no_loss(
    tmp_path: Path, tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [chat(("bad", 0), ("good", 1), url="x", title=None), chat(("worse", 0)), chat(("fine", 1), url="y")]
    write_jsonl(tmp_path / "in/a.jsonl", records)
    out = tmp_path / "out"
    assert sft_main(arguments(tmp_path / "in", tokenizer_dir, out)) == 0
    printed = capsys.readouterr().out
    assert "records read 3, kept 2, dropped: 1 no answer is to be learned" in printed
    assert "fields not read, in so many records: url 2\n" in printed
    [learned] = learned_texts(out, tokenizer_dir)
    assert sorted(learned.replace(" ", "").split("</s>")) == ["", "fine", "good"]
    manifest = manifest_of(out)
    assert manifest["fields_not_read"] == {"url": 2}
    assert manifest["inputs"][0]["fields_not_read"] == {"url": 2}
    report = (out / "arrow/report.html").read_text(encoding="utf-8")
    assert "<h2>Not read</h2>" in report
    assert "<td>url</td>" in report or ">url<" in report


def test_pieces_without_loss_are_no_rows(
    tmp_path: Path, tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "山 " * 20
    records = [chat((long, 0), (long, 1), (long, 0), (long, 0)), chat((long, 0), ("short", 0), (long * 9, 1))]
    write_jsonl(tmp_path / "in/a.jsonl", records)
    out = tmp_path / "out"
    assert (
        sft_main(arguments(tmp_path / "in", tokenizer_dir, out, "--max_length", "160", "--chat_template", "open_llama"))
        == 0
    )
    printed = capsys.readouterr().out
    manifest = manifest_of(out)
    assert "kept 1, dropped: 1 no turn with loss fits a row" in printed
    assert manifest["turns_without_loss"] >= 3
    assert f"pieces without loss: {manifest['turns_without_loss']}" in printed
    assert manifest["dropped_turns"] == 1
    assert all(text for text in learned_texts(out, tokenizer_dir))


def test_refused_fields_stop_are_skipped_or_are_left_out(
    tmp_path: Path, tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "in/a.jsonl", [chat(("a", 1)), chat(("b", 1), tools=[{"name": "search"}])])
    flags = arguments(tmp_path / "in", tokenizer_dir, tmp_path / "out")
    assert sft_main(flags) == 2
    assert f"error: {tmp_path}/in/a.jsonl:2: 'tools': no chat template here" in capsys.readouterr().err
    assert sft_main([*flags, "--on_bad_record", "skip"]) == 0
    assert "kept 1, dropped: 1 field that cannot be learned" in capsys.readouterr().out
    assert sft_main([*flags, "--ignore_fields", "images, tools", "--overwrite"]) == 0
    assert "kept 2, dropped: none\nfields not read, in so many records: tools 1\n" in capsys.readouterr().out
    assert sft_main([*flags, "--ignore_fields", "tool", "--overwrite"]) == 2
    assert "--ignore_fields tool: no such field would be refused; expected " in capsys.readouterr().err


def test_fields_of_pretraining_texts_are_counted_over_inputs(
    tmp_path: Path, tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "a/a.jsonl", [{"text": "一", "title": "T", "meta": {"url": "u"}}] * 3)
    write_jsonl(tmp_path / "b/b.jsonl", [{"target": "二", "title": "T", "id": 0}, {"target": " ", "title": "T"}])
    out = tmp_path / "out"
    inputs = Path(f"{tmp_path}/a,{tmp_path}/b")
    assert pretrain_main(arguments(inputs, tokenizer_dir, out)) == 0
    assert "fields not read, in so many records: id 1, meta.url 3, title 5\n" in capsys.readouterr().out
    assert [entry["fields_not_read"] for entry in manifest_of(out)["inputs"]] == [
        {"meta.url": 3, "title": 3},
        {"id": 1, "title": 2},
    ]
