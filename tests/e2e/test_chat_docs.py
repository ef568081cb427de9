"""The commands of docs/chat.md, run as they stand on tiny models."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from colossal_llama.commands import chat, inference
from colossal_llama.config.chat import ChatConfig
from colossal_llama.config.cli import parse_config
from tests.helpers.chat_model import save_chat_model
from tests.helpers.tiny import save_tiny_model

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "chat.md").read_text(encoding="utf-8")
RECORDS = re.findall(r"^```json\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)[0]
MAINS = {"inference_example.py": inference.main, "scripts/chat.py": chat.main}


def commands() -> list[list[str]]:
    """Every command of the bash blocks, split into words; pipes are commands of their own."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    found: list[list[str]] = []
    for line in lines:
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, "|"]:
            if word == "|":
                found.append(words)
                words = []
            else:
                words.append(word)
    return [words for words in found if words and words[0] != "pip"]


def feed(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the standard input be a pipe with this text."""
    read, write = os.pipe()
    os.write(write, text.encode())
    os.close(write)
    monkeypatch.setattr(sys, "stdin", os.fdopen(read, encoding="utf-8"))


def run_python(script: str, flags: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if "--web" in flags:
        assert parse_config(ChatConfig, flags, "").host == "127.0.0.1"
    elif script in MAINS:
        assert MAINS[script](flags) == 0
    else:
        shorter = ["--turns", "2", "--answer_tokens", "3", "--repeat", "1", "--first_turns", "1"]
        monkeypatch.setattr(sys, "argv", [script, *flags, *shorter])
        runpy.run_path(str(ROOT / script), run_name="__main__")


def test_the_commands_do_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    variables = {"MODEL": save_chat_model(tmp_path / "chat"), "BASE_MODEL": save_tiny_model(tmp_path / "base")}
    (tmp_path / "questions.jsonl").write_text(RECORDS, encoding="utf-8")
    programs = []
    piped = "Who?\n"
    for name, *words in commands():
        flags = [re.sub(r"\$(\w+)", lambda match: str(variables[match[1]]), word) for word in words]
        if name == "export":
            assert words[0].partition("=")[0] in variables
        elif name == "printf":
            piped = words[0].encode().decode("unicode_escape")
        else:
            if name.startswith("OMP_NUM_THREADS="):
                name, *flags = flags
            assert name == "python"
            programs.append(flags[0])
            feed(piped, monkeypatch)
            run_python(flags[0], flags[1:], monkeypatch)
    assert programs.count("inference_example.py") == 3
    assert programs.count("scripts/chat.py") == 3
    assert [turn["turn"] for turn in json.loads((tmp_path / "latency.json").read_text())["turns"]] == [1, 2]
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [set(answer) - {"generated_text", "generated_tokens", "finish_reason"} for answer in answers] == [
        {"prompt"},
        {"input_txt"},
        {"messages"},
    ]
    printed = capsys.readouterr()
    assert printed.out.count("[answer]\n") == 2
    assert "error" not in printed.err


def test_the_table_of_commands_is_complete() -> None:
    from colossal_llama.chat.terminal import TerminalChat

    documented = set(re.findall(r"`(/[a-z]+)", TEXT.split("| command | does |")[1].split("\n\n")[0]))
    assert documented == set(TerminalChat(None, interactive=False).commands)  # type: ignore[arg-type]
