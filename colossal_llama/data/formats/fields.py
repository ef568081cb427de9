"""Fields of records, read with the errors that say what is wrong with them."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

from colossal_llama.data.readers import Record
from colossal_llama.errors import RecordError
from colossal_llama.json_records import json_type

MISSING_FIELD = "missing field"
WRONG_TYPE = "wrong type"
UNKNOWN_TYPE = "unknown type"
UNKNOWN_ROLE = "unknown role"

T = TypeVar("T")


def has(*names: str) -> Callable[[dict[str, Any]], bool]:
    """A function that tells whether a record has all these fields."""
    return lambda value: all(name in value for name in names)


def _required(record: Record, name: str, kind: type[T], expected: str, allowed: str) -> T:
    """A field that must be there; ``expected`` and ``allowed`` say what it should be, for either message."""
    if name not in record.value:
        raise RecordError(MISSING_FIELD, f"{record.where}: the field '{name}' is missing; expected {expected}")
    value = record.value[name]
    if not isinstance(value, kind):
        raise RecordError(WRONG_TYPE, f"{record.where}: '{name}' must be {allowed}, found {json_type(value)}")
    return value


def string(record: Record, name: str) -> str:
    """A text that must be there.

    Raises:
        RecordError: missing, or not a string.
    """
    return _required(record, name, str, "a string", "a string")


def optional_string(record: Record, name: str) -> str:
    """A text, empty where it is missing or null.

    Raises:
        RecordError: not a string.
    """
    return "" if record.value.get(name) is None else string(record, name)


def array(record: Record, name: str, of: str) -> list[Any]:
    """A list that must be there; ``of`` says what it should hold, for the message.

    Raises:
        RecordError: missing, or not a list.
    """
    return _required(record, name, list, f"a list of {of}", f"an array of {of}")


def as_text(value: Any) -> str:
    """A string as it is; other JSON as its text; nothing as nothing."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def turn_field(place: str, turn: Any, name: str) -> str:
    """A text of a turn, an object inside of a record that ``place`` names.

    Raises:
        RecordError: the turn is no object, or the text is missing or not a string.
    """
    if not isinstance(turn, dict):
        raise RecordError(WRONG_TYPE, f"{place} must be an object, found {json_type(turn)}")
    if name not in turn:
        raise RecordError(MISSING_FIELD, f"{place} has no '{name}'; expected a string")
    if not isinstance(turn[name], str):
        raise RecordError(WRONG_TYPE, f"{place}: '{name}' must be a string, found {json_type(turn[name])}")
    return turn[name]


def joined(*texts: str) -> str:
    """The texts that are not blank, one below the other."""
    return "\n".join(text for text in texts if text.strip())
