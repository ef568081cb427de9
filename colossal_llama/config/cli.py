"""Command lines derived from dataclasses: one typed field is flag, YAML key and help text.

``transformers.HfArgumentParser`` does the same but imports torch (measured: 3.6 s before ``--help`` prints),
so this module does it on argparse alone. Precedence: dataclass default < ``--config FILE.yaml`` < flag.
"""

import argparse
import dataclasses
import difflib
import itertools
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from colossal_llama.errors import UserError

C = TypeVar("C")


def flag(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    aliases: Sequence[str] = (),
    choices: Sequence[str] | None = None,
    positional: bool = False,
) -> Any:
    """A dataclass field that is also the flag ``--<field name>``.

    Args:
        default: value when neither flag nor YAML gives one; without it the flag is required.
        help: the help text; the default is appended to it.
        aliases: further spellings, dashes included (``"-w"``, ``"--grad_clip"``).
        choices: the accepted values.
        positional: an argument without a flag in front; it is required.
    """
    metadata = {"help": help, "aliases": tuple(aliases), "choices": choices, "positional": positional}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class _OneLineParser(argparse.ArgumentParser):
    """Reports a bad command line in one line instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


_BOOL_WORDS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def _parse_bool(text: str) -> bool:
    if text.lower() in _BOOL_WORDS:
        return _BOOL_WORDS[text.lower()]
    raise argparse.ArgumentTypeError(f"expected true or false, not {text!r}")


def _element_type(annotation: Any) -> tuple[type, bool]:
    """The scalar type of an annotation and whether it is a list; ``T | None`` counts as ``T``."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        inner = [part for part in typing.get_args(annotation) if part is not type(None)]
        return _element_type(inner[0])
    if typing.get_origin(annotation) is list:
        return typing.get_args(annotation)[0], True
    return annotation, False


def _default_of(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def build_parser(config_class: type, description: str) -> argparse.ArgumentParser:
    """The argparse parser of a config dataclass whose fields were made with :func:`flag`."""
    parser = _OneLineParser(description=description, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE.yaml", help="read values from this file; flags override it")
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        element, is_list = _element_type(hints[field.name])
        default = _default_of(field)
        ending = " (required)" if default is dataclasses.MISSING else f" (default: {default})"
        options: dict[str, Any] = {
            "dest": field.name,
            "help": (field.metadata["help"] + ending).replace("%", "%%"),
            "choices": field.metadata["choices"],
        }
        if element is bool:
            options |= {"nargs": "?", "const": True, "type": _parse_bool, "metavar": "true|false"}
        else:
            options |= {"type": element}
            if field.metadata["choices"] is None:
                options["metavar"] = element.__name__.upper()
        if is_list:
            options["nargs"] = "+"
        if field.metadata["positional"]:
            options["metavar"] = field.name.upper()
            parser.add_argument(options.pop("dest"), **options)
            continue
        parser.add_argument(f"--{field.name}", *field.metadata["aliases"], **options)
    return parser


def _field_of_key(config_class: type) -> dict[str, dataclasses.Field]:
    """Every spelling of every field, without dashes."""
    table = {}
    for field in dataclasses.fields(config_class):
        for spelling in (field.name, *field.metadata["aliases"]):
            table[spelling.lstrip("-")] = field
    return table


def _check_type(key: str, value: Any, annotation: Any, source: str) -> Any:
    element, is_list = _element_type(annotation)
    if value is None:
        if type(None) in typing.get_args(annotation):
            return None
        raise UserError(f"{source}: {key} must be {element.__name__}, not null")
    if is_list:
        values = value if isinstance(value, list) else [value]
        return [_check_type(key, item, element, source) for item in values]
    if element is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:  # YAML 1.1 reads 3e-4 as a string
            return float(value)
        except ValueError:
            pass
    if not isinstance(value, element) or (element is int and isinstance(value, bool)):
        raise UserError(f"{source}: {key} must be {element.__name__}, not {value!r}")
    return value


def values_from_mapping(config_class: type, mapping: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Check a mapping (a YAML file's content) against the fields of ``config_class``.

    Raises:
        UserError: an unknown key (the nearest known one is named), a wrong type or a value not among the
            choices; the message starts with ``source``.
    """
    table = _field_of_key(config_class)
    hints = typing.get_type_hints(config_class)
    values = {}
    for key, value in mapping.items():
        if key not in table:
            near = difflib.get_close_matches(str(key), table, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{source}: unknown key {key!r}{hint}")
        field = table[key]
        choices = field.metadata["choices"]
        if isinstance(value, bool) and choices and {"on", "off"} <= set(choices):
            value = "on" if value else "off"  # YAML 1.1 reads a bare on as true
        checked = _check_type(key, value, hints[field.name], source)
        if choices and checked is not None and checked not in choices:
            raise UserError(f"{source}: {key} must be one of {', '.join(choices)}, not {checked!r}")
        values[field.name] = checked
    return values


def with_leading_values(argv: Sequence[str] | None, flag: str) -> list[str]:
    """The arguments (None: the process's) with what stands before all flags as values of ``flag``."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    leading = list(itertools.takewhile(lambda argument: not argument.startswith("-"), arguments))
    return [flag, *leading, *arguments[len(leading) :]] if leading else arguments


def _separate_switches(config_class: type, argv: Sequence[str]) -> list[str]:
    """``argv`` with ``--switch=true`` for a switch in front of an argument without a flag, which is not its value."""
    hints = typing.get_type_hints(config_class)
    fields = dataclasses.fields(config_class)
    if not any(field.metadata["positional"] for field in fields):
        return list(argv)
    switches = {
        spelling
        for field in fields
        if _element_type(hints[field.name])[0] is bool
        for spelling in (f"--{field.name}", *field.metadata["aliases"])
    }
    words = []
    for position, word in enumerate(argv):
        behind = argv[position + 1] if position + 1 < len(argv) else "--"
        takes_it = behind.startswith("-") or behind.lower() in _BOOL_WORDS
        words.append(word if word not in switches or takes_it else f"{word}=true")
    return words


def parse_config(config_class: type[C], argv: Sequence[str] | None, description: str) -> C:
    """Parse flags and the YAML file they name into a ``config_class``.

    Raises:
        UserError: unknown flag or key, wrong type, missing required value, or whatever the dataclass's own
            ``__post_init__`` refuses.
    """
    from colossal_llama.config.io import read_yaml_mapping

    words = _separate_switches(config_class, sys.argv[1:] if argv is None else argv)
    parsed = vars(build_parser(config_class, description).parse_args(words))
    values: dict[str, Any] = {}
    config_file = parsed.pop("config", None)
    if config_file is not None:
        values |= values_from_mapping(config_class, read_yaml_mapping(Path(config_file)), str(config_file))
    values |= parsed
    missing = [
        f"--{field.name}"
        for field in dataclasses.fields(config_class)  # type: ignore[arg-type]
        if _default_of(field) is dataclasses.MISSING and field.name not in values
    ]
    if missing:
        where = f", also in --config {config_file}" if config_file is not None else ""
        raise UserError(f"missing required {', '.join(missing)}{where} (see --help)")
    return config_class(**values)
