"""Finished measurements on disk, so that a killed run goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from colossal_llama.atomic import MODEL_FOLDER_SUFFIXES, write_text_atomically
from colossal_llama.json_records import json_value

_READ_BYTES = 1 << 24


class ResultStore:
    """One JSON file for each measurement, found again by everything that the measurement depends on.

    Args:
        folder: is made when the first result is saved.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, name: str, settings: Mapping[str, Any], ending: str = ".json") -> Path:
        """The file of a measurement; other settings give another file."""
        text = json.dumps(settings, sort_keys=True, ensure_ascii=False)
        key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return self._folder / f"{name.replace(':', '-').replace('/', '-')}-{key}{ending}"

    def load(self, name: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """The result, or None where it was not finished with these settings (or its file is damaged)."""
        try:
            content = json.loads(self.path(name, settings).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(content, dict) or content.get("settings") != dict(settings):
            return None
        return content.get("result")

    def save(self, name: str, settings: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Write a result; it is on disk as a whole or not at all."""
        write_json(self.path(name, settings), {"settings": dict(settings), "result": dict(result)})


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as strict JSON (null for NaN) with new parents; the file is complete or as it was."""
    write_text(path, json.dumps(json_value(content), ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with new parents; the file is complete or as it was."""
    write_text_atomically(path, text, errors="backslashreplace")


def files_fingerprint(files: list[Path]) -> str:
    """XXH3 of the names and contents of files, in their order."""
    import xxhash

    digest = xxhash.xxh3_128()
    for path in files:
        digest.update(path.name.encode("utf-8", "surrogateescape") + b"\0")
        with path.open("rb") as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
    return digest.hexdigest()


def model_fingerprint(folder: Path) -> str:
    """Identify all that decides a model's answers: weights, configuration and tokenizer in ``folder``.

    Whole files are read, because stages of one training may differ in a few rows only. For LoRA adapters the base
    model that they name counts too.

    Raises:
        UserError: there is no such base model, or the adapters' configuration is damaged.
    """
    from colossal_llama.model.adapters import find_base
    from colossal_llama.model.model_folder import is_adapter_folder

    files = sorted(file for file in folder.iterdir() if file.suffix in MODEL_FOLDER_SUFFIXES and file.suffix != ".md")
    fingerprint = files_fingerprint([file for file in files if file.is_file()])
    if is_adapter_folder(folder, "model"):
        base = find_base(folder, "model", None)
        if base.resolve() != folder.resolve():
            fingerprint += "+" + model_fingerprint(base)
    return fingerprint
