"""Reading .jsonl files: awkward but valid bytes are read, broken ones name file and line."""

import itertools
import json
from pathlib import Path

import pytest

from colossal_llama.data.readers import list_jsonl_files, plan_slices, read_records, read_slice
from colossal_llama.errors import UserError

GOOD = '{"target": "床前明月光"}'.encode()


def write(folder: Path, content: bytes, name: str = "a.jsonl") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return folder


VALID = {
    "plain": (GOOD + b"\n" + GOOD + b"\n", [1, 2]),
    "no final newline": (GOOD + b"\n" + GOOD, [1, 2]),
    "crlf": (GOOD + b"\r\n" + GOOD + b"\r\n", [1, 2]),
    "byte order mark": (b"\xef\xbb\xbf" + GOOD + b"\n", [1]),
    "blank lines": (b"\n  \t\n" + GOOD + b"\n\n\r\n" + GOOD + b"\n\n", [3, 6]),
    "line separators in a string": ('{"target": "a\u2028b\u0085c"}\n'.encode() + GOOD, [1, 2]),
    "surrogate pair": (b'{"target": "\\ud83d\\ude00"}\n', [1]),
    "escaped backslash before ud": (b'{"target": "C:\\\\udata"}\n', [1]),
    "control characters": (b'{"target": "a\\u0000b\\u202ec\\ufeff"}\n', [1]),
}


@pytest.mark.parametrize("name", VALID)
def test_awkward_but_valid_files_are_read(tmp_path: Path, name: str) -> None:
    content, lines = VALID[name]
    records = list(read_records(write(tmp_path / "in", content)))
    assert [record.line for record in records] == lines


BROKEN = {
    "missing quote": (GOOD + b'\n{"target: "x"}\n', 2, "not valid JSON"),
    "cut last line": (GOOD + b'\n{"target": "x', 2, "not valid JSON"),
    "invalid bytes": (GOOD + b'\n{"target": "\xff\xfe"}\n', 2, "not UTF-8"),
    "gb18030": ('{"target": "床前明月光"}\n'.encode("gb18030"), 1, "not UTF-8"),
    "binary": (bytes(range(128, 256)) * 4, 1, "not UTF-8"),
    "array over lines": (b'[{"target": "x"},\n{"target": "y"}]\n', 1, "not valid JSON"),
    "array": (GOOD + b"\n[1]\n", 2, "found an array"),
    "string": (b'"x"\n', 1, "found a string"),
    "number": (b"42\n", 1, "found a number"),
    "null": (GOOD + b"\n\nnull\n", 3, "found null"),
    "nan": (b'{"target": NaN}\n', 1, "NaN"),
    "infinity": (b'{"target": -Infinity}\n', 1, "Infinity"),
    "key twice": (b'{"target": "a", "target": "b"}\n', 1, "'target' occurs twice"),
    "deeply nested": (b'{"x": ' + b"[" * 20_000 + b"]" * 20_000 + b"}\n", 1, "nested too deeply"),
    "high surrogate": (GOOD + b'\n{"target": "half \\ud83d"}\n', 2, "\\ud83d"),
    "low surrogate": (b'{"target": "\\uDC00 first"}\n', 1, "\\udc00"),
    "huge integer": (b'{"x": ' + b"9" * 5000 + b"}\n", 1, "not valid JSON"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_lines_name_file_and_line(tmp_path: Path, name: str) -> None:
    content, line, message = BROKEN[name]
    folder = write(tmp_path / "in", content)
    with pytest.raises(UserError) as caught:
        list(read_records(folder))
    assert str(caught.value).startswith(f"{folder / 'a.jsonl'}:{line}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_slices_cover_the_file_and_count_lines(tmp_path: Path) -> None:
    lines = [json.dumps({"n": n, "text": "x" * (n % 90)}).encode() for n in range(300)]
    lines[17] = b""
    path = write(tmp_path / "in", b"\n".join(lines)) / "a.jsonl"
    for size in (1, 7, 100, 4096, 1 << 20):
        slices = list(plan_slices(path, size))
        assert slices[0].start == 0
        assert slices[-1].end == path.stat().st_size
        assert all(one.end == two.start for one, two in itertools.pairwise(slices))
        records = [record for piece in slices for record in read_slice(piece)]
        assert [(record.line, record.value["n"]) for record in records] == [(n + 1, n) for n in range(300) if n != 17]


def test_files_come_in_sorted_order(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", b'{"n": 2}', "b with 空格.jsonl")
    write(folder, b'{"n": 1}', "a.jsonl")
    write(folder, b"ignored", "a.txt")
    write(folder, b"ignored", "a.jsonl.gz")
    assert [record.value["n"] for record in read_records(folder)] == [1, 2]


def test_unusable_directories(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--data_input_dirs .*gone: no such directory"):
        list_jsonl_files(tmp_path / "gone", "--data_input_dirs")
    file = tmp_path / "file.jsonl"
    file.write_bytes(GOOD)
    with pytest.raises(UserError, match="is a file"):
        list_jsonl_files(file, "--data_input_dirs")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"no \.jsonl file"):
        list_jsonl_files(tmp_path / "none", "--data_input_dirs")
