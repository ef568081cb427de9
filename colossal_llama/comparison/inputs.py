"""Prompts and benchmark results that a comparison is given."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from colossal_llama.config.sampling import check_text
from colossal_llama.errors import UserError
from colossal_llama.json_files import read_json_object
from colossal_llama.json_records import parse_line


def read_prompts(specs: Sequence[str]) -> tuple[str, ...]:
    """The prompts themselves, or those of ``.txt`` files (one a line) and ``.jsonl`` files (field ``prompt``).

    Raises:
        UserError: a file is missing, empty or not as it should be.
    """
    prompts: list[str] = []
    for spec in specs:
        if not spec.endswith((".txt", ".jsonl")):
            check_text("--prompts", spec)
            prompts.append(spec)
            continue
        path = Path(spec)
        if not path.is_file():
            raise UserError(f"--prompts {spec}: no such file")
        found = _prompts_of(path)
        if not found:
            raise UserError(f"--prompts {spec}: no prompt in it")
        prompts += found
    if not all(prompt.strip() for prompt in prompts):
        raise UserError("--prompts: one of them is empty; give texts")
    return tuple(prompts)


def _prompts_of(path: Path) -> list[str]:
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    lines = [(number, line) for number, line in enumerate(content.splitlines(), start=1) if line.strip()]
    if path.suffix == ".txt":
        try:
            return [line.decode("utf-8").strip() for _, line in lines]
        except UnicodeDecodeError as error:
            raise UserError(f"--prompts {path}: not UTF-8; convert the file to UTF-8") from error
    prompts = []
    for number, line in lines:
        where = f"{path}:{number}"
        prompt = parse_line(line, where).get("prompt")
        if not isinstance(prompt, str):
            raise UserError(f'{where}: expected {{"prompt": "..."}}')
        prompts.append(prompt)
    return prompts


def read_results(specs: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """The contents of ``results.json`` files, or of those in output folders of evaluate.py.

    Raises:
        UserError: missing, or not written by evaluate.py.
    """
    found = []
    for spec in specs:
        path = Path(spec) / "results.json" if Path(spec).is_dir() else Path(spec)
        remedy = "give the results.json of scripts/evaluate.py, or the folder that it is in"
        content = read_json_object(path, f"--results {path}", remedy)
        identity = content.get("identity")
        if not isinstance(identity, dict) or not isinstance(identity.get("model"), str):
            raise UserError(f"--results {path}: no results of scripts/evaluate.py; {remedy}")
        if not isinstance(content.get("tasks"), dict):
            raise UserError(f"--results {spec}: has no benchmark scores; run scripts/evaluate.py with --tasks")
        found.append((spec, content))
    return found


def tasks_by_model(
    results: Sequence[tuple[str, dict[str, Any]]], fingerprints: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The benchmark results of each model, by its fingerprint.

    Raises:
        UserError: results of a model that has none of these fingerprints.
    """
    tasks: dict[str, dict[str, Any]] = {fingerprint: {} for fingerprint in fingerprints}
    for spec, content in results:
        fingerprint = content["identity"]["model"]
        if fingerprint not in tasks:
            raise UserError(
                f"--results {spec}: measured on {content.get('model')}, which is none of the models compared (or its "
                "files have changed since)"
            )
        tasks[fingerprint] |= content["tasks"]
    return tasks
