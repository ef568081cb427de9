"""Instructions with an answer: Alpaca's, BELLE's with earlier turns in the instruction, LeetCode's problems."""

import re
from typing import Any

from colossal_llama.data.formats.conversations import conversation, conversation_fields, exchange
from colossal_llama.data.formats.field_use import FieldUse
from colossal_llama.data.formats.fields import MISSING_FIELD, WRONG_TYPE, array, has, joined, optional_string, string
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
    return conversation(record, None, messages, optional_string(record, "category"))


ALPACA_FIELDS = conversation_fields("instruction", "input", "output", "history")
BELLE_FIELDS = conversation_fields("instruction", "input", "output")
_BELLE_MARKER = re.compile(r"^[ \t]*(Human|Assistant)[ \t]*[:：]", re.MULTILINE)


def is_alpaca(value: dict[str, Any]) -> bool:
    """Whether the fields are those of Alpaca, which BELLE has too."""
    return has("instruction", "output")(value)


def is_marked(value: dict[str, Any]) -> bool:
    """Whether the instruction marks its turns as BELLE does."""
    instruction = value.get("instruction")
    found = _BELLE_MARKER.search(instruction) if isinstance(instruction, str) else None
    return found is not None and found[1] == "Human" and not found.string[: found.start()].strip()


def alpaca_fields(value: dict[str, Any]) -> FieldUse:
    """What becomes of the fields of a record of Alpaca's or BELLE's."""
    return BELLE_FIELDS if is_marked(value) else ALPACA_FIELDS


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


LEETCODE_FIELDS = conversation_fields("code_with_problem", "code_only", "explanation_only")

_CODE_FENCE = "```"


def parse_leetcode(record: Record, options: FormatOptions = NO_OPTIONS) -> Conversation | Dropped:
    """A LeetCode problem: ``{"code_with_problem", "code_only", "explanation_only"}``, as ModelLink trains on it.

    The text before the first code fence of ``code_with_problem`` is the question; the code and below it the explanation
    are the answer.

    Raises:
        RecordError: a field is missing or has the wrong type, or there is no text before the code.
    """
    problem = string(record, "code_with_problem").partition(_CODE_FENCE)[0].strip()
    if not problem:
        raise RecordError(
            MISSING_FIELD, f"{record.where}: 'code_with_problem' has no text before its code ({_CODE_FENCE})"
        )
    answer = joined(string(record, "code_only"), string(record, "explanation_only"))
    return conversation(record, None, exchange(problem, answer), optional_string(record, "category"))
