"""What a record means: pretraining texts and conversations, checked field by field.

Every format that records come in is one entry of :data:`FORMATS`; a module holds the parsers of each family of them. A
record of the wrong shape is a :class:`RecordError` whose message starts with :attr:`Record.where`. A well-formed record
that holds nothing to learn is a :class:`Dropped` with its reason, which is counted and reported.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from colossal_llama.data.formats.conversations import (
    MESSAGES_FIELDS,
    SHAREGPT_FIELDS,
    parse_conversation,
    parse_sharegpt,
)
from colossal_llama.data.formats.field_use import FieldUse, NoteUnread
from colossal_llama.data.formats.fields import has
from colossal_llama.data.formats.gdgpt import gdgpt_fields, is_gdgpt, parse_gdgpt
from colossal_llama.data.formats.instructions import (
    ALPACA_FIELDS,
    LEETCODE_FIELDS,
    alpaca_fields,
    is_alpaca,
    is_marked,
    parse_alpaca,
    parse_belle,
    parse_leetcode,
)
from colossal_llama.data.formats.moss import is_moss, moss_fields, parse_moss
from colossal_llama.data.formats.parsed import NO_OPTIONS, Conversation, Dropped, FormatOptions, Parsed, Sample
from colossal_llama.data.formats.plain_text import (
    NOT_PRETRAINING,
    PRETRAIN_FIELDS,
    WUDAO_FIELDS,
    parse_pretrain,
    parse_text,
    parse_wudao,
    text_fields,
)
from colossal_llama.data.readers import Record
from colossal_llama.errors import RecordError, UserError
from colossal_llama.registry import Registry


@dataclass(frozen=True, slots=True)
class RecordFormat:
    """How one family of datasets writes its records.

    Attributes:
        name: what ``--data_format`` takes.
        recognises: whether a record's fields are those of this format; says nothing of their types.
        parser: turns a record into what is learned; raises :class:`RecordError` for a wrong shape.
        fields: what becomes of the fields of a record.
        shape: the fields, for messages and help texts.
        holds: kinds of records: :class:`Sample`, :class:`Conversation`, or both.
    """

    name: str
    recognises: Callable[[dict[str, Any]], bool]
    parser: Callable[[Record, FormatOptions], Parsed]
    fields: Callable[[dict[str, Any], FormatOptions], FieldUse]
    shape: str
    holds: tuple[type, ...]

    def parse(self, record: Record, options: FormatOptions = NO_OPTIONS, note: NoteUnread | None = None) -> Parsed:
        """What is learned of a record.

        Args:
            record: of this format.
            options: the user's choices.
            note: is told the names of the record's fields that are not read, if there are any.

        Raises:
            RecordError: a wrong shape, or a field that changes the meaning and cannot be learned.
        """
        unread = self.fields(record.value, options).check(record, options)
        parsed = self.parser(record, options)
        if unread and note is not None:
            note(unread)
        return parsed


FORMATS: Registry[RecordFormat] = Registry("data format")
"""All record formats. Detection takes the first that recognises a file's records."""


def detect_format(records: Sequence[Record], where: str, options: FormatOptions = NO_OPTIONS) -> RecordFormat:
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


def _add(
    name: str,
    recognises: Callable[[dict[str, Any]], bool],
    parser: Callable[[Record, FormatOptions], Parsed],
    fields: FieldUse | Callable[[dict[str, Any]], FieldUse],
    shape: str,
    holds: tuple[type, ...] = (Conversation,),
) -> None:
    def fields_of(value: dict[str, Any], options: FormatOptions) -> FieldUse:
        return fields if isinstance(fields, FieldUse) else fields(value)

    FORMATS.add(name, RecordFormat(name, recognises, parser, fields_of, shape, holds))


# The more fields a format asks for, the earlier it stands: {"type", "text"} is also a {"text"}.
_add(
    "gdgpt",
    is_gdgpt,
    parse_gdgpt,
    gdgpt_fields,
    '{"type": "pretrain"|"instruct"|"conversation"|...}',
    (Sample, Conversation),
)
_add("messages", has("messages"), parse_conversation, MESSAGES_FIELDS, '{"messages": [{"from"|"role", "content"}]}')
_add("sharegpt", has("conversations"), parse_sharegpt, SHAREGPT_FIELDS, '{"conversations": [{"from", "value"}]}')
_add(
    "moss",
    is_moss,
    parse_moss,
    moss_fields,
    '{"chat": {"turn_1"}}, {"conversation": [{"human", "assistant"}]}, {"plain_text"}',
)
_add(
    "leetcode",
    has("code_with_problem", "code_only", "explanation_only"),
    parse_leetcode,
    LEETCODE_FIELDS,
    '{"code_with_problem", "code_only", "explanation_only"}',
)
_add(
    "alpaca",
    lambda value: is_alpaca(value) and not is_marked(value),
    parse_alpaca,
    ALPACA_FIELDS,
    '{"instruction", "input", "output"}',
)
_add("belle", is_alpaca, parse_belle, alpaca_fields, '{"instruction": "Human:...", "output"}')
_add("colossal", has("target"), parse_pretrain, PRETRAIN_FIELDS, '{"source", "target", "category"}', (Sample,))
_add(
    "wudao",
    lambda value: has("title", "content")(value) and "text" not in value,
    parse_wudao,
    WUDAO_FIELDS,
    '{"title", "content", "dataType"}',
    (Sample,),
)
FORMATS.add(
    "text",
    RecordFormat(
        "text",
        has("text"),
        parse_text,
        lambda value, options: text_fields(options.text_field),
        '{"text"}',
        (Sample,),
    ),
)
