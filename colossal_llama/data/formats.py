"""What a record means: pretraining texts and conversations, checked field by field.

A record of the wrong shape stops the preparation (:class:`UserError` with ``file:line``). A well-formed
record that holds nothing to learn is a :class:`Dropped` with its reason, which is counted and reported.
"""

from dataclasses import dataclass
from typing import Any

from colossal_llama.data.readers import Record
from colossal_llama.errors import UserError
from colossal_llama.json_records import json_type

EMPTY_TARGET = "empty target"
NO_MESSAGES = "no messages"
NO_ASSISTANT = "no assistant message"
EMPTY_ASSISTANT = "empty assistant content"

HUMAN = "human"
ASSISTANT = "assistant"
SYSTEM = "system"


@dataclass(frozen=True, slots=True)
class Sample:
    """A pretraining text: no loss on ``source`` (may be empty), loss on ``target``."""

    source: str
    target: str
    category: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message; ``role`` is "human" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages that alternate human, assistant, ... and end with the assistant.

    ``system`` is the content of a leading system message, None without one. ``trailing_human`` says that a
    last, unanswered human message was cut.
    """

    system: str | None
    messages: tuple[Message, ...]
    category: str
    trailing_human: bool = False


@dataclass(frozen=True, slots=True)
class Dropped:
    """A well-formed record without anything to learn."""

    reason: str


def parse_pretrain(record: Record) -> Sample | Dropped:
    """A pretraining record: ``{"source": "", "target": "text", "category": "tag"}``.

    ``source`` and ``category`` may be absent or null; unknown fields are ignored.

    Raises:
        UserError: ``target`` is missing or any field has the wrong type.
    """
    fields = record.value
    if "target" not in fields:
        if "messages" in fields:
            raise UserError(
                f"{record.where}: this is a conversation ('messages'), not a pretraining record; "
                "use prepare_sft_dataset.py for it"
            )
        raise UserError(f"{record.where}: the field 'target' is missing; expected a string")
    target = fields["target"]
    if not isinstance(target, str):
        raise UserError(f"{record.where}: 'target' must be a string, found {json_type(target)}")
    source = _optional_string(record, "source")
    category = _optional_string(record, "category")
    if not target.strip():
        return Dropped(EMPTY_TARGET)
    return Sample(source, target, category)


def _optional_string(record: Record, name: str) -> str:
    value = record.value.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{record.where}: '{name}' must be a string, found {json_type(value)}")
    return value


def parse_conversation(record: Record) -> Conversation | Dropped:
    """An SFT record: ``{"messages": [{"from": "human", "content": "..."}, {"from": "assistant", ...}]}``.

    One leading ``{"from": "system"}`` message is accepted. A last human message without an answer is cut.

    Raises:
        UserError: a field is missing or has the wrong type, a role is unknown, or the roles do not alternate.
    """
    entries = _message_list(record)
    category = _optional_string(record, "category")
    messages = [_parse_message(record, number, entry) for number, entry in enumerate(entries, start=1)]
    system = None
    if messages and messages[0].role == SYSTEM:
        system = messages.pop(0).content
    _check_alternation(record, messages, first_number=1 if system is None else 2)
    if not messages:
        return Dropped(NO_MESSAGES)
    trailing = messages[-1].role == HUMAN
    if trailing:
        messages.pop()
    if not messages:
        return Dropped(NO_ASSISTANT)
    if any(message.role == ASSISTANT and not message.content.strip() for message in messages):
        return Dropped(EMPTY_ASSISTANT)
    return Conversation(system, tuple(messages), category, trailing)


def _message_list(record: Record) -> list[Any]:
    if "messages" not in record.value:
        if "target" in record.value:
            raise UserError(
                f"{record.where}: this is a pretraining record ('target'), not a conversation; "
                "use prepare_pretrain_dataset.py for it"
            )
        raise UserError(f"{record.where}: the field 'messages' is missing; expected a list of messages")
    entries = record.value["messages"]
    if not isinstance(entries, list):
        raise UserError(f"{record.where}: 'messages' must be an array of messages, found {json_type(entries)}")
    return entries


def _parse_message(record: Record, number: int, entry: Any) -> Message:
    place = f"{record.where}: message {number}"
    if not isinstance(entry, dict):
        raise UserError(f"{place} must be an object with 'from' and 'content', found {json_type(entry)}")
    for name in ("from", "content"):
        if name not in entry:
            hint = " (it has 'role': rename it to 'from')" if name == "from" and "role" in entry else ""
            raise UserError(f"{place} has no '{name}'{hint}; expected the keys 'from' and 'content'")
        if not isinstance(entry[name], str):
            raise UserError(f"{place}: '{name}' must be a string, found {json_type(entry[name])}")
    if entry["from"] not in (HUMAN, ASSISTANT, SYSTEM):
        raise UserError(f"{place} is from {entry['from']!r}; expected 'human' or 'assistant'")
    return Message(entry["from"], entry["content"])


def _check_alternation(record: Record, messages: list[Message], first_number: int) -> None:
    for position, message in enumerate(messages):
        expected = (HUMAN, ASSISTANT)[position % 2]
        if message.role != expected:
            raise UserError(
                f"{record.where}: message {first_number + position} is from {message.role!r}, expected "
                f"{expected!r}; human and assistant must alternate, human first"
            )
