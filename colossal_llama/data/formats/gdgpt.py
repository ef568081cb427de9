"""gdGPT's records, whose field ``type`` says what they hold."""

from typing import Any

from colossal_llama.data.formats.conversations import conversation, conversation_fields, exchange
from colossal_llama.data.formats.field_use import TURN_REFUSED, FieldUse, reads
from colossal_llama.data.formats.fields import (
    MISSING_FIELD,
    UNKNOWN_ROLE,
    UNKNOWN_TYPE,
    WRONG_TYPE,
    array,
    as_text,
    joined,
    optional_string,
    string,
    turn_field,
)
from colossal_llama.data.formats.parsed import ASSISTANT, HUMAN, NO_OPTIONS, FormatOptions, Message, Parsed
from colossal_llama.data.formats.plain_text import sample
from colossal_llama.data.readers import Record
from colossal_llama.errors import RecordError
from colossal_llama.json_records import json_type

REFERENCE_HEADER = "Answer from this reference:\n"
"""Stands before a gdgpt ``reference`` in the system text."""

API_HEADER = "You can call these APIs:\n"
"""Stands before a gdgpt ``api_desc`` in the system text."""

_GDGPT_FIELDS = {
    "pretrain": "text",
    "instruct": "instruct",
    "conversation": "rounds",
    "conver_has_api": "rounds",
    "ref_qa": "rounds",
}


_ACTIONS = reads("inner_thought", "api_name", "api_param", "api_res", refused=TURN_REFUSED)
_FIELDS_OF_TYPES = {
    "pretrain": reads("type", "text", "category"),
    "instruct": conversation_fields("type", "instruct", "input", "output"),
    "conversation": conversation_fields("type", "rounds"),
    "conver_has_api": conversation_fields("type", "api_desc", rounds=reads("ans", actions=_ACTIONS)),
    "ref_qa": conversation_fields("type", "reference", "rounds"),
}


def gdgpt_fields(value: dict[str, Any]) -> FieldUse:
    """What becomes of the fields of a record, by its type."""
    kind = value.get("type")
    return _FIELDS_OF_TYPES.get(kind, _NO_TYPE) if isinstance(kind, str) else _NO_TYPE


_NO_TYPE = FieldUse()
"""Of a record that the parser refuses."""


def is_gdgpt(value: dict[str, Any]) -> bool:
    """Whether a record names one of gdGPT's types and has its field."""
    kind = value.get("type")
    return isinstance(kind, str) and kind in _GDGPT_FIELDS and _GDGPT_FIELDS[kind] in value


def parse_gdgpt(record: Record, options: FormatOptions = NO_OPTIONS) -> Parsed:
    """A gdGPT record; ``type`` says which kind: pretrain, instruct, conversation, conver_has_api or ref_qa.

    Questions that follow each other are joined. The reference or the description of the APIs becomes the system
    text. Of an answer with API calls everything is learned except what the APIs returned.

    Raises:
        RecordError: a field is missing or has the wrong type, the type is unknown, or answers follow each other.
    """
    kind = string(record, "type")
    if kind not in _GDGPT_FIELDS:
        raise RecordError(
            UNKNOWN_TYPE, f"{record.where}: 'type' is {kind!r}; expected one of {', '.join(_GDGPT_FIELDS)}"
        )
    if kind == "pretrain":
        return sample("", string(record, "text"), optional_string(record, "category"))
    system = None
    if kind == "instruct":
        question = joined(string(record, "instruct"), optional_string(record, "input"))
        messages = exchange(question, string(record, "output"))
    else:
        messages = _gdgpt_rounds(record, with_api=kind == "conver_has_api")
    if kind == "ref_qa":
        system = REFERENCE_HEADER + string(record, "reference")
    elif kind == "conver_has_api":
        if record.value.get("api_desc") is None:
            raise RecordError(MISSING_FIELD, f"{record.where}: the field 'api_desc' is missing; expected a string")
        system = API_HEADER + as_text(record.value["api_desc"])
    return conversation(record, system, messages, optional_string(record, "category"))


def _gdgpt_rounds(record: Record, with_api: bool) -> list[Message]:
    messages: list[Message] = []
    for number, entry in enumerate(array(record, "rounds", "rounds"), start=1):
        place = f"{record.where}: round {number}"
        if not isinstance(entry, list) or len(entry) != 2:
            raise RecordError(WRONG_TYPE, f'{place} must be an array like ["ask", "text"], found {json_type(entry)}')
        kind, content = entry
        if kind == "ans-api" and with_api:
            messages.append(_gdgpt_calls(place, content))
            continue
        if kind not in ("ask", "ans"):
            expected = "'ask', 'ans' or 'ans-api'" if with_api else "'ask' or 'ans'"
            raise RecordError(UNKNOWN_ROLE, f"{place} is of kind {kind!r}; expected {expected}")
        if not isinstance(content, str):
            raise RecordError(WRONG_TYPE, f"{place}: the text must be a string, found {json_type(content)}")
        if kind == "ask" and messages and messages[-1].role == HUMAN:
            messages[-1] = Message(HUMAN, f"{messages[-1].content}\n{content}")
        else:
            messages.append(Message(HUMAN if kind == "ask" else ASSISTANT, content))
    return messages


def _gdgpt_calls(place: str, content: Any) -> Message:
    """An answer with API calls: thought, name, parameters and answer are learned, results are not."""
    answer = turn_field(place, content, "ans")
    actions = content.get("actions")
    if not isinstance(actions, list):
        raise RecordError(WRONG_TYPE, f"{place}: 'actions' must be an array of calls, found {json_type(actions)}")
    segments: list[tuple[str, bool]] = []
    for number, action in enumerate(actions, start=1):
        name = turn_field(f"{place}: action {number}", action, "api_name")
        thought, parameters, result = (as_text(action.get(key)) for key in ("inner_thought", "api_param", "api_res"))
        call = f"API: {name}\nParameters: {parameters}\n"
        segments.append((f"Thought: {thought}\n{call}" if thought.strip() else call, True))
        segments.append((f"Result: {result}\n", False))
    segments.append((answer, True))
    return Message.of_segments(segments)
