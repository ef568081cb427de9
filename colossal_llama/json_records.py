"""Strict parsing of one JSON object, as every jsonl file of the project is read."""

import json
from collections.abc import Sequence
from typing import Any, NoReturn

from colossal_llama.errors import RecordError


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _object_without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    # Python would keep the last value and lose the others without a word.
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} occurs twice in one object")
    return content


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_object_without_duplicates)


NOT_UTF8 = "not UTF-8"
NOT_JSON = "not valid JSON"
NOT_AN_OBJECT = "not an object"
TOO_DEEP = "nested too deeply"
LONE_SURROGATE = "half of a surrogate pair"


def parse_line(raw: bytes, where: str) -> dict[str, Any]:
    """Parse one line into a JSON object that UTF-8 can express.

    Args:
        raw: the line's bytes.
        where: ``file:line`` for messages.

    Raises:
        RecordError: not UTF-8, not JSON (NaN and Infinity included), not an object, a key twice in one object,
            nested too deeply, or a string that holds half of a surrogate pair.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(
            NOT_UTF8,
            f"{where}: not UTF-8 (byte 0x{raw[error.start]:02x} at column {error.start + 1}); "
            "convert the file to UTF-8",
        ) from error
    try:
        value = _DECODER.decode(text)
    except RecursionError as error:
        raise RecordError(TOO_DEEP, f"{where}: nested too deeply; expected one flat JSON object") from error
    except ValueError as error:
        raise RecordError(
            NOT_JSON, f"{where}: not valid JSON ({_reason(error)}); expected one JSON object per line"
        ) from error
    if not isinstance(value, dict):
        raise RecordError(NOT_AN_OBJECT, f"{where}: expected a JSON object, found {json_type(value)}")
    if b"\\ud" in raw.lower():
        _refuse_lone_surrogates(value, where)
    return value


def _reason(error: ValueError) -> str:
    # The decoder counts lines too, and its "line 1" would stand beside the file's real line.
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return str(error)


def _refuse_lone_surrogates(value: dict[str, Any], where: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        raise RecordError(
            LONE_SURROGATE, f"{where}: a string holds \\u{code:04x}, which is half of a surrogate pair; remove it"
        ) from error


def json_type(value: Any) -> str:
    """What JSON calls the type of a parsed value, for messages; the Python type's name where JSON has none."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, (list, tuple)):
        return "an array"
    # Parquet and arrow files hold more types than JSON: bytes, dates, ...
    return "an object" if isinstance(value, dict) else f"a value of type {type(value).__name__}"
