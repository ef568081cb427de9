"""Prepared rows for people to read: opened, cut into their documents, decoded, with and without loss."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from colossal_llama.constants import IGNORE_INDEX, MANIFEST_FILE, PART_PREFIX
from colossal_llama.data.dataset import IDS, LABELS, LENGTHS, PartRows, load_table, part_folders
from colossal_llama.html_page import REPLACEMENT
from colossal_llama.json_files import is_there, read_json_object

if TYPE_CHECKING:
    import pyarrow
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class PackedRow:
    """One row: ``input_ids`` and ``labels`` (int32 [tokens]), and of its documents lengths and categories.

    A document here is a piece of at most one row; longer ones were cut.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    seq_lengths: list[int]
    categories: list[str]


@dataclass(frozen=True, slots=True)
class PreparedPart:
    """A part folder, mapped: its rows as training reads them, and all columns."""

    name: str
    table: "pyarrow.Table"
    rows: PartRows

    def mapped_again(self) -> "PreparedPart":
        """The same part in mappings of its own, whose pages stop counting as memory when it is forgotten."""
        return _open_part(self.rows.folder, "--dataset")

    def row(self, index: int) -> PackedRow:
        """Row ``index`` of this part; without the columns that preparation adds it is one document."""
        row = self.rows.row(index)
        lengths = row[LENGTHS].tolist() if LENGTHS in row else [len(row[IDS])]
        categories = [""] * len(lengths)
        if "category" in self.table.column_names:
            categories = self.table.column("category")[index].values.to_pylist()
        return PackedRow(row[IDS], row[LABELS], lengths, categories)


@dataclass(frozen=True)
class PreparedFolder:
    """A prepared dataset.

    Attributes:
        manifest: content of ``manifest.json``, unchecked, so that fields of other versions show too; empty
            without one.
        parts: the parts in order.
    """

    manifest: dict[str, Any]
    parts: list[PreparedPart]

    def __len__(self) -> int:
        return sum(part.table.num_rows for part in self.parts)

    def row(self, index: int) -> PackedRow:
        """Row ``index`` of all parts one behind the other.

        Raises:
            IndexError: there is no such row.
        """
        if index < 0:
            raise IndexError(f"row {index}")
        rest = index
        for part in self.parts:
            if rest < part.table.num_rows:
                return part.row(rest)
            rest -= part.table.num_rows
        raise IndexError(f"row {index} of {len(self)}")


def open_prepared(path: Path, flag: str) -> PreparedFolder:
    """Open an arrow folder, or one part of it.

    Raises:
        UserError: missing or not a prepared dataset.
    """
    manifest = read_raw_manifest(path)
    # part_folders accepts manifests of its own format only, so it comes last.
    folders = [path / name for name in part_entries(manifest)] or sorted(path.glob(f"{PART_PREFIX}*"))
    folders = folders or part_folders(path, flag)
    if folders == [path]:
        manifest = read_raw_manifest(path.resolve().parent)
    return PreparedFolder(manifest, [_open_part(folder, flag) for folder in folders])


def _open_part(folder: Path, flag: str) -> PreparedPart:
    table = load_table(folder, flag)
    return PreparedPart(folder.name, table, PartRows(folder, table))


def read_raw_manifest(folder: Path) -> dict[str, Any]:
    """The manifest's content as it stands in the file; empty without one.

    Raises:
        UserError: the file is not a JSON object.
    """
    path = folder / MANIFEST_FILE
    if not is_there(path):
        return {}
    return read_json_object(path, remedy="prepare the dataset again")


def part_entries(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The manifest's entries of parts by name, in order; empty without any."""
    return {str(entry["name"]): entry for entry in manifest.get("parts") or [] if "name" in entry}


@dataclass(frozen=True, slots=True)
class Segment:
    """Text that is learned as a whole or not at all."""

    text: str
    learned: bool


@dataclass(frozen=True, slots=True)
class DecodedDocument:
    """A document of a row; ``segments`` alternate between learned and not learned."""

    category: str
    tokens: int
    learned_tokens: int
    segments: list[Segment]


def decode_row(row: PackedRow, tokenizer: "PreTrainedTokenizerBase | None") -> list[DecodedDocument]:
    """The documents of a row as text; without a tokenizer their ids stand for it."""
    documents = []
    start = 0
    for length, category in zip(row.seq_lengths, row.categories, strict=True):
        ids, labels = row.input_ids[start : start + length], row.labels[start : start + length]
        learned = labels != IGNORE_INDEX
        segments = list(_segments(ids, learned, tokenizer))
        documents.append(DecodedDocument(category, length, int(learned.sum()), segments))
        start += length
    return documents


def _segments(ids: np.ndarray, learned: np.ndarray, tokenizer: "PreTrainedTokenizerBase | None") -> Iterator[Segment]:
    borders = [0, *(np.flatnonzero(np.diff(learned)) + 1).tolist(), len(ids)]
    if tokenizer is None:
        for start, end in pairwise(borders):
            yield Segment(" ".join(map(str, ids[start:end].tolist())), bool(learned[start]))
        return
    # Tokens can hold part of a character, and SentencePiece drops a space at the start of what it decodes: so
    # the text of a run is what it adds to the text before it, and a character that is complete only in the
    # next run belongs to that.
    shown = ""
    for start, end in pairwise(borders):
        text = _decode(ids[:end], tokenizer)
        if end < len(ids):
            text = text.rstrip(REPLACEMENT)
        if text.startswith(shown):
            added, shown = text[len(shown) :], text
        else:
            added = _decode(ids[start:end], tokenizer)
            shown += added
        if added:
            yield Segment(added, bool(learned[start]))


def _decode(ids: np.ndarray, tokenizer: "PreTrainedTokenizerBase") -> str:
    return tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)
