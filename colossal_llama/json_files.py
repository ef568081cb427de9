"""Strict reading of small JSON and text files: whatever is wrong with one is one line that names it."""

import dataclasses
import json
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from colossal_llama.errors import RecordError, UserError, explain_os_error
from colossal_llama.json_records import json_type, parse_line

T = TypeVar("T")

COPY_AGAIN = "the file is damaged, copy it again"


def read_text_file(path: Path, name: str | None = None, remedy: str = "convert the file to UTF-8") -> str:
    """The content of a text file in UTF-8, without a byte order mark.

    Args:
        path: of the file.
        name: what to call it in messages, such as ``--config FILE``; None for its path.
        remedy: what to do where it is not UTF-8.

    Raises:
        UserError: it is missing, is a folder, may not or cannot be read, or is not UTF-8.
    """
    name = str(path) if name is None else name
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        reason = "is a link to a file that is missing" if path.is_symlink() else "no such file"
        raise UserError(f"{name}: {reason}") from error
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({explain_os_error(error)})") from error
    except UnicodeDecodeError as error:
        found = error.object[error.start]
        raise UserError(f"{name}: not UTF-8 (byte 0x{found:02x} at byte {error.start + 1}); {remedy}") from error


def read_json_file(path: Path, name: str | None = None, remedy: str = COPY_AGAIN) -> Any:
    """The value in a JSON file.

    Args:
        path: of the file.
        name: what to call it in messages, such as ``--model FILE``; None for its path.
        remedy: what to do where it is damaged.

    Raises:
        UserError: as :func:`read_text_file`; or it is not JSON.
    """
    name = str(path) if name is None else name
    text = read_text_file(path, name, remedy)
    try:
        return json.loads(text)
    except RecursionError as error:
        raise UserError(f"{name}: not valid JSON (nested too deeply); {remedy}") from error
    except ValueError as error:
        reason = "it is empty" if not text.strip() else str(error)
        raise UserError(f"{name}: not valid JSON ({reason}); {remedy}") from error


def read_json_object(path: Path, name: str | None = None, remedy: str = COPY_AGAIN) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: of the file.
        name: what to call it in messages, such as ``--model FILE``; None for its path.
        remedy: what to do where it is damaged.

    Raises:
        UserError: as :func:`read_json_file`; or it holds another value than an object.
    """
    content = read_json_file(path, name, remedy)
    if not isinstance(content, dict):
        name = str(path) if name is None else name
        raise UserError(f"{name}: expected a JSON object, found {json_type(content)}; {remedy}")
    return content


def is_there(path: Path) -> bool:
    """Whether a name is taken, also by a folder or by a link to a file that is missing, which reading then refuses."""
    return path.exists() or path.is_symlink()


def check_json_objects(folder: Path, names: Sequence[str]) -> None:
    """Refuse a folder in which one of these files is damaged; those that are missing pass.

    Libraries read some of them late, some only at times, and some not at all where others hold the same: a copy that
    was cut short would be found out hours later, or be copied on.

    Raises:
        UserError: as :func:`read_json_object`.
    """
    for name in names:
        path = folder / name
        if is_there(path):
            read_json_object(path)


def read_json_lines(path: Path, remedy: str = "delete the line, or move the file away") -> list[dict[str, Any]]:
    """The objects of a file with one a line, as the project writes them; a last line without its end is left out.

    Args:
        path: of the file.
        remedy: what to do where a line is damaged.

    Raises:
        UserError: as :func:`read_text_file`; or a line is no JSON object.
    """
    lines = read_text_file(path, remedy=remedy).split("\n")[:-1]
    try:
        return [parse_line(line.encode("utf-8"), f"{path}:{number}") for number, line in enumerate(lines, start=1)]
    except RecordError as error:
        raise UserError(f"{error}; {remedy}") from error


def build_dataclass(kind: type[T], content: Any) -> T:
    """An instance of a dataclass from its JSON form, with every value's type checked, those inside it too.

    Args:
        kind: a dataclass of numbers, texts, lists, dictionaries, ``None`` and other such dataclasses.
        content: what :func:`dataclasses.asdict` and JSON made of an instance.

    Raises:
        ValueError: a field is missing, unknown or of a wrong type; names the field.
    """
    return typing.cast(T, _build(kind, content, ""))


def _build(kind: Any, value: Any, where: str) -> Any:
    arguments = typing.get_args(kind)
    origin = typing.get_origin(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        inner = [one for one in arguments if one is not type(None)]
        return None if value is None and len(inner) < len(arguments) else _build(inner[0], value, where)
    if dataclasses.is_dataclass(kind):
        return _build_fields(kind, value, where)
    if origin is list:
        _require(isinstance(value, list), "an array", value, where)
        return [_build(arguments[0], one, f"{where}[{place}]") for place, one in enumerate(value)]
    if origin is dict:
        _require(isinstance(value, dict), "an object", value, where)
        return {key: _build(arguments[1], one, f"{where}.{key}") for key, one in value.items()}
    if kind in (int, float):
        allowed = (int, float) if kind is float else int
        _require(isinstance(value, allowed) and not isinstance(value, bool), "a number", value, where)
        return value
    _require(isinstance(value, kind), {str: "a string", bool: "true or false"}.get(kind, kind.__name__), value, where)
    return value


def _build_fields(kind: Any, value: Any, where: str) -> Any:
    _require(isinstance(value, dict), "an object", value, where)
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    prefix = f"{where}." if where else ""
    for name in value:
        if name not in fields:
            raise ValueError(f"the field {prefix}{name} is unknown")
    for name, field in fields.items():
        has_default = not (field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING)
        if name not in value and not has_default:
            raise ValueError(f"the field {prefix}{name} is missing")
    return kind(**{name: _build(hints[name], one, f"{prefix}{name}") for name, one in value.items()})


def _require(holds: bool, expected: str, value: Any, where: str) -> None:
    if not holds:
        raise ValueError(f"{where or 'the file'} must be {expected}, found {json_type(value)}")
