"""Lists of messages with roles (the project's own records, OpenAI's, ShareGPT's), and what all conversations share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from colossal_llama.data.formats.field_use import CONVERSATION_REFUSED, TURN_REFUSED, FieldUse, reads
from colossal_llama.data.formats.fields import MISSING_FIELD, UNKNOWN_ROLE, WRONG_TYPE, array, optional_string
from colossal_llama.data.formats.loss_flags import LOSS_FLAGS, LOSS_MASK, with_loss_flag, with_loss_mask
from colossal_llama.data.formats.parsed import (
    ASSISTANT,
    HUMAN,
    NO_OPTIONS,
    SYSTEM,
    Conversation,
    Dropped,
    FormatOptions,
    Message,
)
from colossal_llama.data.readers import Record
from colossal_llama.errors import RecordError
from colossal_llama.json_records import json_type

NO_MESSAGES = "no messages"
NO_ASSISTANT = "no assistant message"
EMPTY_ASSISTANT = "empty assistant content"
NO_LOSS = "no answer is to be learned"

NOT_ALTERNATING = "roles do not alternate"
NOT_TEXT = "content other than text"
NOT_A_CONVERSATION = "not a conversation"
CONTRADICTION = "fields contradict each other"

SYSTEM_FIELDS = ("system", "system_prompt")
"""Fields beside the turns that hold the system text."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """How the list ``name`` of messages is written.

    ``keys`` are pairs of the role's and the content's key; ``roles`` says for each role's key what its values mean.
    """

    name: str
    keys: tuple[tuple[str, str], ...]
    roles: Mapping[str, Mapping[str, str]]


# "developer" is what OpenAI's newer models call the system.
_OPENAI_ROLES = {"user": HUMAN, "assistant": ASSISTANT, "system": SYSTEM, "developer": SYSTEM}
_TOOL_ROLES = frozenset({"tool", "tools", "function", "function_call", "tool_call", "observation", "ipython"})
_MESSAGES = _Layout(
    "messages",
    (("from", "content"), ("role", "content")),
    {"from": {HUMAN: HUMAN, ASSISTANT: ASSISTANT, SYSTEM: SYSTEM}, "role": _OPENAI_ROLES},
)
_SHAREGPT = _Layout(
    "conversations",
    (("from", "value"), ("role", "content")),
    {
        "from": {HUMAN: HUMAN, "user": HUMAN, "gpt": ASSISTANT, ASSISTANT: ASSISTANT, SYSTEM: SYSTEM},
        "role": _OPENAI_ROLES,
    },
)


def _turn_lists(layout: _Layout) -> FieldUse:
    keys = {key for pair in layout.keys for key in pair}
    parts = reads("type", "text", refused=TURN_REFUSED)
    content = {key: parts for _, key in layout.keys}
    turns = reads(*keys, *LOSS_FLAGS, refused=TURN_REFUSED, **content)
    return conversation_fields(**{layout.name: turns})


def conversation_fields(*names: str, **inner: FieldUse) -> FieldUse:
    """The fields of a record that is a conversation: these, and what all conversations may have."""
    every = (*names, *SYSTEM_FIELDS, LOSS_MASK, "category")
    return reads(*every, refused=CONVERSATION_REFUSED, **inner)


MESSAGES_FIELDS = _turn_lists(_MESSAGES)
SHAREGPT_FIELDS = _turn_lists(_SHAREGPT)


def parse_conversation(record: Record, options: FormatOptions = NO_OPTIONS) -> Conversation | Dropped:
    """An SFT record: ``{"messages": [{"from": "human", "content": "..."}, {"from": "assistant", ...}]}``.

    Messages may also have ``role`` "user", "assistant", "system" or "developer", and a content that is a list of
    ``{"type": "text", "text": "..."}``. One leading system message is accepted, or a system text beside the messages.
    A last human message without an answer is cut. An answer may have a loss flag, see :mod:`.loss_flags`.

    Raises:
        RecordError: a field is missing or has the wrong type, a role is unknown, or the roles do not alternate.
    """
    if "messages" not in record.value and "target" in record.value:
        raise RecordError(
            NOT_A_CONVERSATION,
            f"{record.where}: this is a pretraining record ('target'), not a conversation; "
            "use prepare_pretrain_dataset.py for it",
        )
    return _parse_messages(record, _MESSAGES)


def parse_sharegpt(record: Record, options: FormatOptions = NO_OPTIONS) -> Conversation | Dropped:
    """A ShareGPT record: ``{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", ...}]}``.

    Raises:
        RecordError: as for :func:`parse_conversation`.
    """
    return _parse_messages(record, _SHAREGPT)


def parse_dialogue(record: Record) -> tuple[str | None, list[Message]]:
    """System text and messages of ``{"messages": [...]}`` as :func:`parse_conversation` reads them, whoever is last.

    Raises:
        RecordError: as for :func:`parse_conversation`.
    """
    MESSAGES_FIELDS.check(record, NO_OPTIONS)
    system, messages = _read_messages(record, _MESSAGES)
    _check_alternation(record, messages, _first_number(system))
    return system_text(record, system), messages


def _parse_messages(record: Record, layout: _Layout) -> Conversation | Dropped:
    system, messages = _read_messages(record, layout)
    return conversation(record, system, messages, optional_string(record, "category"), _first_number(system))


def _first_number(system: str | None) -> int:
    return 1 if system is None else 2


def system_text(record: Record, given: str | None, names: tuple[str, ...] = SYSTEM_FIELDS) -> str | None:
    """The system text of a record, None without one.

    Args:
        record: may have it in fields beside the turns.
        given: what its turns say.
        names: of these fields.

    Raises:
        RecordError: a field is no string, or two texts differ.
    """
    found, holder = given, "the system message"
    for name in names:
        if name not in record.value:
            continue
        text = optional_string(record, name)
        if not text.strip():
            continue
        if found is not None and found.strip() and found.strip() != text.strip():
            raise RecordError(
                CONTRADICTION, f"{record.where}: '{name}' and {holder} hold different system texts; keep one of them"
            )
        if found is None or not found.strip():
            found, holder = text, f"'{name}'"
    return found


def _read_messages(record: Record, layout: _Layout) -> tuple[str | None, list[Message]]:
    """The text of a leading system message, and the other messages."""
    entries = array(record, layout.name, "messages")
    messages = [_parse_message(record, number, entry, layout) for number, entry in enumerate(entries, start=1)]
    if messages and messages[0].role == SYSTEM:
        return messages[0].content, messages[1:]
    return None, messages


def _parse_message(record: Record, number: int, entry: Any, layout: _Layout) -> Message:
    place = f"{record.where}: message {number}"
    preferred = " and ".join(repr(key) for key in layout.keys[0])
    if not isinstance(entry, dict):
        raise RecordError(WRONG_TYPE, f"{place} must be an object with {preferred}, found {json_type(entry)}")
    # Columns of a parquet file are there but null where a record does not have them.
    found = [keys for keys in layout.keys if entry.get(keys[0]) is not None]
    role_key, content_key = found[0] if found else layout.keys[0]
    for name in (role_key, content_key):
        if name not in entry:
            raise RecordError(MISSING_FIELD, f"{place} has no '{name}'; expected the keys {preferred}")
    role = entry[role_key]
    if not isinstance(role, str):
        raise RecordError(WRONG_TYPE, f"{place}: '{role_key}' must be a string, found {json_type(role)}")
    content = _message_content(place, content_key, entry[content_key])
    roles = layout.roles[role_key]
    if role not in roles:
        known = " or ".join(repr(name) for name in roles if roles[name] != SYSTEM)
        tools = "; no chat template here shows calls of tools and their results" if role in _TOOL_ROLES else ""
        raise RecordError(UNKNOWN_ROLE, f"{place} is from {role!r}; expected {known}{tools}")
    if len(entry) > 2:  # nearly no message has more
        _refuse_second_meaning(place, entry, layout, (role_key, content_key), roles[role])
        return with_loss_flag(place, entry, Message(roles[role], content))
    return Message(roles[role], content)


def _refuse_second_meaning(
    place: str, entry: dict[str, Any], layout: _Layout, used: tuple[str, str], meaning: str
) -> None:
    """Refuse another role, or another text, under the keys that this message does not use."""
    for role_key, content_key in layout.keys:
        other = entry.get(role_key)
        if role_key != used[0] and other is not None and layout.roles[role_key].get(str(other)) != meaning:
            raise RecordError(CONTRADICTION, f"{place}: '{used[0]}' and '{role_key}' differ; keep one of them")
        text = entry.get(content_key)
        if content_key != used[1] and text not in (None, "", entry[used[1]]):
            raise RecordError(CONTRADICTION, f"{place}: '{used[1]}' and '{content_key}' differ; keep one of them")


def _message_content(place: str, key: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RecordError(WRONG_TYPE, f"{place}: '{key}' must be a string, found {json_type(content)}")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else json_type(part)
        if kind != "text" or not isinstance(part.get("text"), str):
            raise RecordError(
                NOT_TEXT, f"{place}: '{key}' holds a part of type {kind!r}; expected parts of type 'text' only"
            )
        texts.append(part["text"])
    return "".join(texts)


def conversation(
    record: Record, system: str | None, messages: list[Message], category: str, first_number: int = 1
) -> Conversation | Dropped:
    """A conversation of these messages, after the checks that all formats have in common.

    Args:
        record: where it comes from, for messages.
        system: text of the system message; the record may have it beside its turns instead.
        messages: without the system message.
        category: of the record.
        first_number: what the first of ``messages`` is called in messages.

    Raises:
        RecordError: human and assistant do not alternate, human first, or there are two system texts.
    """
    _check_alternation(record, messages, first_number)
    system = system_text(record, system)
    messages = with_loss_mask(record, messages, first_number - 1)
    if not messages:
        return Dropped(NO_MESSAGES)
    trailing = messages[-1].role == HUMAN
    if trailing:
        messages = messages[:-1]
    if not messages:
        return Dropped(NO_ASSISTANT)
    answers = [message for message in messages if message.role == ASSISTANT]
    if any(message.has_loss and not message.learned_text.strip() for message in answers):
        return Dropped(EMPTY_ASSISTANT)
    if not any(message.has_loss for message in answers):
        return Dropped(NO_LOSS)
    return Conversation(system, tuple(messages), category, trailing)


def _check_alternation(record: Record, messages: list[Message], first_number: int) -> None:
    for position, message in enumerate(messages):
        expected = (HUMAN, ASSISTANT)[position % 2]
        if message.role != expected:
            raise RecordError(
                NOT_ALTERNATING,
                f"{record.where}: message {first_number + position} is from {message.role!r}, expected "
                f"{expected!r}; human and assistant must alternate, human first",
            )


def exchange(question: str, answer: str) -> list[Message]:
    """A human's message and the answer."""
    return [Message(HUMAN, question), Message(ASSISTANT, answer)]
