"""Conversations in files: one line of JSON, ``{"messages": [{"role", "content"}, ...]}``.

That is a record which ``prepare_sft_dataset.py`` reads, when the file's name ends in .jsonl.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from colossal_llama.atomic import atomic_file
from colossal_llama.data.formats.conversations import parse_dialogue
from colossal_llama.data.formats.parsed import HUMAN
from colossal_llama.data.readers import Record
from colossal_llama.errors import UserError
from colossal_llama.generation.prompt_file import CHAT_ROLES
from colossal_llama.json_records import parse_line


def conversation_line(messages: Sequence[dict[str, str]]) -> str:
    """A conversation as one line of JSON."""
    return json.dumps({"messages": list(messages)}, ensure_ascii=False)


def save_conversation(path: Path, messages: Sequence[dict[str, str]]) -> None:
    """Write a conversation; an older one in the same file is replaced, any other file is kept.

    Raises:
        UserError: the file holds something else, or cannot be written.
    """
    try:
        exists = path.exists()
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another name") from error
    if exists:
        try:
            load_conversation(path)
        except UserError as error:
            raise UserError(f"{path}: exists and is no conversation; choose another name") from error
    with atomic_file(path) as file:
        file.write(conversation_line(messages) + "\n")


def load_conversation(path: Path) -> list[dict[str, str]]:
    """The messages of a file that :func:`save_conversation` wrote, an optional system message first.

    A question without its answer at the end is cut.

    Raises:
        UserError: there is no such file, or it holds no conversation.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    system, messages = parse_dialogue(Record(str(path), 1, parse_line(raw, f"{path}:1")))
    if messages and messages[-1].role == HUMAN:
        messages = messages[:-1]
    start = [] if system is None else [{"role": "system", "content": system}]
    return start + [{"role": CHAT_ROLES[message.role], "content": message.content} for message in messages]
