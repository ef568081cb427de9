"""Reading JSON and text files strictly, and what the file system refuses, as one line each."""

import errno
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from colossal_llama.atomic import atomic_directory, refuse_existing, refuse_existing_file
from colossal_llama.errors import UserError, run_command, system_error
from colossal_llama.json_files import build_dataclass, read_json_file, read_json_lines, read_json_object, read_text_file


@dataclass
class Inner:
    count: int
    share: float


@dataclass
class Outer:
    name: str
    whole: bool
    inner: list[Inner]
    by_name: dict[str, int]
    settings: dict[str, Any]
    maybe: Inner | None
    more: dict[str, str] = field(default_factory=dict)


WHOLE = Outer("a", True, [Inner(1, 0.5), Inner(2, 1)], {"x": 1}, {"y": [None]}, None)


def test_dataclasses_come_back_with_their_types_checked() -> None:
    content = json.loads(json.dumps(asdict(WHOLE)))
    assert build_dataclass(Outer, content) == WHOLE
    del content["more"]
    assert build_dataclass(Outer, content) == WHOLE
    assert build_dataclass(Outer, content | {"maybe": {"count": 1, "share": 2}}).maybe == Inner(1, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 7}, "name must be a string, found a number"),
        ({"whole": 1}, "whole must be true or false, found a number"),
        ({"inner": {}}, "inner must be an array, found an object"),
        ({"inner": [{"count": 1}]}, r"the field inner\[0\]\.share is missing"),
        ({"inner": [{"count": 1.5, "share": 1}]}, r"inner\[0\]\.count must be a number, found a number"),
        ({"inner": [{"count": True, "share": 1}]}, r"inner\[0\]\.count must be a number, found a boolean"),
        ({"by_name": {"x": "1"}}, r"by_name\.x must be a number, found a string"),
        ({"maybe": 3}, "maybe must be an object, found a number"),
        ({"other": 3}, "the field other is unknown"),
        ({"name": None}, "name must be a string, found null"),
    ],
)
def test_wrong_fields_are_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_dataclass(Outer, json.loads(json.dumps(asdict(WHOLE))) | change)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"not valid JSON \(it is empty\); mend it"),
        (b'{"a": ', "not valid JSON .*; mend it"),
        (b"[" * 100_000, r"not valid JSON \(nested too deeply\); mend it"),
        (b'{"a": "\xff"}', r"not UTF-8 \(byte 0xff at byte 8\); mend it"),
        (b"[1]", "expected a JSON object, found an array; mend it"),
        (b"null", "expected a JSON object, found null; mend it"),
    ],
)
def test_damaged_json_is_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=f"^--flag a: {message}$"):
        read_json_object(tmp_path / "a.json", "--flag a", "mend it")


def test_what_is_no_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    for name, reason in (("gone", "no such file"), ("link", "is a link to a file that is missing"), ("", "cannot be")):
        with pytest.raises(UserError, match=f"^{tmp_path / name}: {reason}"):
            read_json_file(tmp_path / name)


def test_a_byte_order_mark_and_torn_last_lines_are_taken(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b'\xef\xbb\xbf{"a": 1}\n{"a": 2}\n{"a": ')
    assert read_text_file(tmp_path / "a").startswith("{")
    assert read_json_lines(tmp_path / "a") == [{"a": 1}, {"a": 2}]
    (tmp_path / "a").write_bytes(b'{"a": 1}\n\0\0\0\n')
    with pytest.raises(UserError, match=r"a:2: not valid JSON .*; delete the line, or move the file away$"):
        read_json_lines(tmp_path / "a")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "a"), "a: Permission denied: check the permissions"),
        (OSError(errno.ENOSPC, "No space left", b"a"), "a: No space left: make room"),
        (OSError(errno.EFBIG, "File too large"), "a file cannot be written (File too large: make room"),
    ],
)
def test_refusals_of_the_file_system_are_one_line(
    error: OSError, line: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)

    def fail() -> None:
        raise error

    assert run_command(fail) == 2
    printed = capfd.readouterr().err
    assert printed.count("\n") == 1
    assert printed.startswith(f"error: {line}")


@pytest.mark.parametrize("error", [ConnectionResetError(errno.ECONNRESET, "reset"), OSError("no number"), KeyError(1)])
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        run_command(fail)


def test_errors_of_libraries_in_rust_are_the_systems() -> None:
    found = system_error(Exception("I/O error: No space left on device (os error 28)"))
    assert found is not None
    assert found.errno == errno.ENOSPC
    assert system_error(ValueError("nothing of the system")) is None


@pytest.mark.parametrize("where", ["in it", "in a file that is copied there", "in a library"])
def test_a_full_disk_leaves_no_folder_and_names_it(where: str, tmp_path: Path) -> None:
    target = tmp_path / "new" / "target"

    def fill() -> None:
        with atomic_directory(target) as scratch:
            (scratch / "file").write_text("half")
            if where == "in a library":
                raise Exception("No space left on device (os error 28)")
            name = str(scratch / "file") if where == "in it" else "/elsewhere/source"
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)

    with pytest.raises(UserError, match=f"^{target}: cannot be written .*make room"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_read_is_not_said_to_be_unwritable(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), atomic_directory(tmp_path / "target"):
        raise PermissionError(errno.EACCES, "Permission denied", "/elsewhere/source")


def test_outputs_below_a_file_are_refused_before_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for refuse in (refuse_existing, refuse_existing_file):
        with pytest.raises(UserError, match=f"--flag.* {tmp_path / 'file'}.*is a file; give another folder"):
            refuse(tmp_path / "file" / "target", "--flag", False)
