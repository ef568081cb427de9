"""The manifest of a checkpoint: whatever happens to a file is found, and the file is named."""

import random
from pathlib import Path

import pytest

from colossal_llama.checkpoint.manifest import (
    FileRecord,
    all_files,
    find_faults,
    manifest_text,
    read_manifest,
    record_file,
    share_of_files,
    write_manifest,
)
from colossal_llama.checkpoint.verification import missing_parts
from colossal_llama.constants import MANIFEST_FILE

CONTENTS = {
    "modeling/model.safetensors": random.Random(1).randbytes(9_000_000),  # several blocks
    "modeling/config.json": b"{}",
    "optimizer/states.bin": bytes(1000),
    "running_states.json": b'{"manifest": "manifest.json"}',
    "empty": b"",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in CONTENTS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    write_manifest(tmp_path, {})
    return tmp_path


def faults_of(folder: Path) -> list[str]:
    files = read_manifest(folder)
    return find_faults(folder, files, files)


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << (at % 8)
    path.write_bytes(content)


def test_an_intact_folder_has_no_faults_and_every_file_is_described(folder: Path) -> None:
    assert set(read_manifest(folder)) == set(CONTENTS)
    assert read_manifest(folder)["modeling/model.safetensors"].size == 9_000_000
    assert faults_of(folder) == []
    assert missing_parts(folder) == []


@pytest.mark.parametrize("at", [0, 4_194_303, 4_194_304, 8_999_999])
def test_a_flipped_bit_is_found(folder: Path, at: int) -> None:
    flip(folder / "modeling/model.safetensors", at)
    (fault,) = faults_of(folder)
    assert fault.startswith("modeling/model.safetensors: its content is not what was written")


@pytest.mark.parametrize("name", [name for name, content in CONTENTS.items() if content])
def test_a_file_that_is_cut_or_missing_or_longer_is_found(folder: Path, name: str) -> None:
    path, size = folder / name, len(CONTENTS[name])
    path.write_bytes(CONTENTS[name][:-1])
    assert faults_of(folder) == [f"{name}: {size - 1} bytes instead of {size}"]
    path.write_bytes(CONTENTS[name] + b"x")
    assert faults_of(folder) == [f"{name}: {size + 1} bytes instead of {size}"]
    path.unlink()
    assert faults_of(folder) == [f"{name}: missing"]


def test_any_flipped_bit_of_the_manifest_itself_is_found(folder: Path) -> None:
    path = folder / MANIFEST_FILE
    good = path.read_bytes()
    for at in range(len(good)):
        flip(path, at)
        with pytest.raises(ValueError):
            read_manifest(folder)
        path.write_bytes(good)
    read_manifest(folder)


def test_a_manifest_of_a_later_kind_says_so(folder: Path) -> None:
    path = folder / MANIFEST_FILE
    path.write_text(path.read_text(encoding="utf-8").replace("xxh3_128", "sha256"), encoding="utf-8")
    with pytest.raises(ValueError, match="checksums of the kind 'sha256'"):
        read_manifest(folder)


def test_a_lost_manifest_is_missed_where_there_was_one(folder: Path) -> None:
    (folder / MANIFEST_FILE).unlink()
    assert missing_parts(folder) == ["manifest.json: missing"]
    (folder / "running_states.json").write_bytes(b'{"step": 1}')
    assert missing_parts(folder) == []
    (folder / "running_states.json").write_bytes(b"{")
    assert missing_parts(folder)[0].startswith("running_states.json: damaged")
    (folder / "running_states.json").unlink()
    assert missing_parts(folder) == ["running_states.json: missing"]


def test_records_that_are_known_are_not_read_again(folder: Path) -> None:
    known = {"empty": FileRecord(7, "from elsewhere")}
    write_manifest(folder, known)
    assert read_manifest(folder)["empty"] == known["empty"]
    assert read_manifest(folder)["modeling/config.json"] == record_file(folder / "modeling/config.json")
    assert folder / MANIFEST_FILE not in all_files(folder)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_ranks_share_the_files_and_their_bytes(ranks: int) -> None:
    sizes = random.Random(ranks)
    files = {f"file-{number}": FileRecord(sizes.randrange(1, 1000), "") for number in range(60)}
    shares = [share_of_files(files, rank, ranks) for rank in range(ranks)]
    assert sorted(name for share in shares for name in share) == sorted(files)
    loads = [sum(files[name].size for name in share) for share in shares]
    assert max(loads) - min(loads) < 1000
    assert manifest_text(files) == manifest_text(dict(reversed(files.items())))
