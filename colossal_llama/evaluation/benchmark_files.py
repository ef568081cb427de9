"""Reading benchmarks' own files: CSV tables, JSON lines, JSON documents; errors name file and line."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from colossal_llama.errors import UserError
from colossal_llama.json_files import read_json_file
from colossal_llama.json_records import json_type, parse_line

Row = dict[str, Any]


def read_csv(path: Path, columns: Sequence[str] | None = None) -> list[Row]:
    """The rows of a CSV file in UTF-8.

    Args:
        path: the file.
        columns: names of the columns of a file without a header line; without them the first line is the header.

    Raises:
        UserError: not UTF-8, or a row with another number of fields.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [(number, row) for number, row in enumerate(csv.reader(file), start=1) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8 ({error}); download it again") from error
    if columns is None:
        if not lines:
            return []
        columns = lines.pop(0)[1]
    for number, row in lines:
        if len(row) != len(columns):
            raise UserError(f"{path}:row {number}: {len(row)} fields, expected {len(columns)}: {', '.join(columns)}")
    return [dict(zip(columns, row, strict=True)) for _, row in lines]


def read_json_lines(path: Path) -> list[Row]:
    """The objects of a ``.jsonl`` or ``.jsonl.gz`` file.

    Raises:
        UserError: a line is no JSON object, or the file is damaged.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({error}); download it again") from error
    lines = enumerate(content.split(b"\n"), start=1)
    return [parse_line(line, f"{path}:{number}") for number, line in lines if line.strip()]


def read_examples(path: Path, key: str) -> list[Row]:
    """The list under ``key`` of a JSON document.

    Raises:
        UserError: no JSON, or no such list of objects.
    """
    content = read_json_file(path, remedy="download it again")
    examples = content.get(key) if isinstance(content, dict) else None
    if not isinstance(examples, list) or not all(isinstance(one, dict) for one in examples):
        raise UserError(f'{path}: expected {{"{key}": [{{...}}, ...]}}')
    return examples


def require_fields(rows: Sequence[Row], names: Sequence[str], path: Path) -> None:
    """Refuse rows that lack a field.

    Raises:
        UserError: names the file, the row and the field.
    """
    for number, row in enumerate(rows, start=1):
        for name in names:
            if name not in row:
                raise UserError(f"{path}:row {number}: the field {name!r} is missing")


def require_texts(rows: Sequence[Row], names: Sequence[str], path: Path) -> None:
    """Refuse rows that lack a field, or hold something other than a text there.

    Raises:
        UserError: names the file, the row and the field.
    """
    require_fields(rows, names, path)
    for number, row in enumerate(rows, start=1):
        for name in names:
            if not isinstance(row[name], str):
                raise UserError(f"{path}:row {number}: {name!r} must be a string, found {json_type(row[name])}")
