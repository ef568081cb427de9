"""Reading input files: awkward but valid bytes are read, broken ones name file and record."""

import bz2
import gzip
import io
import itertools
import json
import lzma
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from colossal_llama.data.input_files import InputFile, list_input_files
from colossal_llama.data.readers import Record, Reject, read_records, read_slice, reject_record
from colossal_llama.data.slices import DAMAGED_FILE, FileSlice, plan_slices
from colossal_llama.errors import RecordError, UserError

GOOD = '{"target": "床前明月光"}'.encode()
SIZES = (1, 7, 100, 4096, 1 << 20)
ROWS = [{"n": n, "text": "文" * (n % 90), "inner": {"list": [n, None]}} for n in range(300)]


def write(folder: Path, content: bytes, name: str = "a.jsonl") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return folder


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def zstd(content: bytes) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def parquet(rows: list[dict[str, Any]], **settings: Any) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, **settings)
    return sink.getvalue()


def arrow(rows: list[dict[str, Any]], new: str = "new_stream") -> bytes:
    import pyarrow as pa

    table = pa.Table.from_pylist(rows)
    sink = io.BytesIO()
    with getattr(pa.ipc, new)(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=40)
    return sink.getvalue()


FILES: dict[str, tuple[str, Callable[[list[dict[str, Any]]], bytes]]] = {
    "lines": ("a.jsonl", lines),
    "gzip": ("a.jsonl.gz", lambda rows: gzip.compress(lines(rows))),
    "gzip in two members": (
        "a.jsonl.gz",
        lambda rows: gzip.compress(lines(rows)[:1001]) + gzip.compress(lines(rows)[1001:]),
    ),
    "zstd": ("a.jsonl.zst", lambda rows: zstd(lines(rows))),
    "zstd in two frames": ("a.JSONL.ZST", lambda rows: zstd(lines(rows)[:1001]) + zstd(lines(rows)[1001:])),
    "zstd with skippable frame": (
        "a.jsonl.zst",
        lambda rows: b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc" + zstd(lines(rows)),
    ),
    "bzip2": ("a.jsonl.bz2", lambda rows: bz2.compress(lines(rows)[:1001]) + bz2.compress(lines(rows)[1001:])),
    "xz": ("a.ndjson.xz", lambda rows: lzma.compress(lines(rows))),
    "ndjson": ("a.ndjson", lines),
    "lines named .json.gz": ("a.json.gz", lambda rows: gzip.compress(lines(rows))),
    "array": ("a.json", lambda rows: json.dumps(rows).encode()),
    "array over lines": ("a.json", lambda rows: json.dumps(rows, ensure_ascii=False, indent=2).encode() + b"\n\n"),
    "array behind a byte order mark": ("a.json", lambda rows: b"\xef\xbb\xbf\r\n " + json.dumps(rows).encode()),
    "lines named .json": ("a.json", lines),
    "parquet": ("a.parquet", parquet),
    "parquet in groups": ("a.parquet", lambda rows: parquet(rows, row_group_size=7, compression="zstd")),
    "arrow stream": ("a.arrow", arrow),
    "arrow file": ("a.arrow", lambda rows: arrow(rows, "new_file")),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("size", SIZES)
def test_every_kind_of_file_gives_the_same_records(tmp_path: Path, name: str, size: int) -> None:
    filename, build = FILES[name]
    write(tmp_path / "in", build(ROWS), filename)
    [file] = list_input_files(tmp_path / "in" / filename, "--data_input_dirs")
    slices = list(plan_slices(file, size))
    assert slices == list(plan_slices(file, size)), "the same file gives the same slices"
    assert sum(piece.bytes_read for piece in slices) == file.size
    assert all(piece.bytes_read >= 0 and piece.path == file.path for piece in slices)
    assert len(slices) > 3 or size > 1000
    records = [record for piece in slices for record in read_slice(pickle.loads(pickle.dumps(piece)))]
    assert [record.value for record in records] == ROWS
    assert [record.number for record in records] == list(range(1, 301))
    unit = "" if filename.lower().startswith(("a.jsonl", "a.ndjson")) or name.startswith("lines named") else "record "
    assert records[41].where == f"{file.path}:{unit}42"


@pytest.mark.parametrize("name", FILES)
def test_a_file_without_records_is_empty(tmp_path: Path, name: str) -> None:
    filename, build = FILES[name]
    if filename.endswith(("parquet", "arrow")):
        content = build(ROWS[:1])
        import pyarrow as pa

        if filename.endswith("parquet"):
            from pyarrow import parquet as pq

            pq.write_table(pq.read_table(io.BytesIO(content)).slice(0, 0), tmp_path / filename)
        else:
            with pa.ipc.new_stream(str(tmp_path / filename), pa.schema([("n", pa.int64())])):
                pass
    else:
        write(tmp_path, build([]), filename)
    assert list(read_records(tmp_path / filename)) == []


def test_slices_keep_huge_records_whole_and_others_small(tmp_path: Path) -> None:
    rows = [{"text": "长" * 5000 if n == 50 else "x"} for n in range(100)]
    for filename, build in FILES.values():
        write(tmp_path, build(rows), filename)
        [file] = list_input_files(tmp_path / filename, "--data_input_dirs")
        counts = [len(list(read_slice(piece))) for piece in plan_slices(file, 1000)]
        assert sum(counts) == 100
        assert len(counts) >= 2
        if "parquet" not in filename and "arrow" not in filename:
            assert max(counts) < 90


VALID = {
    "plain": (GOOD + b"\n" + GOOD + b"\n", [1, 2]),
    "no final newline": (GOOD + b"\n" + GOOD, [1, 2]),
    "crlf": (GOOD + b"\r\n" + GOOD + b"\r\n", [1, 2]),
    "byte order mark": (b"\xef\xbb\xbf" + GOOD + b"\n", [1]),
    "blank lines": (b"\n  \t\n" + GOOD + b"\n\n\r\n" + GOOD + b"\n\n", [3, 6]),
    "only newlines": (b"\n" * 50, []),
    "empty": (b"", []),
    "line separators in a string": ('{"target": "a\u2028b\u0085c"}\n'.encode() + GOOD, [1, 2]),
    "surrogate pair": (b'{"target": "\\ud83d\\ude00"}\n', [1]),
    "escaped backslash before ud": (b'{"target": "C:\\\\udata"}\n', [1]),
    "control characters": (b'{"target": "a\\u0000b\\u202ec\\ufeff"}\n', [1]),
}


@pytest.mark.parametrize("name", VALID)
@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_awkward_but_valid_files_are_read(tmp_path: Path, name: str, packed: str) -> None:
    content, numbers = VALID[name]
    content = {"": bytes, ".gz": gzip.compress, ".zst": zstd}[packed](content)
    records = list(read_records(write(tmp_path / "in", content, f"a.jsonl{packed}")))
    assert [record.number for record in records] == numbers


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
    with pytest.raises(RecordError) as caught:
        list(read_records(folder))
    assert str(caught.value).startswith(f"{folder / 'a.jsonl'}:{line}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.reason) == (str(caught.value), caught.value.reason)


def read_all(path: Path, size: int = 1 << 20) -> tuple[list[Record], list[Reject]]:
    rejects: list[Reject] = []
    [file] = list_input_files(path, "--data_input_dirs")
    records = [record for piece in plan_slices(file, size) for record in read_slice(piece, rejects.append)]
    return records, rejects


def test_bad_lines_are_handed_over_and_reading_goes_on(tmp_path: Path) -> None:
    bad = [b'{"n: 1}', b"\xff" * 5000, b"[1]", b'{"n": "\\udc00"}', b"null", b'{"n": ' + b"[" * 20_000]
    write(tmp_path, b"\n".join(part for one in bad for part in (one, GOOD)))
    records, rejects = read_all(tmp_path / "a.jsonl")
    assert [record.number for record in records] == [2, 4, 6, 8, 10, 12]
    assert [reject.where for reject in rejects] == [f"{tmp_path / 'a.jsonl'}:{n}" for n in (1, 3, 5, 7, 9, 11)]
    assert [reject.reason for reject in rejects] == [
        "not valid JSON",
        "not UTF-8",
        "not an object",
        "half of a surrogate pair",
        "not an object",
        "nested too deeply",
    ]
    assert rejects[0].raw == '{"n: 1}'
    assert rejects[0].detail.startswith(rejects[0].where + ": not valid JSON (")
    assert {len(reject.raw) for reject in rejects if len(reject.raw) > 100} == {2000}
    refused = reject_record(Record("f.jsonl", 7, {"键": "x" * 9000}), RecordError("why", "f.jsonl:7: why not"))
    assert (refused.where, refused.reason, refused.detail) == ("f.jsonl:7", "why", "f.jsonl:7: why not")
    assert refused.raw.startswith('{"键": "xx')
    assert len(refused.raw) == 2000


def test_bad_elements_of_an_array(tmp_path: Path) -> None:
    write(tmp_path, b'[{"n": 1}, {"n": 2,}, 3,\n{"n": "]},{\\"["}, , {"n": NaN}, {"n": "\xff"}, {"n": 7}]', "a.json")
    for size in SIZES:
        records, rejects = read_all(tmp_path / "a.json", size)
        assert [(record.number, record.value["n"]) for record in records] == [(1, 1), (4, "]},{" + '"['), (8, 7)]
        assert [reject.where.rpartition(":")[2] for reject in rejects] == [f"record {n}" for n in (2, 3, 5, 6, 7)]
    with pytest.raises(RecordError, match=r"a\.json:record 2: not valid JSON"):
        list(read_records(tmp_path / "a.json"))


CUT = json.dumps([{"n": n} for n in range(50)]).encode()
DAMAGED = {
    "cut array": ("a.json", CUT[:-5], 49, "line 1 .* is it cut off"),
    "cut in a string": ("a.json", b'[{"n": 0},\n{"n": "x', 1, r"line 2 \(byte 20\): the file ends inside a string"),
    "wrong bracket": ("a.json", b'[{"n": 0},\n {"n": [1}}, {"n": 2}]', 1, r"line 2 \(byte 21\): '}' closes nothing"),
    "text after the array": ("a.json", b'[{"n": 0}]\n\n[]', 0, r"line 3 \(byte 13\): more text after the end"),
    "one object": ("a.json", b'{"n": 0}', 0, "holds one JSON object; expected an array"),
    "one object over lines": ("a.json", b'{\n  "n": 0\n}\n', 0, "holds one JSON object"),
    "no json": ("a.json", b"n = 0", 0, "does not begin with"),
    "not gzip": ("a.jsonl.gz", GOOD, 0, r"not readable as gzip \(Not a gzipped file"),
    "gzip cut off": ("a.jsonl.gz", gzip.compress(lines(ROWS), 0)[:5000], 30, "not readable as gzip"),
    "gzip with a wrong checksum": ("a.jsonl.gz", gzip.compress(lines(ROWS[:30]))[:-8] + b"12345678", 30, "CRC"),
    "not zstd": ("a.jsonl.zst", GOOD, 0, "not readable as zstd"),
    "zstd cut off": ("a.jsonl.zst", (zstd(lines(ROWS)) * 9)[:-30], 6 * 300, "Truncated"),
    "not parquet": ("a.parquet", GOOD * 100, 0, "not readable as parquet"),
    "parquet cut off": ("a.parquet", parquet(ROWS)[:-20], 0, "not readable as parquet"),
    "not arrow": ("a.arrow", GOOD * 100, 0, "not readable as arrow"),
    "arrow cut off": ("a.arrow", arrow(ROWS)[:-5000], 40, "not readable as arrow"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_give_what_stands_before_the_damage(tmp_path: Path, name: str) -> None:
    filename, content, least, message = DAMAGED[name]
    path = tmp_path / filename
    path.write_bytes(content)
    records, rejects = read_all(path)
    expected = [*range(300)] * 9
    assert len(records) >= least
    assert [record.value["n"] for record in records] == expected[: len(records)]
    [reject] = rejects
    assert (reject.where, reject.reason) == (str(path), DAMAGED_FILE)
    with pytest.raises(UserError, match=message) as caught:
        list(read_records(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_rows_that_are_not_utf8(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet as pq

    bad = pa.array([b"a", b"\xff\xfe", b"c"]).view(pa.string())
    pq.write_table(pa.table({"text": bad}), tmp_path / "a.parquet")
    records, rejects = read_all(tmp_path / "a.parquet")
    assert [(record.number, record.value["text"]) for record in records] == [(1, "a"), (3, "c")]
    assert [(reject.where, reject.reason) for reject in rejects] == [(f"{tmp_path}/a.parquet:record 2", "not UTF-8")]
    with pytest.raises(RecordError, match=r"a\.parquet:record 2: not UTF-8"):
        list(read_records(tmp_path / "a.parquet"))


def test_repeated_columns_are_refused(tmp_path: Path) -> None:
    import pyarrow as pa

    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(UserError, match="the column 'text' occurs twice"):
        list(read_records(tmp_path / "a.arrow"))


def test_slices_cover_the_file_and_count_lines(tmp_path: Path) -> None:
    rows = [json.dumps({"n": n, "text": "x" * (n % 90)}).encode() for n in range(300)]
    rows[17] = b""
    path = write(tmp_path / "in", b"\n".join(rows)) / "a.jsonl"
    for size in SIZES:
        slices = list(plan_slices(InputFile(str(path), "jsonl"), size))
        assert slices[0].start == 0
        assert slices[-1].end == path.stat().st_size
        assert all(one.end == two.start for one, two in itertools.pairwise(slices))
        records = [record for piece in slices for record in read_slice(piece)]
        assert [(record.number, record.value["n"]) for record in records] == [(n + 1, n) for n in range(300) if n != 17]


def paths(files: list[InputFile], root: Path) -> list[str]:
    return [str(Path(file.path).relative_to(root)) for file in files]


def test_a_directory_stands_for_its_files_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b with 空格.jsonl", "a.jsonl", "b.jsonl.gz", "d.JSONL.zst", "a.parquet", "c.json", "a.txt", "README"):
        write(tmp_path, b"", name)
    write(tmp_path / "inner", b"")
    files = list_input_files(tmp_path, "--data_input_dirs")
    names = ["a.jsonl", "a.parquet", "a.txt", "b with 空格.jsonl", "b.jsonl.gz", "c.json", "d.JSONL.zst"]
    assert paths(files, tmp_path) == names
    assert [file.kind for file in files] == ["jsonl", "parquet", "txt", "jsonl", "jsonl", "json", "jsonl"]
    assert [file.compression for file in files] == ["", "", "", "", "gz", "", "zst"]


def test_globs(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "a.csv", "one[1].jsonl"):
        write(tmp_path, b"", name)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    write(tmp_path / "deep" / "er", b"", "c.jsonl.zst")
    assert paths(list_input_files(f"{tmp_path}/[ab].*", "--flag"), tmp_path) == ["a.jsonl", "b.jsonl"]
    assert paths(list_input_files(f"{tmp_path}/**", "--flag"), tmp_path) == [
        "a.jsonl",
        "b.jsonl",
        "deep/er/c.jsonl.zst",
        "one[1].jsonl",
    ]
    assert paths(list_input_files(f"{tmp_path}/one[1].jsonl", "--flag"), tmp_path) == ["one[1].jsonl"]


def test_saved_datasets(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    folder = tmp_path / "saved"
    Dataset.from_list(ROWS).save_to_disk(str(folder), num_shards=3)
    files = list_input_files(folder, "--data_input_dirs")
    assert [file.kind for file in files] == ["arrow"] * 3
    records = list(read_records(folder))
    assert [record.value for record in records] == ROWS
    assert records[-1].where == f"{folder}/data-00002-of-00003.arrow:record 100"
    for pattern in ("*", "**", "**/*", "saved*", "saved/*"):
        assert list_input_files(f"{tmp_path}/{pattern}", "--flag") == files
    Path(files[1].path).unlink()
    with pytest.raises(UserError, match=r"--flag .*saved: data-00001-of-00003\.arrow, which .* is missing"):
        list_input_files(folder, "--flag")
    DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(UserError, match=r"holds several splits .*; name one"):
        list_input_files(tmp_path / "splits", "--flag")
    assert len(list_input_files(tmp_path / "splits" / "train", "--flag")) == 1


def test_unusable_inputs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--flag .*gone: no such directory or file"):
        list_input_files(tmp_path / "gone", "--flag")
    write(tmp_path, b"", "a.csv")
    with pytest.raises(UserError, match=r"a\.csv: unknown kind of file; expected \.jsonl, .*save_to_disk"):
        list_input_files(tmp_path / "a.csv", "--flag")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"none: nothing to read in this directory; expected \.jsonl, "):
        list_input_files(tmp_path / "none", "--flag")
    with pytest.raises(UserError, match=r"\*\.csv: matches nothing that can be read"):
        list_input_files(f"{tmp_path}/*.csv", "--flag")
    with pytest.raises(UserError, match="cannot be read"):
        list(plan_slices(InputFile(str(tmp_path / "gone.parquet"), "parquet")))
    with pytest.raises(UserError, match="cannot be read"):
        list(read_slice(FileSlice(str(tmp_path / "gone.jsonl"), "jsonl", 1, 0, 10)))


def test_a_refused_record_of_any_depth_is_listed() -> None:
    value: dict[str, Any] = {"target": []}
    for _ in range(5000):
        value = {"a": value}
    assert reject_record(Record("f", 1, value), RecordError("wrong type", "f:1: wrong")).raw == ""
