"""The description of a prepared dataset, which training checks its tokenizer and lengths against."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colossal_llama.constants import MANIFEST_FILE
from colossal_llama.errors import UserError
from colossal_llama.json_files import build_dataclass, is_there, read_json_object

FORMAT_VERSION = 2
"""Raised whenever a reader of the old format would misunderstand the new one."""

PRETRAIN = "pretrain"
SFT = "sft"


@dataclass(frozen=True)
class Share:
    """What a part holds of one sub-dataset: documents and their tokens before long ones were cut."""

    documents: int
    tokens: int


@dataclass(frozen=True)
class PartInfo:
    """Counts of one part folder.

    Attributes:
        name: of the folder.
        rows: in it.
        pieces: documents after cutting.
        tokens: in all rows.
        target_tokens: of them with loss.
        documents: a conversation in pieces counts once.
        cut_documents: documents in more than one piece.
        dropped_tokens: of long documents (``--long_documents truncate`` and ``sample``).
        sub_datasets: by name.
    """

    name: str
    rows: int
    pieces: int
    tokens: int
    target_tokens: int
    documents: int
    cut_documents: int
    dropped_tokens: int
    sub_datasets: dict[str, Share]


@dataclass(frozen=True)
class SubDataset:
    """Counts of one sub-dataset.

    Attributes:
        name: of the input, or the category (``--sub_dataset_by``).
        documents, characters, bytes, tokens: of all its documents (bytes of UTF-8).
        validation_documents, validation_tokens: of them in the validation part.
        epochs: how often the others are in the bins.
    """

    name: str
    documents: int
    characters: int
    bytes: int
    tokens: int
    validation_documents: int
    validation_tokens: int
    epochs: float


@dataclass(frozen=True)
class InputInfo:
    """Counts of one input.

    Attributes:
        path: of the input.
        files: that were read.
        records: in them.
        dropped: numbers of records by reason.
        fields_not_read: numbers of records that hold something in a field which is not read, by its name.
    """

    path: str
    files: int
    records: int
    dropped: dict[str, int]
    fields_not_read: dict[str, int] = field(default_factory=dict)


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
        settings: the other flags that decide what the rows hold.
        documents, characters, bytes: of the texts that were kept (chat templates not counted).
        tokens_in: tokens that the tokenizer made of them.
        tokens_repeated: tokens that a mixture takes a second time or more often.
        tokens_dropped: by reason; ``tokens_in + tokens_repeated`` is ``tokens``, the validation part's tokens and
            these.
        rows: sum over the parts (validation not counted), as are ``tokens`` and ``target_tokens``.
        tokens: in all rows.
        target_tokens: tokens with loss.
        dropped: records without anything to learn, by reason.
        dropped_turns: turns of conversations that are longer than a row by themselves.
        dropped_turn_tokens: their tokens, which are not in ``tokens_in``.
        trailing_human: conversations whose unanswered last message was cut.
        inputs: one entry per input of ``--data_input_dirs``.
        sub_datasets: one entry per sub-dataset.
        parts: one entry per part folder, in order.
        validation: the validation part, or None.
        versions: of the programs that made this.
        chat_template: of an SFT dataset; None for pretraining.
        turns_without_loss: turns that would have made a row's piece in which nothing is learned.
        tokens_without_loss: tokens of those pieces, which are not in ``tokens_in``.
        fields_not_read: records that hold something in a field which is not read, by its name.
        files_not_read: why files and folders of the inputs were passed over, by path; the first 1,000.
        number_not_read: of all of them.
        format_version: of this file.
    """

    kind: str
    tokenizer_fingerprint: str
    vocab_size: int
    max_length: int
    bins: int
    seed: int
    settings: dict[str, Any]
    documents: int
    characters: int
    bytes: int
    tokens_in: int
    tokens_repeated: int
    tokens_dropped: dict[str, int]
    rows: int
    tokens: int
    target_tokens: int
    dropped: dict[str, int]
    dropped_turns: int
    dropped_turn_tokens: int
    trailing_human: int
    inputs: list[InputInfo]
    sub_datasets: list[SubDataset]
    parts: list[PartInfo]
    validation: PartInfo | None
    versions: dict[str, str]
    chat_template: ChatFormat | None = None
    turns_without_loss: int = 0
    tokens_without_loss: int = 0
    fields_not_read: dict[str, int] = field(default_factory=dict)
    files_not_read: dict[str, str] = field(default_factory=dict)
    number_not_read: int = 0
    format_version: int = FORMAT_VERSION


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write ``manifest.json`` into ``folder``."""
    text = json.dumps(dataclasses.asdict(manifest), indent=2, ensure_ascii=False)
    # The name of an input need not be UTF-8; what of it is not becomes an escape of JSON.
    (folder / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def read_manifest(folder: Path, flag: str) -> Manifest | None:
    """The manifest in ``folder``; None when there is none.

    Raises:
        UserError: the file is broken or of a newer format.
    """
    path = folder / MANIFEST_FILE
    if not is_there(path):
        return None
    content = read_json_object(path, f"{flag} {path}", "prepare the dataset again")
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{flag} {path}: format version {version}, this program reads {FORMAT_VERSION}; "
            "prepare the dataset with this version"
        )
    try:
        return build_dataclass(Manifest, content)
    except ValueError as error:
        raise UserError(f"{flag} {path}: fields are missing or wrong ({error}); prepare the dataset again") from error


def part_info_from(content: dict[str, Any]) -> PartInfo:
    """A :class:`PartInfo` from its JSON form.

    Raises:
        ValueError: fields are missing, unknown or of a wrong type.
    """
    return build_dataclass(PartInfo, content)
