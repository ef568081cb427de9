"""Texts for tokenizers out of any input file."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from colossal_llama.data.texts import CorpusText, TextReader
from colossal_llama.errors import UserError


def read(*paths: Path, **settings: str) -> list[CorpusText]:
    return list(TextReader([str(path) for path in paths], "--text_files", **settings))


def test_every_kind_of_file_gives_its_texts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"source": "问", "target": "甲", "category": "c"}\n\n{"target": "乙"}\n', encoding="utf-8"
    )
    with gzip.open(tmp_path / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write('{"text": "丙"}\n')
    pyarrow.parquet.write_table(pyarrow.table({"text": ["丁"]}), tmp_path / "c.parquet")
    messages = [{"from": "human", "content": "戊"}, {"from": "assistant", "content": "己"}]
    (tmp_path / "d.jsonl").write_text(json.dumps({"messages": messages}) + "\n", encoding="utf-8")
    (tmp_path / "e.txt").write_bytes("\ufeff庚\r\n\n辛".encode())
    expected = [
        *[CorpusText("问甲", "c"), CorpusText("乙", "a"), CorpusText("丙", "b"), CorpusText("丁", "c")],
        *[CorpusText("戊\n己", "d"), CorpusText("庚", "e"), CorpusText("辛", "e")],
    ]
    assert read(tmp_path) == expected
    assert read(tmp_path, tmp_path / "a.jsonl") == expected  # no file is read twice
    assert read(tmp_path / "*.parquet", tmp_path / "e.txt") == [expected[3], *expected[5:]]


def test_a_folder_of_plain_text_alone_will_do(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("甲\n", encoding="utf-8")
    assert read(tmp_path) == [CorpusText("甲", "b")]


def test_records_without_text_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"target": " "}\n{"target": "甲"}\n', encoding="utf-8")
    reader = TextReader([str(tmp_path)], "--text_files")
    assert len(list(reader)) == 1
    assert reader.dropped == {"empty target": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"target": "a"}\n{"target": 7}\n', r":2: 'target' must be a string"),
        (b'{"target": "a"\n', ":1: not valid JSON"),
        (b'{"name": "a"}\n', "no known format"),
        (b'{"target": "a"}\n\xd6\xd0\n', ":2: not UTF-8"),
    ],
)
def test_a_bad_record_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=f"corpus.jsonl{message}" if message[0] == ":" else message):
        read(tmp_path)


def test_missing_and_undecodable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--text_files .*absent: no such"):
        read(tmp_path / "absent")
    (tmp_path / "a.txt").write_bytes(b"a\n\xd6\xd0\n")
    with pytest.raises(UserError, match=r"a\.txt:2: not UTF-8"):
        read(tmp_path)


def test_a_named_field_or_format_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "甲", "target": "乙"}\n', encoding="utf-8")
    assert read(tmp_path, text_field="body") == [CorpusText("甲", "a")]
    assert read(tmp_path, data_format="colossal") == [CorpusText("乙", "a")]
