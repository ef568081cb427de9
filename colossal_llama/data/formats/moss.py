"""MOSS's conversations, in the three shapes in which they were published."""

import re
from typing import Any

from colossal_llama.data.formats.conversations import SYSTEM_FIELDS, conversation, conversation_fields, system_text
from colossal_llama.data.formats.field_use import TURN_REFUSED, FieldUse, reads
from colossal_llama.data.formats.fields import (
    UNKNOWN_TYPE,
    WRONG_TYPE,
    array,
    has,
    optional_string,
    string,
    turn_field,
)
from colossal_llama.data.formats.loss_flags import LOSS_FLAGS, with_loss_flag
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
from colossal_llama.json_records import json_type

NO_TURN_MARKERS = "turns not marked"

_MOSS_MARKER = re.compile(
    r"^\s*(?:<\|(?:Human|MOSS|Inner Thoughts|Commands|Results|Tool Responses)\|>|\[(?:Human|MOSS)\])\s*:?\s*"
    r"|\s*<eo[a-z]>\s*$"
)
_MOSS_TURN = re.compile(
    r"\s*(?:<\|(?P<new>Human|MOSS)\|>|\[(?P<old>Human|MOSS)\])\s*:\s*(?P<text>.*?)\s*<eo[hma]>", re.DOTALL
)
_MOSS_PLUGIN_PARTS = (("Inner Thoughts", True), ("Commands", True), ("Tool Responses", False))


def is_moss(value: dict[str, Any]) -> bool:
    """Whether a record has one of MOSS's shapes."""
    if isinstance(value.get("chat"), dict):
        return any(re.fullmatch(r"turn_\d+", name) for name in value["chat"])
    entries = value.get("conversation")
    if isinstance(entries, list) and entries and isinstance(entries[0], dict):
        return has("human", "assistant")(entries[0])
    text = value.get("plain_text")
    return isinstance(text, str) and _MOSS_TURN.match(text) is not None


def parse_moss(record: Record, options: FormatOptions = NO_OPTIONS) -> Conversation | Dropped:
    """A MOSS conversation, in any of its shapes.

    ``{"chat": {"turn_1": {"Human", "MOSS"}}}`` (moss-003; calls of tools and thoughts are learned, the tools'
    answers are not), ``{"conversation": [{"human", "assistant"}]}``, or ``{"plain_text": "[Human]: ...<eoh>
    [MOSS]: ...<eoa>"}`` (moss-002). The markers are stripped; ``meta_instruction`` is the system text.

    Raises:
        RecordError: a field is missing or has the wrong type, or roles do not alternate.
    """
    fields = record.value
    if fields.get("chat") is not None:
        messages = _moss_chat(record, fields["chat"])
    elif fields.get("conversation") is not None:
        messages = _moss_pairs(record, array(record, "conversation", "turns"))
    else:
        messages = _moss_text(record, string(record, "plain_text"))
    system = system_text(record, None, (*_SYSTEM_FIELDS, *SYSTEM_FIELDS))
    return conversation(
        record, None if system is None else system.strip(), messages, optional_string(record, "category")
    )


_SYSTEM_FIELDS = ("meta_instruction", "prefix")
_TURN = reads(
    *("Human", "MOSS", *(name for name, _ in _MOSS_PLUGIN_PARTS), *LOSS_FLAGS),
    refused=TURN_REFUSED,
)
_PAIR = reads("human", "assistant", *LOSS_FLAGS, refused=TURN_REFUSED)
_CHAT_FIELDS = conversation_fields(*_SYSTEM_FIELDS, chat=FieldUse(every=_TURN))
_PAIRS_FIELDS = conversation_fields(*_SYSTEM_FIELDS, conversation=_PAIR)
_TEXT_FIELDS = conversation_fields(*_SYSTEM_FIELDS, "plain_text")


def moss_fields(value: dict[str, Any]) -> FieldUse:
    """What becomes of the fields of a record, by its shape."""
    if value.get("chat") is not None:
        return _CHAT_FIELDS
    return _TEXT_FIELDS if value.get("conversation") is None else _PAIRS_FIELDS


def _unmarked(text: str) -> str:
    return _MOSS_MARKER.sub("", text).strip()


def _moss_chat(record: Record, chat: Any) -> list[Message]:
    if not isinstance(chat, dict):
        raise RecordError(WRONG_TYPE, f"{record.where}: 'chat' must be an object of turns, found {json_type(chat)}")
    for name in chat:
        if not re.fullmatch(r"turn_\d+", name):
            raise RecordError(UNKNOWN_TYPE, f"{record.where}: 'chat' holds {name!r}; expected turn_1, turn_2, ...")
    messages = []
    for name in sorted(chat, key=lambda name: int(name.removeprefix("turn_"))):
        turn = chat[name]
        if turn is None:
            continue  # a column of a parquet file, for longer conversations than this one
        place = f"{record.where}: {name}"
        messages.append(Message(HUMAN, _unmarked(turn_field(place, turn, "Human"))))
        segments = []
        for part, learn in _MOSS_PLUGIN_PARTS:
            text = _unmarked(turn_field(place, turn, part)) if turn.get(part) is not None else ""
            if text not in ("", "None"):
                segments.append((f"{text}\n", learn))
        segments.append((_unmarked(turn_field(place, turn, "MOSS")), True))
        messages.append(with_loss_flag(place, turn, Message.of_segments(segments)))
    return messages


def _moss_pairs(record: Record, turns: list[Any]) -> list[Message]:
    messages = []
    for number, turn in enumerate(turns, start=1):
        place = f"{record.where}: turn {number}"
        question, answer = (_unmarked(turn_field(place, turn, name)) for name in ("human", "assistant"))
        messages += [Message(HUMAN, question), with_loss_flag(place, turn, Message(ASSISTANT, answer))]
    return messages


def _moss_text(record: Record, text: str) -> list[Message]:
    messages, position = [], 0
    while found := _MOSS_TURN.match(text, position):
        role = HUMAN if (found["new"] or found["old"]) == "Human" else ASSISTANT
        messages.append(Message(role, found["text"]))
        position = found.end()
    rest = text[position:].strip()
    if rest:
        raise RecordError(
            NO_TURN_MARKERS,
            f"{record.where}: 'plain_text' has {rest[:40]!r} behind turn {len(messages)}; expected "
            "[Human]: ...<eoh> [MOSS]: ...<eoa>",
        )
    return messages
