"""The chat on a terminal: Ctrl-C in the middle of an answer, and questions out of a pipe."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from colossal_llama.commands.chat import main
from tests.helpers.chat_model import save_chat_model

ROOT = Path(__file__).resolve().parents[2]
ENDLESS = ("--do_sample", "false", "--max_new_tokens", "90000")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture
def endless(model_dir: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A chat whose answers take minutes, with pipes for its three streams."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "chat.py"), str(model_dir), *ENDLESS, "--device", "cpu"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(timeout=30)


def test_ctrl_c_ends_the_answer_and_not_the_program(endless: subprocess.Popen[bytes], tmp_path: Path) -> None:
    assert endless.stdin is not None
    assert endless.stdout is not None
    endless.stdin.write(b"Tell me all.\n")
    endless.stdin.flush()
    shown = endless.stdout.read(40)
    endless.send_signal(signal.SIGINT)
    rest, errors = endless.communicate(b"/save talk.json\n/nonsense\n", timeout=120)
    assert endless.returncode == 0, errors.decode()
    messages = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"]
    assert len(messages[1]["content"]) < 200_000
    assert (shown + rest).count(b"\n") >= 1
    assert b"error: /nonsense: no such command; /help lists them" in errors
    assert b"Traceback" not in errors


def run(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str
) -> tuple[str, str]:
    """What a chat with these lines as its input prints and reports."""
    read, write = os.pipe()
    os.write(write, text.encode())
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main([str(model_dir), "--device", "cpu", "--do_sample", "false", "--max_new_tokens", "8"]) == 0
    printed = capsys.readouterr()
    return printed.out, printed.err


def test_commands_between_questions(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    first, _ = run(model_dir, monkeypatch, capsys, "Who?\n")
    out, err = run(
        model_dir,
        monkeypatch,
        capsys,
        "Who?\n/save a.json\n\n/system\n/system Be brief.\n/system\n/clear\nWho?\n/save b.json\n/load a.json\n"
        "/save c.json\n/save\n/clear now\n/load gone.json\n/help\n/exit\nnever read\n",
    )
    assert first
    assert out.startswith(first)
    saved = [json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))["messages"] for name in "abc"]
    assert saved[0] == saved[2]
    assert [message["role"] for message in saved[1]] == ["system", "user", "assistant"]
    assert saved[1][0]["content"] == "Be brief."
    for said in (
        "(2 messages written to a.json)",
        "(no system message)",
        "(system message set)\nBe brief.\n(forgotten)",
        "(2 messages read from a.json)",
        "error: /save: name a file",
        "error: /clear takes nothing behind it",
        "error: gone.json: cannot be read",
        "/system TEXT   set the system message",
    ):
        assert said in err


def test_answers_cannot_command_the_terminal(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = run(model_dir, monkeypatch, capsys, "Who?\nAnd?\nSo?\nWhy?\n")
    assert not [character for character in out if ord(character) < 32 and character not in "\n\t"]


def test_a_full_context_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = save_chat_model(tmp_path / "small", context=100)
    out, err = run(small, monkeypatch, capsys, "Who?\n" * 5 + "long " * 100 + "\nWho?\n")
    assert "(the oldest question and its answer were dropped: the conversation is longer" in err
    assert "error: the message makes a prompt of" in err
    assert len(out.splitlines()) >= 6
