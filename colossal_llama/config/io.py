"""Reading and writing configuration files."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from colossal_llama.atomic import write_text_atomically
from colossal_llama.errors import UserError
from colossal_llama.json_files import read_text_file


def read_yaml_mapping(path: Path, flag: str = "--config") -> dict[str, Any]:
    """The top-level mapping of a YAML file.

    Args:
        path: of the file.
        flag: what named it, for messages.

    Raises:
        UserError: the file is missing, is not YAML, or holds something else than a mapping.
    """
    import yaml

    text = read_text_file(path, f"{flag} {path}")
    try:
        content = yaml.safe_load(text)
    except RecursionError as error:
        raise UserError(f"{flag} {path}: not valid YAML: nested too deeply") from error
    except yaml.YAMLError as error:
        raise UserError(f"{flag} {path}: not valid YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{flag} {path}: expected 'key: value' lines, found {type(content).__name__}")
    return content


def write_config(config: Any, path: Path) -> None:
    """Write a config dataclass as JSON, which ``--config`` reads back (JSON is a subset of YAML).

    An older file is replaced only when the new one is complete.

    Raises:
        UserError: it cannot be written there.
    """
    write_text_atomically(path, json.dumps(dataclasses.asdict(config), indent=2, ensure_ascii=False) + "\n")
