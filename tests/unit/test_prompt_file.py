"""Files of prompts: what is a prompt, and answers that are complete or absent."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from colossal_llama.commands.inference import main
from colossal_llama.json_records import parse_line
from tests.helpers.chat_model import save_chat_model

RECORDS: list[dict[str, Any]] = [
    {"prompt": "Who?", "id": 7},
    {"input_txt": "明月松间照，"},
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which?"}]},
    {
        "messages": [
            {"from": "human", "content": "Why?"},
            {"from": "assistant", "content": "So."},
            {"from": "human", "content": "Really?"},
        ]
    },
    {"prompt": "A much longer question than all of the others, so that these are padded."},
]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("chat") / "model", context=200)


def write_records(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def run(model_dir: Path, *flags: str) -> int:
    return main(["--model_path", str(model_dir), "--do_sample", "false", "--max_new_tokens", "8", *flags])


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_answers_stand_beside_their_prompts_in_order(model_dir: Path, tmp_path: Path) -> None:
    prompts = write_records(tmp_path / "in.jsonl", RECORDS)
    outputs = [tmp_path / "new" / f"{size}.jsonl" for size in (1, 2, 8)]
    for output in outputs:
        flags = ["--input_file", str(prompts), "--output_file", str(output), "--batch_size", output.stem]
        assert run(model_dir, *flags) == 0
    answers = read(outputs[0])
    assert [read(output) for output in outputs[1:]] == [answers, answers]
    for record, answer in zip(RECORDS, answers, strict=True):
        assert {name: answer[name] for name in record} == record
        assert answer["generated_text"]
        assert (answer["generated_tokens"], answer["finish_reason"]) == (8, "length")
    assert len({answer["generated_text"] for answer in answers}) > 1
    assert {path.name for path in outputs[0].parent.iterdir()} == {"1.jsonl", "2.jsonl", "8.jsonl"}


def test_answers_are_json_whatever_stands_beside_the_prompts(model_dir: Path, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    columns = {"prompt": ["Who?", "Which?"], "score": [float("nan"), 1.5], "more": [[float("inf"), 2.0], []]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "in.parquet")
    output = tmp_path / "out.jsonl"
    assert run(model_dir, "--input_file", str(tmp_path / "in.parquet"), "--output_file", str(output)) == 0
    answers = [parse_line(line, "") for line in output.read_bytes().splitlines()]
    assert [answer["score"] for answer in answers] == [None, 1.5]
    assert [answer["more"] for answer in answers] == [[None, 2.0], []]


def test_lines_of_a_text_file_are_prompts(model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "in.txt"
    path.write_bytes("\ufeffWho?\r\n\n明月松间照，\n".encode())
    assert run(model_dir, "--input_file", str(path)) == 0
    printed = capsys.readouterr()
    answers = [json.loads(line) for line in printed.out.splitlines()]
    assert [answer["prompt"] for answer in answers] == ["Who?", "明月松间照，"]
    assert printed.err.endswith("2 of 2 prompts answered\n")
    assert run(model_dir, "--input_txt", "Who?") == 0
    assert capsys.readouterr().out == f"[prompt]\nWho?\n[answer]\n{answers[0]['generated_text']}\n"


BAD = {
    "neither prompt nor messages": ({"text": "x"}, "expected exactly one of the fields prompt, input_txt, messages"),
    "two prompts": ({"prompt": "x", "messages": []}, "found prompt and messages"),
    "no text": ({"prompt": 5}, "'prompt' must be a string, found a number"),
    "no question": (
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        "the last message must be the user's",
    ),
    "no turns": ({"messages": [{"role": "user", "content": "a"}] * 2}, "must alternate"),
    "too long": ({"prompt": "word " * 300}, "more than the model's context of 200 tokens"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_named_before_anything_is_written(
    name: str, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record, message = BAD[name]
    path = write_records(tmp_path / "in.jsonl", [RECORDS[0], record])
    assert run(model_dir, "--input_file", str(path), "--output_file", str(tmp_path / "out.jsonl")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {path}:2: ")
    assert message in error
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.jsonl"]


def test_files_that_will_not_do(model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write_records(tmp_path / "in.jsonl", RECORDS[2:3])
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "latin.txt").write_bytes(b"\xe4")
    cases = (
        (["--input_file", str(tmp_path / "gone.jsonl")], "--input_file .*gone.jsonl: no such file"),
        (["--input_file", str(tmp_path / "empty.txt")], "no prompt in it"),
        (["--input_file", str(tmp_path / "latin.txt")], "latin.txt: not UTF-8"),
        (["--input_file", str(good), "--output_file", str(good)], "already exists"),
        (["--input_file", str(good), "--prompt_style", "pretrained"], "in.jsonl:1: a conversation needs"),
        (["--output_file", str(tmp_path / "out.jsonl")], "give that too"),
        (["--input_file", str(good), "--batch_size", "0"], "--batch_size must be at least 1"),
        (["--input_txt", "caf\udce9"], "--input_txt: not UTF-8"),
        (["--seed", str(1 << 64)], "--seed must be an integer of 64 bits"),
        (["--num_beams", "0"], "--num_beams must be at least 1"),
    )
    before = {entry: entry.read_bytes() for entry in tmp_path.iterdir()}
    for flags, message in cases:
        assert run(model_dir, *flags) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert re.search(message, error), error
    assert {entry: entry.read_bytes() for entry in tmp_path.iterdir()} == before
    blocked = tmp_path / "empty.txt" / "out.jsonl"
    assert run(model_dir, "--input_file", str(good), "--output_file", str(blocked)) == 2
    refused = f"error: --output_file: the folder {blocked.parent}: is a file; give another folder\n"
    assert capsys.readouterr().err == refused  # and no prompt was answered in vain
    assert run(model_dir, "--input_file", str(good), "--output_file", str(tmp_path), "--overwrite") == 2
    assert capsys.readouterr().err == f"error: --output_file {tmp_path}: is a folder; give a file\n"
    assert run(model_dir, "--input_file", str(good), "--output_file", str(good), "--overwrite") == 0
    assert "generated_text" in good.read_text()
