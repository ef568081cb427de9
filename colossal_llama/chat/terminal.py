"""Chat on a terminal, or with questions out of a pipe."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from colossal_llama.chat.files import load_conversation, save_conversation
from colossal_llama.chat.session import ChatSession, describe_dropped
from colossal_llama.errors import UserError
from colossal_llama.html_page import printable

PROMPT = ">>> "


class _LeaveError(Exception):
    """``/exit``."""


@dataclass(frozen=True)
class Command:
    """What a line that begins with a slash does.

    Attributes:
        run: takes the text behind the command's name and returns what to print.
        argument: what the help calls that text; "" where there is none.
        help: one line.
    """

    run: Callable[[str], str]
    argument: str
    help: str


class TerminalChat:
    """Reads questions and commands line by line and prints the answers as they are written.

    Answers go to the standard output, everything else to the standard error output.

    Args:
        session: the conversation.
        interactive: a person types: show a prompt, let lines be edited, and explain the commands.
    """

    def __init__(self, session: ChatSession, interactive: bool) -> None:
        self._session = session
        self._interactive = interactive
        self.commands = {
            "/clear": Command(self._clear, "", "forget the conversation"),
            "/save": Command(self._save, "FILE", "write the conversation to a file"),
            "/load": Command(self._load, "FILE", "go on from a saved conversation"),
            "/system": Command(self._set_system, "TEXT", "set the system message; without a text show it"),
            "/help": Command(self._help, "", "list the commands"),
            "/exit": Command(self._exit, "", "leave, as the end of the input does"),
        }

    def run(self) -> None:
        """Chat until ``/exit``, the end of the input, or Ctrl-C while nothing is typed or answered."""
        if self._interactive:
            _tell("/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves.")
        try:
            for line in self._lines():
                self._take(line)
        except (_LeaveError, KeyboardInterrupt):
            pass

    def _lines(self) -> Iterator[str]:
        if not self._interactive:
            sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
            yield from sys.stdin
            return
        _edit_lines()
        while True:
            try:
                yield input(PROMPT)
            except KeyboardInterrupt:
                _tell("\n/exit or Ctrl-D leaves.")
            except EOFError:
                print(flush=True)
                return

    def _take(self, line: str) -> None:
        # Without a locale Python hands over bytes that are not UTF-8 as lone surrogates, which no tokenizer takes.
        text = line.strip().encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        if not text:
            return
        try:
            if text.startswith("/"):
                self._command(text)
            else:
                self._answer(text)
        except UserError as error:
            _tell(f"error: {error}")

    def _command(self, text: str) -> None:
        name, _, argument = text.partition(" ")
        command = self.commands.get(name)
        if command is None:
            raise UserError(f"{name}: no such command; /help lists them")
        if argument.strip() and not command.argument:
            raise UserError(f"{name} takes nothing behind it")
        said = command.run(argument.strip())
        if said:
            _tell(said)

    def _answer(self, question: str) -> None:
        with _interrupt_calls(self._session.stop):
            answer = self._session.ask(question)
            if answer.dropped_turns:
                _tell(f"({describe_dropped(answer.dropped_turns)})")
            for piece in answer:
                print(printable(piece), end="", flush=True)
        print(flush=True)

    def _clear(self, argument: str) -> str:
        self._session.clear()
        return "(forgotten)"

    def _save(self, argument: str) -> str:
        messages = self._session.messages
        save_conversation(_named_file("/save", argument), messages)
        return f"({len(messages)} messages written to {argument})"

    def _load(self, argument: str) -> str:
        messages = load_conversation(_named_file("/load", argument))
        self._session.replace(messages)
        return f"({len(messages)} messages read from {argument})"

    def _set_system(self, argument: str) -> str:
        if argument:
            self._session.system = argument
            return "(system message set)"
        return self._session.system or "(no system message)"

    def _help(self, argument: str) -> str:
        entries = [(f"{name} {command.argument}".strip(), command.help) for name, command in self.commands.items()]
        return "\n".join(f"{usage:<14} {text}" for usage, text in entries)

    def _exit(self, argument: str) -> str:
        raise _LeaveError


def _tell(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)


def _named_file(command: str, argument: str) -> Path:
    if not argument:
        raise UserError(f"{command}: name a file")
    if "\0" in argument:
        raise UserError(f"{command}: no file's name holds a null character; choose another name")
    try:
        return Path(argument).expanduser()
    except RuntimeError as error:
        raise UserError(f"{command} {argument}: no such user's home; name the file in another way") from error


def _edit_lines() -> None:
    """Let ``input`` edit lines and recall earlier ones, where Python has readline."""
    try:
        import readline  # noqa: F401 (importing it is what does it)
    except ImportError:
        return


@contextmanager
def _interrupt_calls(stop: Callable[[], None]) -> Iterator[None]:
    """Let Ctrl-C call ``stop`` instead of raising KeyboardInterrupt."""
    before = signal.signal(signal.SIGINT, lambda number, frame: stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
