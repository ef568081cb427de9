"""Instructions with an answer: Alpaca's records and BELLE's, whose instruction can hold earlier turns."""

import re
from typing import Any

from colossal_llama.data.formats.conversations import conversation, exchange
from colossal_llama.data.formats.fields import WRONG_TYPE, array, has, joined, optional_string, string
from colossal_llama.data.formats.parsed import (
    ASSISTANT,
    HUMAN,
    NO_OPTIONS,
    Conversation,
    Dropped,
    FormatOptions,
    Message,
)
from colossal_llama.data.readers import Record
from colossal_llama.errors import RecordError


def parse_alpaca(record: Record, options: FormatOptions = NO_OPTIONS) -> Conversation | Dropped:
    """An Alpaca record: ``{"instruction", "input", "output"}``, optionally ``history`` and ``system``.

    The input stands below the instruction. ``history`` is a list of earlier (instruction, output) pairs.

    Raises:
        RecordError: a field is missing or has the wrong type.
    """
    messages: list[Message] = []
    history = [] if record.value.get("history") is None else array(record, "history", "pairs")
    for number, pair in enumerate(history, start=1):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise RecordError(
                WRONG_TYPE, f"{record.where}: entry {number} of 'history' must be an array of two strings"
            )
        messages += exchange(*pair)
    question = joined(string(record, "instruction"), optional_string(record, "input"))
    messages += exchange(question, string(record, "output"))
    system = optional_string(record, "system") or None
    return conversation(record, system, messages, optional_string(record, "category"))


_BELLE_MARKER = re.compile(r"^[ \t]*(Human|Assistant)[ \t]*[:：]", re.MULTILINE)


def is_alpaca(value: dict[str, Any]) -> bool:
    """Whether the fields are those of Alpaca, which BELLE has too."""
    return has("instruction", "output")(value)


def is_marked(value: dict[str, Any]) -> bool:
    """Whether the instruction marks its turns as BELLE does."""
    instruction = value.get("instruction")
    return isinstance(instruction, str) and instruction.lstrip().startswith(("Human:", "Human："))


def parse_belle(record: Record, options: FormatOptions = NO_OPTIONS) -> Conversation | Dropped:
    """A BELLE conversation: turns marked "Human:" and "Assistant:" in ``instruction``, last answer in ``output``.

    Markers count at the beginning of a line. A record without them is read like :func:`parse_alpaca`.

    Raises:
        RecordError: a field is missing or has the wrong type, or the marked turns do not alternate.
    """
    if not is_marked(record.value):
        return parse_alpaca(record, options)
    text = joined(string(record, "instruction"), optional_string(record, "input"))
    pieces = _BELLE_MARKER.split(text)
    roles = {"Human": HUMAN, "Assistant": ASSISTANT}
    messages = [
        Message(roles[marker], content.strip()) for marker, content in zip(pieces[1::2], pieces[2::2], strict=True)
    ]
    if messages[-1].role == ASSISTANT and not messages[-1].content:
        messages.pop()  # the marker that asks for the output
    messages.append(Message(ASSISTANT, string(record, "output").strip()))
    return conversation(record, None, messages, optional_string(record, "category"))
