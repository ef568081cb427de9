"""Random access to prepared rows, straight from the memory-mapped arrow files."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from colossal_llama.constants import MANIFEST_FILE, PART_PREFIX
from colossal_llama.data.manifest import Manifest, read_manifest
from colossal_llama.errors import UserError

if TYPE_CHECKING:
    import pyarrow

COLUMNS = ("input_ids", "labels")


class _Part:
    """One part folder; rows are read as views of the mapped file."""

    def __init__(self, folder: Path, flag: str) -> None:
        self.folder = folder
        table = load_table(folder, flag)
        chunks = zip(*(table.column(name).chunks for name in COLUMNS), strict=True)
        # Offsets of all rows would be copied into every access otherwise.
        self._chunks = [(_views(ids), _views(labels)) for ids, labels in chunks]
        self._starts = np.cumsum([0, *(len(ids[1]) - 1 for ids, _ in self._chunks)])
        self.rows = int(self._starts[-1])

    def row(self, index: int) -> dict[str, np.ndarray]:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        local = index - int(self._starts[number])
        (ids, ids_offsets), (labels, label_offsets) = self._chunks[number]
        return {
            "input_ids": _int32(ids[ids_offsets[local] : ids_offsets[local + 1]]),
            "labels": _int32(labels[label_offsets[local] : label_offsets[local + 1]]),
        }

    def longest_row(self) -> int:
        return max((int(np.diff(ids[1]).max()) for ids, _ in self._chunks if len(ids[1]) > 1), default=0)

    def largest_id(self) -> int:
        """Reads every id: for parts without a manifest only."""
        return max((int(ids[0].max()) for ids, _ in self._chunks if len(ids[0])), default=-1)


def _views(lists: "pyarrow.ListArray") -> tuple[np.ndarray, np.ndarray]:
    return lists.values.to_numpy(), lists.offsets.to_numpy()


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
        self._parts: list[_Part] = []
        if not paths:
            raise UserError(f"{flag}: expected at least one folder of a prepared dataset")
        for path in paths:
            opened = [_Part(folder, flag) for folder in part_folders(Path(path), flag)]
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
            ``input_ids`` and ``labels``: int32 arrays [length], read-only views of the file where possible.

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
        self._parts = [_Part(folder, self._flag) for folder in self.parts]
        self.manifests = [_manifest_of(folder, self._flag) for folder in self.parts]
        self.bucket_sizes = [part.rows for part in self._parts]
        self._starts = np.cumsum([0, *self.bucket_sizes])

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
    if manifest is None or folder.resolve().name not in [part.name for part in manifest.parts]:
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
    missing = [name for name in COLUMNS if name not in dataset.column_names]
    if missing:
        raise UserError(f"{flag} {folder}: no column {', '.join(missing)}; expected input_ids and labels")
    return dataset.data.table
