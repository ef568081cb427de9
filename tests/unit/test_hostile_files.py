"""Bad and awkward input files through both commands: refused in one line, or taken with every record accounted for."""

import io
import json
import os
import re
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from colossal_llama.commands.prepare_pretrain_dataset import main as pretrain_main
from colossal_llama.commands.prepare_sft_dataset import main as sft_main
from colossal_llama.data.inspection import open_prepared
from colossal_llama.data.readers import RAW_CHARACTERS
from tests.helpers.hostile import HOSTILE, MAX_LENGTH, Hostile

MAIN = {"pretrain": pretrain_main, "sft": sft_main}


def write(folder: Path, case: Hostile) -> str:
    """Write the file; returns its path as the commands show it."""
    folder.mkdir()
    path = os.path.join(os.fsencode(folder), os.fsencode(case.name))
    with open(path, "wb") as file:
        file.write(case.content)
    return os.fsdecode(path)


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def error_line(self) -> str:
        """The only line on stderr."""
        assert self.err.count("\n") == 1
        assert self.err.startswith("error: ")
        return self.err


def run(case: Hostile, folder: Path, tokenizer_dir: Path, mode: str, *more: str) -> Done:
    flags = ["--data_input_dirs", str(folder / "in"), "--tokenizer_dir", str(tokenizer_dir), "--num_workers", "1"]
    flags += ["--data_output_dirs", str(folder / "out"), "--max_length", str(MAX_LENGTH), "--on_bad_record", mode]
    # As strict with what is no UTF-8 as the interpreter's own streams, which pytest's are not.
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", "strict", newline="")
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace", newline="")
    with redirect_stdout(out), redirect_stderr(err):
        code = MAIN[case.command]([*flags, "--num_spliced_dataset_bins", "2", *more])
    printed = []
    for stream in (out, err):
        stream.seek(0)
        printed.append(stream.read())
    return Done(code, *printed)


def shown(path: str) -> str:
    """A path as the interpreter prints it."""
    return path.encode("utf-8", "backslashreplace").decode()


def check_refused(case: Hostile, folder: Path, path: str, done: Done) -> None:
    where = f"{shown(path)}:{case.bad[0][0]}: " if case.bad else shown(path)
    # Where no line is to blame it can be the input, which is the folder.
    assert where in done.error_line or (not case.bad and f"--data_input_dirs {folder / 'in'}: " in done.error_line)
    assert case.message.replace("{file}", path) in done.error_line
    assert [entry.name for entry in folder.iterdir()] == ["in"], "something was left behind"


def check_taken(case: Hostile, folder: Path, path: str, tokenizer_dir: Path) -> None:
    arrow = folder / "out/arrow"
    manifest = json.loads((arrow / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["inputs"][0]["records"] == case.records
    assert manifest["dropped"] == case.all_dropped
    assert manifest["documents"] == len(case.texts)
    assert manifest["trailing_human"] == case.trailing_human
    assert manifest["tokens_in"] == manifest["tokens"] + sum(manifest["tokens_dropped"].values())
    if case.command == "pretrain":
        assert manifest["characters"] == sum(map(len, case.texts))
        assert manifest["bytes"] == sum(len(text.encode()) for text in case.texts)
    check_rows(case, manifest, arrow, tokenizer_dir)
    check_rejects(case, path, arrow / "rejects.jsonl")
    assert sorted(entry.name for entry in (folder / "out").iterdir()) == ["arrow", "jsonl"]
    assert sorted(entry.name for entry in folder.iterdir()) == ["in", "out"]


def check_rows(case: Hostile, manifest: dict[str, Any], arrow: Path, tokenizer_dir: Path) -> None:
    """What is learned, decoded, is what was there: whole where nothing was cut, else its characters."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_dir))
    prepared = open_prepared(arrow, "--dataset")
    documents: Counter[str] = Counter()
    for number in range(len(prepared)):
        row = prepared.row(number)
        start = 0
        for length in row.seq_lengths:
            ids, labels = row.input_ids[start : start + length], row.labels[start : start + length]
            chosen = ids if case.command == "pretrain" else ids[labels >= 0]
            documents[tokenizer.decode(chosen.tolist(), clean_up_tokenization_spaces=False)] += 1
            start += length
    begin = "<s>" if case.command == "pretrain" else ""
    expected = Counter(f"{begin}{text}</s>" for text in case.texts)
    if manifest["tokens_in"] <= MAX_LENGTH * len(case.texts):
        assert documents == expected
    else:
        left = Counter("".join(documents.elements())) - Counter("\ufffd")
        assert left <= Counter("".join(expected.elements())) + Counter("\ufffd" * manifest["rows"] * 4)
        assert sum(left.values()) >= 0.99 * sum(map(len, expected)) - 4 * manifest["rows"]


def check_rejects(case: Hostile, path: str, file: Path) -> None:
    if not case.bad:
        assert not file.exists()
        return
    rejects = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [(reject["where"], reject["reason"]) for reject in rejects] == [
        (f"{path}:{line}", reason) for line, reason in case.bad
    ]
    content = case.content.split(b"\n")
    for reject, (line, _) in zip(rejects, case.bad, strict=True):
        assert reject["detail"].startswith(f"{path}:{line}: ")
        assert 0 < len(reject["raw"]) <= RAW_CHARACTERS
        # Enough of the record to find it again; a record that was parsed is listed as it was understood.
        beginning = content[line - 1][:12].decode("utf-8", "replace")
        assert re.sub(r"\s", "", reject["raw"]).startswith(re.sub(r"\s", "", beginning))
    assert case.message in rejects[0]["detail"]


@pytest.mark.parametrize("mode", ["stop", "skip"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file(name: str, mode: str, tmp_path: Path, tokenizer_dir: Path) -> None:
    case = HOSTILE[name]
    path = write(tmp_path / "in", case)
    done = run(case, tmp_path, tokenizer_dir, mode)
    if case.refused or (case.bad and mode == "stop"):
        assert done.code == 2
        check_refused(case, tmp_path, path, done)
    else:
        assert done.code == 0, done.err
        check_taken(case, tmp_path, path, tokenizer_dir)


@pytest.mark.parametrize("name", ["lone surrogates", "name that is not UTF-8", "wrong types", "sft: wrong types"])
def test_screening_and_workers_change_nothing(name: str, tmp_path: Path, tokenizer_dir: Path) -> None:
    """Rejected records travel through other code where texts are compared and other processes read them."""
    case = HOSTILE[name]
    path = write(tmp_path / "in", case)
    more = (
        "--deduplicate",
        "exact",
        "--max_characters",
        "100000",
        "--sub_dataset_by",
        "category",
        "--num_workers",
        "2",
    )
    done = run(case, tmp_path, tokenizer_dir, "skip", *more)
    assert done.code == 0, done.err
    check_taken(case, tmp_path, path, tokenizer_dir)


def test_a_few_strange_records_do_not_hide_the_format(tmp_path: Path, tokenizer_dir: Path) -> None:
    good, strange = b'{"instruction": "add", "input": "1 2", "output": "3"}\n', b'{"instruction": "add"}\n'
    case = Hostile(good * 3 + strange * 2, command="sft")
    path = write(tmp_path / "in", case)
    refused = run(case, tmp_path, tokenizer_dir, "stop")
    assert refused.error_line == f"error: {path}:4: the field 'output' is missing; expected a string\n"
    taken = run(case, tmp_path, tokenizer_dir, "skip")
    assert "record formats: alpaca (1 files)\nrecords read 5, kept 3, dropped: 2 missing" in taken.out
    (tmp_path / "in/a.jsonl").write_bytes(good * 2 + strange * 2)
    refused = run(case, tmp_path, tokenizer_dir, "skip", "--overwrite")
    assert "no known format: 2 of the first 4 records are of the format alpaca" in refused.error_line
