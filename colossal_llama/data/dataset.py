"""Random access to prepared rows, straight from the memory-mapped arrow files."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from colossal_llama.constants import IGNORE_INDEX, MANIFEST_FILE, PART_PREFIX
from colossal_llama.data.manifest import Manifest, read_manifest
from colossal_llama.errors import UserError

if TYPE_CHECKING:
    import pyarrow

IDS, LABELS, LEARNED, LENGTHS = "input_ids", "labels", "learned", "seq_lengths"
"""Columns. What is learned stands in LEARNED (start and end of each learned stretch), or, in folders of other
programs, in LABELS (an id or IGNORE_INDEX for each token, four bytes each)."""

HASHED_ROWS = 64
"""Rows of a part whose content goes into its fingerprint."""


def labels_of(input_ids: np.ndarray, learned: np.ndarray) -> np.ndarray:
    """Labels of a row: its ids where it is learned, ``IGNORE_INDEX`` elsewhere; not shifted.

    Args:
        input_ids: int ``[tokens]``.
        learned: column ``learned`` of the row: start and end of each learned stretch, int ``[2 * stretches]``.
    """
    labels = np.full(len(input_ids), IGNORE_INDEX, dtype=np.int32)
    for start, end in learned.reshape(-1, 2).tolist():
        labels[start:end] = input_ids[start:end]
    return labels


class PartRows:
    """The rows of one part folder, read as views of the mapped file.

    Args:
        folder: the part.
        table: of :func:`load_table`.
    """

    def __init__(self, folder: Path, table: "pyarrow.Table") -> None:
        self.folder = folder
        self.has_lengths = _holds_lengths(table)
        names = [IDS, LEARNED if LEARNED in table.column_names else LABELS] + [LENGTHS] * self.has_lengths
        # Offsets of all rows would be copied into every access otherwise.
        self._chunks = [
            dict(zip(names, map(_views, chunks), strict=True))
            for chunks in zip(*(table.column(name).chunks for name in names), strict=True)
        ]
        self._starts = np.cumsum([0, *(len(chunk[IDS][1]) - 1 for chunk in self._chunks)])
        self.rows = int(self._starts[-1])

    def row(self, index: int) -> dict[str, np.ndarray]:
        """Row ``index``: ``input_ids``, ``labels`` and, if the part has them, ``seq_lengths``, int32 each."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        local = index - int(self._starts[number])
        row = {
            name: _int32(values[offsets[local] : offsets[local + 1]])
            for name, (values, offsets) in self._chunks[number].items()
        }
        if LEARNED in row:
            row[LABELS] = labels_of(row[IDS], row.pop(LEARNED))
        return row

    def longest_row(self) -> int:
        """Tokens of the longest row."""
        offsets = [chunk[IDS][1] for chunk in self._chunks]
        return max((int(np.diff(ends).max()) for ends in offsets if len(ends) > 1), default=0)

    def largest_id(self) -> int:
        """Reads every id: for parts without a manifest only."""
        ids = [chunk[IDS][0] for chunk in self._chunks]
        return max((int(values.max()) for values in ids if len(values)), default=-1)

    def hash_into(self, digest: Any) -> None:
        """Update a hash with the lengths of all rows and the content of :data:`HASHED_ROWS` of them, evenly spread."""
        for chunk in self._chunks:
            digest.update(np.diff(chunk[IDS][1]).astype(np.int64).tobytes())
        for index in np.unique(np.linspace(0, self.rows - 1, min(self.rows, HASHED_ROWS)).astype(int)).tolist():
            for _, values in sorted(self.row(index).items()):
                digest.update(values.tobytes())

    def row_with_wrong_lengths(self) -> tuple[int, int, int] | None:
        """The first row whose documents do not add up: its number, tokens and the sum of its document lengths."""
        for start, chunk in zip(self._starts, self._chunks, strict=False):
            lengths, offsets = chunk[LENGTHS]
            ends = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
            sums = ends[offsets[1:]] - ends[offsets[:-1]]
            negative = np.concatenate(([0], np.cumsum(lengths < 0)))
            tokens = np.diff(chunk[IDS][1])
            wrong = np.flatnonzero((sums != tokens) | (negative[offsets[1:]] > negative[offsets[:-1]]))
            if len(wrong):
                return int(start + wrong[0]), int(tokens[wrong[0]]), int(sums[wrong[0]])
        return None


def _views(lists: "pyarrow.ListArray") -> tuple[np.ndarray, np.ndarray]:
    return lists.values.to_numpy(), lists.offsets.to_numpy()


def _holds_lengths(table: "pyarrow.Table") -> bool:
    """Whether the rows say how long their documents are: a list of integers without gaps."""
    import pyarrow

    if LENGTHS not in table.column_names:
        return False
    column = table.column(LENGTHS)
    if not pyarrow.types.is_list(column.type) or not pyarrow.types.is_integer(column.type.value_type):
        return False
    return all(chunk.null_count == 0 and chunk.values.null_count == 0 for chunk in column.chunks)


def _int32(values: np.ndarray) -> np.ndarray:
    return values.astype(np.int32, copy=False)


class PackedDataset:
    """The rows of one or several prepared folders.

    A path is a part folder, or the arrow folder of a preparation, which stands for all its parts in order.
    Folders of ``datasets`` with the columns input_ids and labels but without a manifest (made by other
    programs) are accepted too. Instances can be pickled; each process maps the files for itself.

    Attributes:
        parts: the part folders, in order.
        bucket_sizes: rows of each part, in the same order; a part can be empty.
        manifests: manifest of each part, None where there is none.
    """

    def __init__(self, paths: Sequence[str | Path], flag: str = "--dataset") -> None:
        """Open the folders.

        Args:
            paths: part or arrow folders.
            flag: the flag that named them, for messages.

        Raises:
            UserError: a path is missing, is no prepared dataset, or holds no row.
        """
        self._flag = flag
        self.parts: list[Path] = []
        self.manifests: list[Manifest | None] = []
        self._parts: list[PartRows] = []
        if not paths:
            raise UserError(f"{flag}: expected at least one folder of a prepared dataset")
        for path in paths:
            opened = [PartRows(folder, load_table(folder, flag)) for folder in part_folders(Path(path), flag)]
            if not any(part.rows for part in opened):
                raise UserError(f"{flag} {path}: holds no row; prepare it with fewer bins or more documents")
            self._parts.extend(opened)
            self.parts.extend(part.folder for part in opened)
            self.manifests.extend(_manifest_of(part.folder, flag) for part in opened)
        self.bucket_sizes: list[int] = [part.rows for part in self._parts]
        self._starts = np.cumsum([0, *self.bucket_sizes])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Row ``index`` of all parts one behind the other.

        Returns:
            ``input_ids`` and ``labels``: int32 arrays [length], read-only views of the file where possible. Where
            the part has them, ``seq_lengths`` too: int32 [documents], the lengths of the row's documents in order.

        Raises:
            IndexError: ``index`` is outside of ``0 <= index < len(self)``.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._parts[number].row(index - int(self._starts[number]))

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.parts, "flag": self._flag}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._flag = state["flag"]
        self.parts = state["paths"]
        self._parts = [PartRows(folder, load_table(folder, self._flag)) for folder in self.parts]
        self.manifests = [_manifest_of(folder, self._flag) for folder in self.parts]
        self.bucket_sizes = [part.rows for part in self._parts]
        self._starts = np.cumsum([0, *self.bucket_sizes])

    def fingerprint(self) -> str:
        """Tells these rows in this order from others, without reading all of them: 16 hexadecimal digits.

        It knows the number of rows of each part, the length of every row and the content of some.
        """
        import xxhash

        digest = xxhash.xxh3_64()
        for part in self._parts:
            digest.update(f"part of {part.rows} rows".encode())
            part.hash_into(digest)
        return digest.hexdigest()

    @property
    def has_seq_lengths(self) -> bool:
        """Whether every row says how long its documents are."""
        return all(part.has_lengths for part in self._parts if part.rows)

    def check_documents(self) -> None:
        """Check that every row says how long its documents are, and that they fill it.

        Raises:
            UserError: a part has no ``seq_lengths``, or those of a row do not add up to its tokens.
        """
        for part in self._parts:
            if not part.rows:
                continue
            where = f"{self._flag} {part.folder}"
            if not part.has_lengths:
                raise UserError(
                    f"{where}: no column {LENGTHS} (lists of integers), so its documents cannot be kept apart; prepare "
                    "it with this program or train with --document_mask off"
                )
            wrong = part.row_with_wrong_lengths()
            if wrong is not None:
                row, tokens, total = wrong
                raise UserError(
                    f"{where}: row {row} has {tokens} tokens but its {LENGTHS} do not add up to that (sum {total}); "
                    "prepare it again or train with --document_mask off"
                )

    def check(self, tokenizer_fingerprint: str, vocab_size: int, max_length: int) -> None:
        """Check that the rows fit a model and its tokenizer.

        Args:
            tokenizer_fingerprint: of the tokenizer that is trained with.
            vocab_size: rows of the model's embedding.
            max_length: longest row that training takes.

        Raises:
            UserError: prepared with another tokenizer, ids beyond the embedding, or longer rows.
        """
        for part, manifest in zip(self._parts, self.manifests, strict=True):
            where = f"{self._flag} {part.folder}"
            if manifest is not None and manifest.tokenizer_fingerprint != tokenizer_fingerprint:
                raise UserError(
                    f"{where}: prepared with another tokenizer than the model's; "
                    "prepare it with --tokenizer_dir set to the model's folder"
                )
            largest = part.largest_id() if manifest is None else manifest.vocab_size - 1
            if largest >= vocab_size:
                raise UserError(
                    f"{where}: token ids up to {largest}, but the model's embedding has {vocab_size} rows; "
                    "initialise the model for this tokenizer"
                )
            longest = part.longest_row()
            if longest > max_length:
                raise UserError(
                    f"{where}: rows of up to {longest} tokens, longer than --max_length {max_length}; "
                    "raise it or prepare the dataset with the smaller one"
                )


def part_folders(path: Path, flag: str) -> list[Path]:
    """The part folders that a path stands for: itself, or its parts in order.

    Raises:
        UserError: missing, or neither a part nor a folder of parts.
    """
    if not path.exists():
        raise UserError(f"{flag} {path}: no such folder")
    if not path.is_dir():
        raise UserError(f"{flag} {path}: is a file; give a part folder or the arrow folder that holds the parts")
    if (path / "state.json").is_file():
        return [path]
    manifest = read_manifest(path, flag)
    if manifest is not None:
        return [path / part.name for part in manifest.parts]
    parts = sorted(entry for entry in path.glob(f"{PART_PREFIX}*") if (entry / "state.json").is_file())
    if parts:
        return parts
    hint = f"; did you mean {path / 'arrow'}?" if (path / "arrow" / MANIFEST_FILE).is_file() else ""
    raise UserError(f"{flag} {path}: not a prepared dataset (no part in it){hint}")


def _manifest_of(folder: Path, flag: str) -> Manifest | None:
    """The manifest beside a part, if it knows that part."""
    manifest = read_manifest(folder.resolve().parent, flag)
    if manifest is None:
        return None
    known = [*manifest.parts, *([manifest.validation] if manifest.validation else [])]
    if folder.resolve().name not in [part.name for part in known]:
        return None
    return manifest


def load_table(folder: Path, flag: str) -> "pyarrow.Table":
    """The memory-mapped table of a part folder.

    Raises:
        UserError: not a dataset, or one without input_ids and labels.
    """
    import datasets

    try:
        dataset = datasets.load_from_disk(str(folder))
    except Exception as error:  # datasets raises a dozen types for a damaged folder
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{flag} {folder}: cannot be read as a dataset ({reason}); prepare it again") from error
    if not isinstance(dataset, datasets.Dataset):
        raise UserError(f"{flag} {folder}: a dictionary of datasets; give the folder of one of them")
    missing = [name for name in (IDS, LABELS) if name not in dataset.column_names]
    if LEARNED in dataset.column_names and LABELS in missing:
        missing.remove(LABELS)
    if missing:
        raise UserError(f"{flag} {folder}: no column {', '.join(missing)}; expected input_ids and labels")
    return dataset.data.table
