"""The description of a prepared dataset, which training checks its tokenizer and lengths against."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colossal_llama.constants import MANIFEST_FILE
from colossal_llama.errors import UserError

FORMAT_VERSION = 1
"""Raised whenever a reader of the old format would misunderstand the new one."""

PRETRAIN = "pretrain"
SFT = "sft"


@dataclass(frozen=True)
class PartInfo:
    """Counts of one part folder. ``pieces`` are documents after long ones were cut."""

    name: str
    rows: int
    pieces: int
    tokens: int
    target_tokens: int


@dataclass(frozen=True)
class SubDataset:
    """Counts of one input directory; ``dropped`` maps reasons to numbers of records."""

    name: str
    files: int
    records: int
    documents: int
    tokens: int
    dropped: dict[str, int]


@dataclass(frozen=True)
class ChatFormat:
    """The chat template of an SFT dataset: its registered name and the tokenizer's Jinja string."""

    name: str
    jinja: str


@dataclass(frozen=True)
class Manifest:
    """Content of ``manifest.json``.

    Attributes:
        kind: "pretrain" or "sft".
        tokenizer_fingerprint: of the tokenizer that made the ids.
        vocab_size: its largest token id plus one.
        max_length: no row is longer.
        bins: number of parts.
        seed: of the shuffles.
        documents: records kept.
        characters: of the documents' texts (chat templates not counted).
        rows: sum over the parts, as are ``tokens`` and ``target_tokens``.
        tokens: in all rows.
        target_tokens: tokens with loss.
        dropped: records without anything to learn, by reason.
        dropped_turns: turns of conversations that are longer than a row by themselves.
        dropped_turn_tokens: their tokens.
        trailing_human: conversations whose unanswered last message was cut.
        sub_datasets: one entry per input directory.
        parts: one entry per part folder, in order.
        chat_template: of an SFT dataset; None for pretraining.
        format_version: of this file.
    """

    kind: str
    tokenizer_fingerprint: str
    vocab_size: int
    max_length: int
    bins: int
    seed: int
    documents: int
    characters: int
    rows: int
    tokens: int
    target_tokens: int
    dropped: dict[str, int]
    dropped_turns: int
    dropped_turn_tokens: int
    trailing_human: int
    sub_datasets: list[SubDataset]
    parts: list[PartInfo]
    chat_template: ChatFormat | None = None
    format_version: int = FORMAT_VERSION


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write ``manifest.json`` into ``folder``."""
    text = json.dumps(dataclasses.asdict(manifest), indent=2, ensure_ascii=False)
    (folder / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path, flag: str) -> Manifest | None:
    """The manifest in ``folder``; None when there is none.

    Raises:
        UserError: the file is broken or of a newer format.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{flag} {path}: not a readable manifest; prepare the dataset again") from error
    if version != FORMAT_VERSION:
        raise UserError(
            f"{flag} {path}: format version {version}, this program reads {FORMAT_VERSION}; "
            "prepare the dataset with this version"
        )
    try:
        return _manifest_from(content)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{flag} {path}: fields are missing or wrong ({error}); prepare the dataset again") from error


def _manifest_from(content: dict[str, Any]) -> Manifest:
    chat = content["chat_template"]
    content |= {
        "sub_datasets": [SubDataset(**entry) for entry in content["sub_datasets"]],
        "parts": [PartInfo(**entry) for entry in content["parts"]],
        "chat_template": None if chat is None else ChatFormat(**chat),
    }
    return Manifest(**content)
