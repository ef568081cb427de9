"""The chat on a terminal: Ctrl-C in the middle of an answer, and questions out of a pipe."""

from __future__ import annotations

import fcntl
import json
import os
import select
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from colossal_llama.chat.terminal import PROMPT, TerminalChat
from colossal_llama.commands.chat import load_sessions, main
from colossal_llama.config.chat import ChatConfig
from colossal_llama.config.cli import parse_config
from tests.helpers.chat_model import save_chat_model

ROOT = Path(__file__).resolve().parents[2]
GREEDY = ("--do_sample", "false")
ENDLESS = (*GREEDY, "--max_new_tokens", "90000")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("chat") / "model")


class Terminal:
    """A program on a pseudo terminal, and all that it has written there."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self._end, other_end = os.openpty()
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TERM": "dumb"},
            stdin=other_end,
            stdout=other_end,
            stderr=other_end,
            preexec_fn=self._own_the_terminal,
        )
        os.close(other_end)
        self.screen = ""

    @staticmethod
    def _own_the_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C becomes a signal

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def wait_for(self, done: Callable[[str], bool], seconds: float = 120) -> None:
        """Read what the program writes until ``done`` says that the screen shows enough."""
        deadline = time.monotonic() + seconds
        while not done(self.screen):
            ready, _, _ = select.select([self._end], [], [], deadline - time.monotonic())
            assert ready, self.screen
            try:
                self.screen += os.read(self._end, 65536).decode(errors="replace")
            except OSError:  # the program has ended
                assert done(self.screen), self.screen
                return

    def wait_until_it_waits(self) -> None:
        """Return when the program has slept for a while: it waits for a key.

        Python's input() sees a signal only while it waits for a key, which it does not yet do when it shows the prompt
        or echoes the key before; people are slower than that.
        """
        asleep = 0
        while asleep < 10:
            state = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
            asleep = asleep + 1 if state == "S" else 0
            time.sleep(0.02)

    def close(self) -> None:
        self.process.kill()
        self.process.wait(timeout=30)
        os.close(self._end)


@pytest.fixture
def terminal(model_dir: Path, tmp_path: Path) -> Iterator[Terminal]:
    """A chat whose answers take minutes."""
    script = str(ROOT / "scripts" / "chat.py")
    opened = Terminal([sys.executable, script, str(model_dir), *ENDLESS, "--device", "cpu"], tmp_path)
    try:
        yield opened
    finally:
        opened.close()


def test_ctrl_c_ends_the_answer_and_not_the_program(terminal: Terminal, tmp_path: Path) -> None:
    terminal.wait_for(lambda screen: screen.count(PROMPT) == 1)
    terminal.type("Tell me all.\n")
    written = len(terminal.screen) + 100
    terminal.wait_for(lambda screen: len(screen) > written)
    terminal.type("\x03")
    terminal.wait_for(lambda screen: screen.count(PROMPT) == 2)
    terminal.type("half a line")
    terminal.wait_for(lambda screen: "half a line" in screen)
    terminal.wait_until_it_waits()
    terminal.type("\x03")
    terminal.wait_for(lambda screen: PROMPT in screen.partition("/exit or Ctrl-D leaves.")[2])
    terminal.type("/save talk.json\n")
    terminal.wait_for(lambda screen: PROMPT in screen.partition("(2 messages written to talk.json)")[2])
    terminal.type("\x04")
    assert terminal.process.wait(timeout=60) == 0
    messages = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"]
    assert messages[0]["content"] == "Tell me all."
    assert 0 < len(messages[1]["content"]) < 200_000
    assert "Traceback" not in terminal.screen


def run(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, *flags: str
) -> tuple[str, str]:
    """What a chat with these lines as its input prints and reports."""
    read, write = os.pipe()
    os.write(write, text.encode())
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main([str(model_dir), "--device", "cpu", "--max_new_tokens", "8", *(flags or GREEDY)]) == 0
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


def test_files_that_cannot_be_named_leave_the_chat_running(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "a" * 300
    out, err = run(
        model_dir, monkeypatch, capsys, f"/save {long}\n/load {long}\n/save ~nobody-here/a\n/save a\0b\nWho?\n"
    )
    for said in (
        f"error: {long}: cannot be written (File name too long)",
        f"error: {long}: cannot be read (File name too long)",
        "error: /save ~nobody-here/a: no such user's home",
        "error: /save: no file's name holds a null character",
    ):
        assert said in err
    assert out.strip()


def test_bytes_that_are_not_utf_8_are_replaced(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    session = load_sessions(
        parse_config(ChatConfig, [str(model_dir), "--device", "cpu", "--max_new_tokens", "4"], "")
    )()
    typed = iter(("caf\udce9?", "/save talk.json"))  # as input() gives them without a locale

    def type_next(prompt: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", type_next)
    TerminalChat(session, interactive=True).run()
    assert json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))["messages"][0]["content"] == "caf\ufffd?"
    assert main([str(model_dir), "--system", "caf\udce9"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: --system: not UTF-8; give the text in UTF-8"


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


def test_the_seed_gives_the_same_chat_again(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--temperature", "5", "--top_k", "0", "--top_p", "1", "--seed")
    chats = [run(model_dir, monkeypatch, capsys, "Who?\nWho?\n", *flags, seed)[0] for seed in ("1", "1", "2")]
    assert chats[0] == chats[1] != chats[2]
