"""Strict parsing of one JSON object, as every jsonl file of the project is read."""

import json
import math
import re
from collections.abc import Sequence
from typing import Any, NoReturn

import orjson

from colossal_llama.errors import RecordError


def json_value(value: Any) -> Any:
    """``value`` with null for NaN and infinity, which JSON has not."""
    if isinstance(value, dict):
        return {name: json_value(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def not_finite_paths(value: Any, path: str = "") -> list[str]:
    """Where :func:`json_value` writes null for a number, as in ``categories.news.perplexity``."""
    if isinstance(value, dict):
        return [
            found for name, inner in value.items() for found in not_finite_paths(inner, f"{path}.{name}".strip("."))
        ]
    if isinstance(value, (list, tuple)):
        return [found for number, inner in enumerate(value) for found in not_finite_paths(inner, f"{path}[{number}]")]
    return [path] if isinstance(value, float) and not math.isfinite(value) else []


def describe_not_finite(value: Any) -> str | None:
    """One line on the figures that are not finite, for people; None where all are."""
    paths = not_finite_paths(value)
    if not paths:
        return None
    return (
        f"{len(paths)} figures are not finite and stand as null in the JSON file, the first one {paths[0]}: the model "
        "computes NaN or infinity, as one that has diverged in training does"
    )


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


A_FLOAT = -(1 << 60)
"""Fewer keys than any object has."""

_SPACED_COLON = re.compile(rb'"[ \t\r\n]+:')


def _parse_quickly(raw: bytes) -> dict[str, Any] | None:
    """The object in ``raw`` where orjson's value is surely the strict parser's; None to ask that one.

    orjson refuses what is not UTF-8, NaN and halves of surrogate pairs too, but it keeps the last of two equal keys
    and turns integers beyond 64 bits into floats. No key is lost where there are as many as quotes with a colon
    behind them (text may hold such as well, and then goes the slow way).
    """
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    if type(value) is not dict or _SPACED_COLON.search(raw):
        return None
    try:
        keys = _count_keys(value)
    except RecursionError:
        return None
    return value if keys == raw.count(b'":') else None


def _count_keys(value: Any) -> int:
    """Keys of all objects in a parsed value, or a negative number when one holds a float."""
    kind = type(value)
    if kind is dict:
        return len(value) + sum(_count_keys(inner) for inner in value.values() if type(inner) is not str)
    if kind is list:
        return sum(_count_keys(inner) for inner in value if type(inner) is not str)
    return A_FLOAT if kind is float else 0


def parse_line(raw: bytes, where: str) -> dict[str, Any]:
    """Parse one line into a JSON object that UTF-8 can express.

    Args:
        raw: the line's bytes.
        where: ``file:line`` for messages.

    Raises:
        RecordError: not UTF-8, not JSON (NaN and Infinity included), not an object, a key twice in one object,
            nested too deeply, or a string that holds half of a surrogate pair.
    """
    quick = _parse_quickly(raw)
    return _parse_strictly(raw, where) if quick is None else quick


def _parse_strictly(raw: bytes, where: str) -> dict[str, Any]:
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
