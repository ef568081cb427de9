"""Which files inputs name: each is read once, and what is passed over is named with its reason."""

import bz2
import gzip
import json
import lzma
import os
from pathlib import Path

import pytest

from colossal_llama.commands.prepare_pretrain_dataset import main as pretrain_main
from colossal_llama.commands.prepare_sft_dataset import main as sft_main
from colossal_llama.data.input_files import FileRules, FoundFiles, find_input_files, list_input_files
from colossal_llama.data.readers import read_records
from colossal_llama.data.texts import TextReader
from colossal_llama.errors import UserError

LINE = b'{"text": "a"}\n'


def fill(folder: Path, *names: str, content: bytes = LINE) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def find(*specs: Path | str, recursive: bool = False) -> FoundFiles:
    return find_input_files([str(spec) for spec in specs], FileRules("--flag", recursive))


def names(found: FoundFiles, root: Path) -> list[str]:
    return [os.path.relpath(file.path, root) for group in found.groups for file in group]


def reasons(found: FoundFiles, root: Path) -> dict[str, str]:
    return {os.path.relpath(path, root): reason for path, reason in found.not_read.items()}


def test_what_is_passed_over_is_named(tmp_path: Path) -> None:
    fill(tmp_path, "a.jsonl", "b.csv", ".hidden.jsonl", "c.jsonl.part", "d.jsonl.crdownload", "e.tmp", "f.jsonl~")
    fill(tmp_path, "dataset_infos.json", "README.txt", "LICENSE", "sub/x.jsonl", ".cache/y.jsonl", "g.parquet.gz")
    os.mkfifo(tmp_path / "pipe.jsonl")
    found = find(tmp_path)
    assert names(found, tmp_path) == ["a.jsonl"]
    unfinished = "an unfinished download or a scratch file"
    assert reasons(found, tmp_path) == {
        ".hidden.jsonl": "hidden",
        ".cache": "hidden",
        "b.csv": "unknown ending",
        "LICENSE": "unknown ending",
        "g.parquet.gz": "unknown ending",
        "c.jsonl.part": unfinished,
        "d.jsonl.crdownload": unfinished,
        "e.tmp": unfinished,
        "f.jsonl~": unfinished,
        "dataset_infos.json": "describes a dataset",
        "README.txt": "documentation",
        "pipe.jsonl": "not a regular file",
        "sub": "a subfolder; --recursive reads it",
    }
    deep = find(tmp_path, recursive=True)
    assert names(deep, tmp_path) == ["a.jsonl", "sub/x.jsonl"]
    assert "sub" not in reasons(deep, tmp_path)


def test_links_in_a_circle_are_followed_once(tmp_path: Path) -> None:
    fill(tmp_path, "a/a.jsonl", "b/b.jsonl")
    (tmp_path / "a" / "to_b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "to_a").symlink_to(tmp_path / "a")
    (tmp_path / "up").symlink_to(tmp_path)
    found = find(tmp_path, recursive=True)
    assert sorted(Path(file.path).name for group in found.groups for file in group) == ["a.jsonl", "b.jsonl"]


def test_a_saved_dataset_is_what_its_state_says(tmp_path: Path) -> None:
    from datasets import Dataset, load_from_disk

    folder = tmp_path / "parent" / "saved"
    Dataset.from_list([{"text": "x", "n": n} for n in range(4)]).save_to_disk(str(folder))
    load_from_disk(str(folder)).map(lambda row: {"text": row["text"] + "y"})
    caches = [path.name for path in folder.iterdir() if path.name.startswith("cache-")]
    assert caches
    for spec in (folder, f"{tmp_path}/parent/**", f"{tmp_path}/parent/*", f"{folder}/*", f"{folder}/*.arrow"):
        found = find(spec)
        assert [Path(file.path).name for file in found.groups[0]] == ["data-00000-of-00001.arrow"]
        assert len(list(read_records(spec))) == 4
    assert reasons(find(folder), folder)[caches[0]] == "not of the dataset, by its state.json"
    assert names(find(tmp_path, recursive=True), folder) == ["data-00000-of-00001.arrow"]


def test_one_file_under_two_names_is_read_once(tmp_path: Path) -> None:
    fill(tmp_path, "in/a.jsonl", "out/z.jsonl")
    os.link(tmp_path / "in/a.jsonl", tmp_path / "in/b.jsonl")
    (tmp_path / "in/c.jsonl").symlink_to("a.jsonl")
    found = find(tmp_path / "in")
    assert names(found, tmp_path) == ["in/a.jsonl"]
    same = f"the same file as {tmp_path}/in/a.jsonl"
    assert reasons(found, tmp_path) == {"in/b.jsonl": same, "in/c.jsonl": same}
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for other in ("in", "in/a.jsonl", "in/b.jsonl", "link", "in/*.jsonl", "*/a.jsonl"):
        with pytest.raises(UserError, match=r"--flag: .*/in and .* both hold .*; name it once"):
            find(tmp_path / "in", tmp_path / other)
    reader = TextReader([str(tmp_path / "in"), str(tmp_path / "link")], "--text_files")
    assert len(list(reader)) == 1, "texts for tokenizers may be named again"


@pytest.mark.parametrize("other", ["a.jsonl.gz", "a.jsonl.xz", "a.jsonl.zst"])
def test_a_file_and_its_compressed_form_are_refused(tmp_path: Path, other: str) -> None:
    fill(tmp_path, "a.jsonl", other)
    with pytest.raises(UserError, match=r"a\.jsonl and .* look like two forms of one file"):
        find(tmp_path)
    assert len(find(tmp_path / "a.jsonl", tmp_path / other).groups) == 2


def test_what_is_no_data_is_refused(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
    for name in ("a.parquet", "a.jsonl.gz", "a.txt"):
        fill(tmp_path / name, name, content=pointer)
        with pytest.raises(UserError, match=f"{name}: a Git LFS pointer, not the file itself; run git lfs pull"):
            find(tmp_path / name)
    for name in ("b.jsonl", "b.json.gz", "b.parquet"):
        fill(tmp_path / name, name, content=b"\n<!DOCTYPE html><html>404</html>")
        with pytest.raises(UserError, match=f"{name}: a web page"):
            find(tmp_path / name)
    (tmp_path / "links").mkdir()
    (tmp_path / "links/c.jsonl").symlink_to("../blobs/0123")
    for spec in (tmp_path / "links", tmp_path / "links/c.jsonl"):
        with pytest.raises(UserError, match=r"c\.jsonl: a link to a file that is not there"):
            find(spec)


TEXTS = {
    "a.txt": "一\r\n\n 二\n".encode(),
    "b.txt.gz": gzip.compress("三\n".encode()),
    "c.txt.bz2": bz2.compress("四".encode()),
    "d.txt.xz": lzma.compress("\ufeff五\n".encode()),
    "e.jsonl.xz": lzma.compress('{"text": "六"}\n'.encode()),
    "f.ndjson": '{"text": "七"}\n'.encode(),
    "g.json.bz2": bz2.compress('{"text": "八"}\n'.encode()),
}
EXPECTED = ["一", " 二", "三", "四", "五", "六", "七", "八"]


def test_all_commands_read_the_same_texts(
    tmp_path: Path, tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    for name, content in TEXTS.items():
        fill(folder, name, content=content)
    fill(folder, "notes.csv", "more/h.jsonl")
    assert [record.value["text"] for record in read_records(folder)] == EXPECTED
    reader = TextReader([str(folder)], "--text_files")
    assert [text.text for text in reader] == EXPECTED
    assert len(reader.not_read) == 2
    assert reader.notes()[0].startswith("files and folders not read 2: ")
    deep = TextReader([str(folder)], "--text_files", recursive=True)
    assert [text.text for text in deep] == [*EXPECTED, "a"]
    flags = ["--data_input_dirs", str(folder), "--tokenizer_dir", str(tokenizer_dir), "--num_workers", "1"]
    flags += ["--num_spliced_dataset_bins", "1", "--data_output_dirs", str(tmp_path / "out")]
    assert pretrain_main(flags) == 0
    printed = capsys.readouterr().out
    assert "records read 8, kept 8" in printed
    assert f"files and folders not read 2: {folder}/notes.csv (unknown ending), {folder}/more (a subfolder;" in printed
    manifest = json.loads((tmp_path / "out/arrow/manifest.json").read_text(encoding="utf-8"))
    assert manifest["files_not_read"][f"{folder}/notes.csv"] == "unknown ending"
    assert "notes.csv" in (tmp_path / "out/arrow/report.html").read_text(encoding="utf-8")
    assert pretrain_main([*flags, "--recursive", "--overwrite"]) == 0
    assert "records read 9, kept 9" in capsys.readouterr().out
    with pytest.raises(UserError, match="a prepared dataset; name raw texts"):
        find(tmp_path / "out/arrow")
    assert reasons(find(tmp_path / "out", recursive=True), tmp_path / "out") == {"arrow": "a prepared dataset"}


def test_plain_text_is_no_conversation(tmp_path: Path, tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    fill(folder, "a.jsonl", content=b'{"instruction": "q", "output": "a"}\n')
    fill(folder, "notes.txt", content=b"to do\n")
    flags = ["--tokenizer_dir", str(tokenizer_dir), "--num_workers", "1", "--data_output_dirs", str(tmp_path / "out")]
    assert sft_main(["--data_input_dirs", str(folder), *flags]) == 0
    printed = capsys.readouterr().out
    assert "notes.txt (plain text, which is not of the format that is asked for)" in printed
    assert sft_main(["--data_input_dirs", str(folder / "notes.txt"), *flags, "--overwrite"]) == 2
    assert "notes.txt: holds pretraining texts" in capsys.readouterr().err


def test_a_compressed_array_is_refused_with_the_way_out(tmp_path: Path) -> None:
    fill(tmp_path, "a.json.gz", content=gzip.compress(b'[{"text": "a"}]'))
    with pytest.raises(UserError, match=r"a\.json\.gz: a compressed JSON array; decompress it, or write one object"):
        list(read_records(tmp_path / "a.json.gz"))


def test_lines_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    fill(tmp_path, "a.txt", content=b"a\n\xd6\xd0\n")
    with pytest.raises(UserError, match=r"a\.txt:2: not UTF-8"):
        list(read_records(tmp_path / "a.txt"))
    assert list_input_files(tmp_path / "a.txt", "--flag")[0].kind == "txt"
