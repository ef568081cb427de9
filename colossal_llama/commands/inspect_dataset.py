"""``scripts/inspect_dataset.py``: a prepared dataset on the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colossal_llama.config.cli import parse_config, with_leading_values
from colossal_llama.config.inspect import InspectConfig
from colossal_llama.errors import UserError, run_command

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from colossal_llama.data.inspection import DecodedDocument

DESCRIPTION = "Show what a prepared dataset holds: its manifest, and rows as text with what is learned of them."

LEARNED, NOT_LEARNED, BOUNDARY, RESET = "\033[32m", "\033[90m", "\033[1;36m", "\033[0m"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command; returns the exit code."""
    arguments = with_leading_values(argv, "--dataset")
    return run_command(lambda: inspect_dataset(parse_config(InspectConfig, arguments, DESCRIPTION)))


def inspect_dataset(config: InspectConfig) -> None:
    """Print the manifest's figures and the rows.

    Raises:
        UserError: not a prepared dataset, a row that it does not have, or another tokenizer than it was made with.
    """
    from colossal_llama.data.inspection import decode_row, open_prepared

    folder = open_prepared(Path(config.dataset), "--dataset")
    for number in config.row:
        if number >= len(folder):
            raise UserError(f"--row {number}: the dataset has {len(folder)} rows, counted from 0")
    tokenizer = _load_tokenizer(config, folder.manifest) if config.tokenizer_dir else None
    colored = use_color(config.color)
    print("\n".join(manifest_lines(folder.manifest)))
    for number in config.row:
        row = folder.row(number)
        documents = decode_row(row, tokenizer)
        heading = f"row {number}: {len(row.input_ids):,} tokens, documents: {len(documents)}"
        print("\n" + "\n".join(row_lines(heading, documents, colored)))
    if config.row:
        print("\n" + legend(colored), flush=True)


def _load_tokenizer(config: InspectConfig, manifest: dict[str, Any]) -> PreTrainedTokenizerBase:
    from colossal_llama.tokenizer.fingerprint import tokenizer_fingerprint
    from colossal_llama.tokenizer.loading import load_tokenizer

    tokenizer = load_tokenizer(str(config.tokenizer_dir), "--tokenizer_dir")
    expected = manifest.get("tokenizer_fingerprint")
    if expected is not None and tokenizer_fingerprint(tokenizer) != expected:
        raise UserError(
            f"--tokenizer_dir {config.tokenizer_dir}: the dataset was prepared with another tokenizer; give that one"
        )
    return tokenizer


def use_color(choice: str) -> bool:
    """Whether to print colours, for a value of ``--color``."""
    if choice == "auto":
        return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return choice == "always"


def manifest_lines(manifest: dict[str, Any]) -> list[str]:
    """The manifest's figures, one field a line; lists as one line per entry."""
    if not manifest:
        return ["no manifest.json: the dataset was made by another program"]
    lines = []
    for name, value in manifest.items():
        if isinstance(value, list):
            lines.append(f"{name}:")
            lines += [f"  {_flat(entry)}" for entry in value]
        else:
            lines.append(f"{name}: {_flat(value)}")
    return lines


def _flat(value: Any) -> str:
    from colossal_llama.html_page import printable

    if isinstance(value, dict):
        inner = ", ".join(
            f"{name} ({_flat(entry)})" if isinstance(entry, dict) else f"{name} {_flat(entry)}"
            for name, entry in value.items()
        )
        return inner or "none"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return printable(str(value)).replace("\n", "␊")


def row_lines(heading: str, documents: Sequence[DecodedDocument], colored: bool) -> Iterator[str]:
    """A row for the terminal: each document behind a line that names it."""
    from colossal_llama.html_page import printable

    yield _paint(f"===== {heading} =====", BOUNDARY, colored)
    for number, document in enumerate(documents, start=1):
        category = f"category {printable(document.category)!r}" if document.category else "no category"
        mark = (
            f"----- document {number} of {len(documents)}: {category}, {document.tokens:,} tokens, "
            f"{document.learned_tokens:,} learned -----"
        )
        yield _paint(mark, BOUNDARY, colored)
        text = ""
        for segment in document.segments:
            shown = printable(segment.text)
            if colored:
                text += _paint(shown, LEARNED if segment.learned else NOT_LEARNED, colored)
            else:
                text += shown if segment.learned else f"⟦{shown}⟧"
        yield text


def legend(colored: bool) -> str:
    """How learned and not learned text look."""
    if colored:
        return f"{LEARNED}learned{RESET}, {NOT_LEARNED}not learned{RESET}"
    return "learned, ⟦not learned⟧"


def _paint(text: str, code: str, colored: bool) -> str:
    # Line by line: pagers forget a colour at the end of a line.
    if not colored:
        return text
    return "\n".join(f"{code}{line}{RESET}" if line else "" for line in text.split("\n"))
