"""What a record means: pretraining texts and conversations, checked field by field.

Every format that records come in is one entry of :data:`FORMATS`. A record of the wrong shape is a
:class:`RecordError` whose message starts with :attr:`Record.where`. A well-formed record that holds nothing to
learn is a :class:`Dropped` with its reason, which is counted and reported.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from colossal_llama.data.readers import Record
from colossal_llama.errors import RecordError, UserError
from colossal_llama.json_records import json_type
from colossal_llama.registry import Registry

EMPTY_TARGET = "empty target"
NO_MESSAGES = "no messages"
NO_ASSISTANT = "no assistant message"
EMPTY_ASSISTANT = "empty assistant content"

MISSING_FIELD = "missing field"
WRONG_TYPE = "wrong type"
UNKNOWN_ROLE = "unknown role"
NOT_ALTERNATING = "roles do not alternate"
NOT_TEXT = "content other than text"
NOT_PRETRAINING = "not a pretraining record"
NOT_A_CONVERSATION = "not a conversation"
UNKNOWN_TYPE = "unknown type"
NO_TURN_MARKERS = "turns not marked"

T = TypeVar("T")

HUMAN = "human"
ASSISTANT = "assistant"
SYSTEM = "system"

REFERENCE_HEADER = "Answer from this reference:\n"
"""Stands before a gdgpt ``reference`` in the system text."""

API_HEADER = "You can call these APIs:\n"
"""Stands before a gdgpt ``api_desc`` in the system text."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A pretraining text: no loss on ``source`` (may be empty), loss on ``target``."""

    source: str
    target: str
    category: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    Attributes:
        role: "human" or "assistant".
        content: its text.
        segments: of an assistant's message that is learned in part: pairs of text and whether it is learned,
            which add up to ``content``. None for a message that is learned whole.
    """

    role: str
    content: str
    segments: tuple[tuple[str, bool], ...] | None = None

    @classmethod
    def of_segments(cls, segments: Iterable[tuple[str, bool]]) -> "Message":
        """An assistant's message that is learned in part; without a part that is not learned, a plain one."""
        parts = tuple((text, learn) for text, learn in segments if text)
        content = "".join(text for text, _ in parts)
        return cls(ASSISTANT, content, None if all(learn for _, learn in parts) else parts)

    @property
    def learned_text(self) -> str:
        """What of an assistant's message is learned."""
        if self.segments is None:
            return self.content
        return "".join(text for text, learn in self.segments if learn)


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


Parsed = Sample | Conversation | Dropped


@dataclass(frozen=True, slots=True)
class FormatOptions:
    """Choices of the user's; ``text_field`` names the field that the format "text" reads."""

    text_field: str | None = None


@dataclass(frozen=True, slots=True)
class RecordFormat:
    """How one family of datasets writes its records.

    Attributes:
        name: what ``--data_format`` takes.
        recognises: whether a record's fields are those of this format; says nothing of their types.
        parse: turns a record into what is learned; raises :class:`RecordError` for a wrong shape.
        shape: the fields, for messages and help texts.
        holds: kinds of records: :class:`Sample`, :class:`Conversation`, or both.
    """

    name: str
    recognises: Callable[[dict[str, Any]], bool]
    parse: Callable[[Record, FormatOptions], Parsed]
    shape: str
    holds: tuple[type, ...]


FORMATS: Registry[RecordFormat] = Registry("data format")
"""All record formats. Detection takes the first that recognises a file's records."""


def detect_format(records: Sequence[Record], where: str, options: FormatOptions = FormatOptions()) -> RecordFormat:
    """The format of a file by its first records: the one that recognises all of them, or else more than half.

    In the second case the other records lack fields, which the parser tells of each by itself.

    Args:
        records: some of them, at least one.
        where: the file, for messages.
        options: a ``text_field`` decides for "text" at once.

    Raises:
        UserError: no format recognises more than half of them; the message says what was found.
    """
    if options.text_field is not None:
        return FORMATS.get("text")
    formats = [FORMATS.get(name) for name in FORMATS]
    fits = {one.name: [one.recognises(record.value) for record in records] for one in formats}
    for one in formats:
        if records and all(fits[one.name]):
            return one
    best = max(formats, key=lambda one: sum(fits[one.name]))
    if 2 * sum(fits[best.name]) > len(records):
        return best
    known = "; ".join(f"{one.name} {one.shape}" for one in formats)
    number = next((number for number, fit in enumerate(fits[best.name]) if not fit), 0)
    found = f"{sum(fits[best.name])} of the first {len(records)} records are of the format {best.name}, "
    if not any(fits[best.name]):
        found = ""
    strange = f"{records[number].where} has the fields {_fields(records[number].value)}" if records else "no record"
    raise UserError(
        f"{where}: no known format: {found}{strange}; give --data_format, or --text_field for plain text; "
        f"known formats: {known}"
    )


def _fields(value: Mapping[str, Any]) -> str:
    return ", ".join(repr(name) for name in value) or "(none)"


def require_sample(record: Record, parsed: Parsed) -> Sample | Dropped:
    """What pretraining takes.

    Raises:
        RecordError: ``parsed`` is a conversation.
    """
    if isinstance(parsed, Conversation):
        raise RecordError(
            NOT_PRETRAINING,
            f"{record.where}: this is a conversation, not a pretraining record; use prepare_sft_dataset.py for it",
        )
    return parsed


def require_conversation(record: Record, parsed: Parsed) -> Conversation | Dropped:
    """What SFT takes.

    Raises:
        RecordError: ``parsed`` is a pretraining text.
    """
    if isinstance(parsed, Sample):
        raise RecordError(
            NOT_A_CONVERSATION,
            f"{record.where}: this is a pretraining record, not a conversation; use prepare_pretrain_dataset.py for it",
        )
    return parsed


def _has(*names: str) -> Callable[[dict[str, Any]], bool]:
    return lambda value: all(name in value for name in names)


def _field(record: Record, name: str, kind: type[T], expected: str, allowed: str) -> T:
    """A field that must be there; ``expected`` and ``allowed`` say what it should be, for either message."""
    if name not in record.value:
        raise RecordError(MISSING_FIELD, f"{record.where}: the field '{name}' is missing; expected {expected}")
    value = record.value[name]
    if not isinstance(value, kind):
        raise RecordError(WRONG_TYPE, f"{record.where}: '{name}' must be {allowed}, found {json_type(value)}")
    return value


def _string(record: Record, name: str) -> str:
    return _field(record, name, str, "a string", "a string")


def _optional_string(record: Record, name: str) -> str:
    return "" if record.value.get(name) is None else _string(record, name)


def _list(record: Record, name: str, of: str) -> list[Any]:
    return _field(record, name, list, f"a list of {of}", f"an array of {of}")


def _as_text(value: Any) -> str:
    """A string as it is; other JSON as its text; nothing as nothing."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


# Pretraining texts


def parse_pretrain(record: Record, options: FormatOptions = FormatOptions()) -> Sample | Dropped:
    """A pretraining record: ``{"source": "", "target": "text", "category": "tag"}``.

    ``source`` and ``category`` may be absent or null; unknown fields are ignored.

    Raises:
        RecordError: ``target`` is missing or any field has the wrong type.
    """
    if "target" not in record.value and "messages" in record.value:
        raise RecordError(
            NOT_PRETRAINING,
            f"{record.where}: this is a conversation ('messages'), not a pretraining record; "
            "use prepare_sft_dataset.py for it",
        )
    return _sample(_optional_string(record, "source"), _string(record, "target"), _optional_string(record, "category"))


def _sample(source: str, target: str, category: str) -> Sample | Dropped:
    return Sample(source, target, category) if target.strip() else Dropped(EMPTY_TARGET)


def parse_text(record: Record, options: FormatOptions = FormatOptions()) -> Sample | Dropped:
    """A plain text: ``{"text": "..."}``, as the Pile and most corpora have it.

    The category is ``meta.pile_set_name`` or the field ``category``, where there is one.

    Raises:
        RecordError: the text field is missing or has the wrong type.
    """
    text = _string(record, options.text_field or "text")
    meta = record.value.get("meta")
    name = meta.get("pile_set_name") if isinstance(meta, dict) else None
    return _sample("", text, name if isinstance(name, str) else _optional_string(record, "category"))


def parse_wudao(record: Record, options: FormatOptions = FormatOptions()) -> Sample | Dropped:
    """A WuDao page: ``{"title", "content", "dataType"}``; the title becomes the text's first line.

    Raises:
        RecordError: a field is missing or has the wrong type.
    """
    title, content = _optional_string(record, "title"), _string(record, "content")
    if not content.strip():
        return Dropped(EMPTY_TARGET)
    text = f"{title}\n{content}" if title.strip() else content
    return Sample("", text, _optional_string(record, "dataType"))


# Conversations


@dataclass(frozen=True, slots=True)
class _Layout:
    """How the list ``name`` of messages is written.

    ``keys`` are pairs of the role's and the content's key; ``roles`` says for each role's key what its values mean.
    """

    name: str
    keys: tuple[tuple[str, str], ...]
    roles: Mapping[str, Mapping[str, str]]


_OPENAI_ROLES = {"user": HUMAN, "assistant": ASSISTANT, "system": SYSTEM}
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


def parse_conversation(record: Record, options: FormatOptions = FormatOptions()) -> Conversation | Dropped:
    """An SFT record: ``{"messages": [{"from": "human", "content": "..."}, {"from": "assistant", ...}]}``.

    Messages may also have ``role`` "user", "assistant" or "system", and a content that is a list of
    ``{"type": "text", "text": "..."}``. One leading system message is accepted. A last human message without an
    answer is cut.

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


def parse_sharegpt(record: Record, options: FormatOptions = FormatOptions()) -> Conversation | Dropped:
    """A ShareGPT record: ``{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", ...}]}``.

    Raises:
        RecordError: as for :func:`parse_conversation`.
    """
    return _parse_messages(record, _SHAREGPT)


def _parse_messages(record: Record, layout: _Layout) -> Conversation | Dropped:
    entries = _list(record, layout.name, "messages")
    messages = [_parse_message(record, number, entry, layout) for number, entry in enumerate(entries, start=1)]
    system = None
    if messages and messages[0].role == SYSTEM:
        system = messages.pop(0).content
    first_number = 1 if system is None else 2
    return _conversation(record, system, messages, _optional_string(record, "category"), first_number)


def _parse_message(record: Record, number: int, entry: Any, layout: _Layout) -> Message:
    place = f"{record.where}: message {number}"
    preferred = " and ".join(repr(key) for key in layout.keys[0])
    if not isinstance(entry, dict):
        raise RecordError(WRONG_TYPE, f"{place} must be an object with {preferred}, found {json_type(entry)}")
    # Columns of a parquet file are there but null where a record does not have them.
    role_key, content_key = next((keys for keys in layout.keys if entry.get(keys[0]) is not None), layout.keys[0])
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
        raise RecordError(UNKNOWN_ROLE, f"{place} is from {role!r}; expected {known}")
    return Message(roles[role], content)


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


def _conversation(
    record: Record, system: str | None, messages: list[Message], category: str, first_number: int = 1
) -> Conversation | Dropped:
    """Check what all formats of conversations have in common."""
    for position, message in enumerate(messages):
        expected = (HUMAN, ASSISTANT)[position % 2]
        if message.role != expected:
            raise RecordError(
                NOT_ALTERNATING,
                f"{record.where}: message {first_number + position} is from {message.role!r}, expected "
                f"{expected!r}; human and assistant must alternate, human first",
            )
    if not messages:
        return Dropped(NO_MESSAGES)
    trailing = messages[-1].role == HUMAN
    if trailing:
        messages = messages[:-1]
    if not messages:
        return Dropped(NO_ASSISTANT)
    if any(message.role == ASSISTANT and not message.learned_text.strip() for message in messages):
        return Dropped(EMPTY_ASSISTANT)
    return Conversation(system, tuple(messages), category, trailing)


def _exchange(question: str, answer: str) -> list[Message]:
    return [Message(HUMAN, question), Message(ASSISTANT, answer)]


def _joined(*texts: str) -> str:
    """The texts that are not blank, one below the other."""
    return "\n".join(text for text in texts if text.strip())


def parse_alpaca(record: Record, options: FormatOptions = FormatOptions()) -> Conversation | Dropped:
    """An Alpaca record: ``{"instruction", "input", "output"}``, optionally ``history`` and ``system``.

    The input stands below the instruction. ``history`` is a list of earlier (instruction, output) pairs.

    Raises:
        RecordError: a field is missing or has the wrong type.
    """
    messages: list[Message] = []
    history = [] if record.value.get("history") is None else _list(record, "history", "pairs")
    for number, pair in enumerate(history, start=1):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise RecordError(
                WRONG_TYPE, f"{record.where}: entry {number} of 'history' must be an array of two strings"
            )
        messages += _exchange(*pair)
    question = _joined(_string(record, "instruction"), _optional_string(record, "input"))
    messages += _exchange(question, _string(record, "output"))
    system = _optional_string(record, "system") or None
    return _conversation(record, system, messages, _optional_string(record, "category"))


_BELLE_MARKER = re.compile(r"^[ \t]*(Human|Assistant)[ \t]*[:：]", re.MULTILINE)


def _is_alpaca(value: dict[str, Any]) -> bool:
    return _has("instruction", "output")(value)


def _is_marked(value: dict[str, Any]) -> bool:
    instruction = value.get("instruction")
    return isinstance(instruction, str) and instruction.lstrip().startswith(("Human:", "Human："))


def parse_belle(record: Record, options: FormatOptions = FormatOptions()) -> Conversation | Dropped:
    """A BELLE conversation: turns marked "Human:" and "Assistant:" in ``instruction``, last answer in ``output``.

    Markers count at the beginning of a line. A record without them is read like :func:`parse_alpaca`.

    Raises:
        RecordError: a field is missing or has the wrong type, or the marked turns do not alternate.
    """
    if not _is_marked(record.value):
        return parse_alpaca(record, options)
    text = _joined(_string(record, "instruction"), _optional_string(record, "input"))
    pieces = _BELLE_MARKER.split(text)
    roles = {"Human": HUMAN, "Assistant": ASSISTANT}
    messages = [
        Message(roles[marker], content.strip()) for marker, content in zip(pieces[1::2], pieces[2::2], strict=True)
    ]
    if messages[-1].role == ASSISTANT and not messages[-1].content:
        messages.pop()  # the marker that asks for the output
    messages.append(Message(ASSISTANT, _string(record, "output").strip()))
    return _conversation(record, None, messages, _optional_string(record, "category"))


# MOSS

_MOSS_MARKER = re.compile(
    r"^\s*(?:<\|(?:Human|MOSS|Inner Thoughts|Commands|Results|Tool Responses)\|>|\[(?:Human|MOSS)\])\s*:?\s*"
    r"|\s*<eo[a-z]>\s*$"
)
_MOSS_TURN = re.compile(
    r"\s*(?:<\|(?P<new>Human|MOSS)\|>|\[(?P<old>Human|MOSS)\])\s*:\s*(?P<text>.*?)\s*<eo[hma]>", re.DOTALL
)
_MOSS_PLUGIN_PARTS = (("Inner Thoughts", True), ("Commands", True), ("Tool Responses", False))


def _is_moss(value: dict[str, Any]) -> bool:
    if isinstance(value.get("chat"), dict):
        return any(re.fullmatch(r"turn_\d+", name) for name in value["chat"])
    entries = value.get("conversation")
    if isinstance(entries, list) and entries and isinstance(entries[0], dict):
        return _has("human", "assistant")(entries[0])
    text = value.get("plain_text")
    return isinstance(text, str) and _MOSS_TURN.match(text) is not None


def parse_moss(record: Record, options: FormatOptions = FormatOptions()) -> Conversation | Dropped:
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
        messages = _moss_pairs(record, _list(record, "conversation", "turns"))
    else:
        messages = _moss_text(record, _string(record, "plain_text"))
    system = (_optional_string(record, "meta_instruction") or _optional_string(record, "prefix")).strip() or None
    return _conversation(record, system, messages, _optional_string(record, "category"))


def _turn_field(place: str, turn: Any, name: str) -> str:
    if not isinstance(turn, dict):
        raise RecordError(WRONG_TYPE, f"{place} must be an object, found {json_type(turn)}")
    if name not in turn:
        raise RecordError(MISSING_FIELD, f"{place} has no '{name}'; expected a string")
    if not isinstance(turn[name], str):
        raise RecordError(WRONG_TYPE, f"{place}: '{name}' must be a string, found {json_type(turn[name])}")
    return turn[name]


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
        messages.append(Message(HUMAN, _unmarked(_turn_field(place, turn, "Human"))))
        segments = []
        for part, learn in _MOSS_PLUGIN_PARTS:
            text = _unmarked(_turn_field(place, turn, part)) if turn.get(part) is not None else ""
            if text not in ("", "None"):
                segments.append((f"{text}\n", learn))
        segments.append((_unmarked(_turn_field(place, turn, "MOSS")), True))
        messages.append(Message.of_segments(segments))
    return messages


def _moss_pairs(record: Record, turns: list[Any]) -> list[Message]:
    messages = []
    for number, turn in enumerate(turns, start=1):
        place = f"{record.where}: turn {number}"
        question, answer = (_unmarked(_turn_field(place, turn, name)) for name in ("human", "assistant"))
        messages += _exchange(question, answer)
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


# gdGPT

_GDGPT_FIELDS = {
    "pretrain": "text",
    "instruct": "instruct",
    "conversation": "rounds",
    "conver_has_api": "rounds",
    "ref_qa": "rounds",
}


def _is_gdgpt(value: dict[str, Any]) -> bool:
    kind = value.get("type")
    return isinstance(kind, str) and kind in _GDGPT_FIELDS and _GDGPT_FIELDS[kind] in value


def parse_gdgpt(record: Record, options: FormatOptions = FormatOptions()) -> Parsed:
    """A gdGPT record; ``type`` says which kind: pretrain, instruct, conversation, conver_has_api or ref_qa.

    Questions that follow each other are joined. The reference or the description of the APIs becomes the system
    text. Of an answer with API calls everything is learned except what the APIs returned.

    Raises:
        RecordError: a field is missing or has the wrong type, the type is unknown, or answers follow each other.
    """
    kind = _string(record, "type")
    if kind not in _GDGPT_FIELDS:
        raise RecordError(
            UNKNOWN_TYPE, f"{record.where}: 'type' is {kind!r}; expected one of {', '.join(_GDGPT_FIELDS)}"
        )
    if kind == "pretrain":
        return _sample("", _string(record, "text"), _optional_string(record, "category"))
    system = None
    if kind == "instruct":
        question = _joined(_string(record, "instruct"), _optional_string(record, "input"))
        messages = _exchange(question, _string(record, "output"))
    else:
        messages = _gdgpt_rounds(record, with_api=kind == "conver_has_api")
    if kind == "ref_qa":
        system = REFERENCE_HEADER + _string(record, "reference")
    elif kind == "conver_has_api":
        if record.value.get("api_desc") is None:
            raise RecordError(MISSING_FIELD, f"{record.where}: the field 'api_desc' is missing; expected a string")
        system = API_HEADER + _as_text(record.value["api_desc"])
    return _conversation(record, system, messages, _optional_string(record, "category"))


def _gdgpt_rounds(record: Record, with_api: bool) -> list[Message]:
    messages: list[Message] = []
    for number, entry in enumerate(_list(record, "rounds", "rounds"), start=1):
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
    answer = _turn_field(place, content, "ans")
    actions = content.get("actions")
    if not isinstance(actions, list):
        raise RecordError(WRONG_TYPE, f"{place}: 'actions' must be an array of calls, found {json_type(actions)}")
    segments: list[tuple[str, bool]] = []
    for number, action in enumerate(actions, start=1):
        name = _turn_field(f"{place}: action {number}", action, "api_name")
        thought, parameters, result = (_as_text(action.get(key)) for key in ("inner_thought", "api_param", "api_res"))
        call = f"API: {name}\nParameters: {parameters}\n"
        segments.append((f"Thought: {thought}\n{call}" if thought.strip() else call, True))
        segments.append((f"Result: {result}\n", False))
    segments.append((answer, True))
    return Message.of_segments(segments)


def _add(
    name: str,
    recognises: Callable[[dict[str, Any]], bool],
    parse: Callable[[Record, FormatOptions], Parsed],
    shape: str,
    holds: tuple[type, ...] = (Conversation,),
) -> None:
    FORMATS.add(name, RecordFormat(name, recognises, parse, shape, holds))


# The more fields a format asks for, the earlier it stands: {"type", "text"} is also a {"text"}.
_add("gdgpt", _is_gdgpt, parse_gdgpt, '{"type": "pretrain"|"instruct"|"conversation"|...}', (Sample, Conversation))
_add("messages", _has("messages"), parse_conversation, '{"messages": [{"from"|"role", "content"}]}')
_add("sharegpt", _has("conversations"), parse_sharegpt, '{"conversations": [{"from", "value"}]}')
_add("moss", _is_moss, parse_moss, '{"chat": {"turn_1"}}, {"conversation": [{"human", "assistant"}]}, {"plain_text"}')
_add(
    "alpaca",
    lambda value: _is_alpaca(value) and not _is_marked(value),
    parse_alpaca,
    '{"instruction", "input", "output"}',
)
_add("belle", _is_alpaca, parse_belle, '{"instruction": "Human:...", "output"}')
_add("colossal", _has("target"), parse_pretrain, '{"source", "target", "category"}', (Sample,))
_add(
    "wudao",
    lambda value: _has("title", "content")(value) and "text" not in value,
    parse_wudao,
    '{"title", "content", "dataType"}',
    (Sample,),
)
_add("text", _has("text"), parse_text, '{"text"}', (Sample,))
