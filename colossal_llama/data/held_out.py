"""Rows that are evaluated and never trained on: opened, thinned out, each token with the group it is counted in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from colossal_llama.data.dataset import IDS, LENGTHS, PackedDataset, load_table
from colossal_llama.data.loader import Row
from colossal_llama.errors import UserError

if TYPE_CHECKING:
    import pyarrow
    import torch

GROUPS = "groups"
"""Number of each token's group; of each target's, once collated."""

VALIDATION = "validation"
"""Folder of the part that ``--validation_fraction`` sets apart, beside the other parts."""

CATEGORY, SUB_DATASET, DATASET = "category", "sub_dataset", "dataset"
"""What groups are told apart by: two columns of the part, and the folder that was named."""


def validation_beside(datasets: Sequence[str | Path]) -> list[Path]:
    """The validation parts that preparation put beside these part or arrow folders, each once."""
    found = {}
    for name in datasets:
        path = Path(name).resolve()
        folder = path.parent if (path / "state.json").is_file() else path
        if (folder / VALIDATION / "state.json").is_file():
            found[folder / VALIDATION] = True
    return list(found)


class HeldOutRows:
    """The rows of a held-out set, with the group of each token.

    A document's group is its category and sub-dataset, as preparation noted them, and the folder it is in.

    Args:
        paths: part or arrow folders.
        limit: rows to take at most, spread evenly over all; 0 for all of them.
        flag: that named them, for messages.

    Attributes:
        dataset: the rows.
        row_numbers: of the rows that are taken, int64.
        groups: names of each group by what groups are told apart by, in the order of their numbers.

    Raises:
        UserError: a folder is missing or holds no prepared rows.
    """

    def __init__(self, paths: Sequence[str | Path], limit: int, flag: str = "--eval_dataset") -> None:
        self.dataset = PackedDataset(paths, flag)
        total = len(self.dataset)
        taken = min(limit or total, total)
        self.row_numbers = np.arange(taken, dtype=np.int64) * total // taken
        self._labels = [_document_labels(load_table(folder, flag)) for folder in self.dataset.parts]
        self._starts = np.cumsum([0, *self.dataset.bucket_sizes])
        self._numbers: dict[tuple[str, ...], int] = {}
        names = [_short_name(folder) for folder in self.dataset.parts]
        self._parts = names if len(set(names)) == len(names) else [str(folder) for folder in self.dataset.parts]
        # All ranks number the groups alike, although each reads other rows.
        for row in self.row_numbers.tolist():
            self._groups_of(row)

    @property
    def groups(self) -> dict[str, list[str]]:
        """See :class:`HeldOutRows`."""
        kinds = (CATEGORY, SUB_DATASET, DATASET)
        return {kind: [labels[place] for labels in self._numbers] for place, kind in enumerate(kinds)}

    def __getitem__(self, index: int) -> Row:
        """The row with this number, with ``groups``: int64, as long as its ``input_ids``."""
        row = dict(self.dataset[index])
        groups, lengths = self._groups_of(index), row.get(LENGTHS)
        if lengths is None or len(lengths) != len(groups) or int(lengths.sum()) != len(row[IDS]):
            row[GROUPS] = np.full(len(row[IDS]), groups[0] if len(groups) else 0, dtype=np.int64)
        else:
            row[GROUPS] = np.repeat(groups, lengths)
        return row

    def _groups_of(self, index: int) -> np.ndarray:
        """Group of each document of a row."""
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        labels = self._labels[part](index - int(self._starts[part]))
        numbers = [self._numbers.setdefault((*one, self._parts[part]), len(self._numbers)) for one in labels]
        return np.array(numbers, dtype=np.int64)


def _short_name(folder: Path) -> str:
    """What tells a held-out folder from others: mostly it is ``NAME/arrow/validation``."""
    generic = {VALIDATION, "arrow"}
    return next((name for name in reversed(folder.resolve().parts) if name not in generic), str(folder))


def _document_labels(table: pyarrow.Table) -> Callable[[int], list[tuple[str, str]]]:
    """Category and sub-dataset of each document, by the number of the row; one nameless document without columns."""
    columns = [table.column(name) if name in table.column_names else None for name in (CATEGORY, SUB_DATASET)]

    def labels(row: int) -> list[tuple[str, str]]:
        named = [None if column is None else [name or "" for name in column[row].as_py()] for column in columns]
        size = max((len(names) for names in named if names is not None), default=1)
        whole = [names if names is not None and len(names) == size else [""] * size for names in named]
        return list(zip(*whole, strict=True))

    return labels


class GroupedCollator:
    """A collator whose batches also say in which group each target is counted.

    Args:
        collate: makes the batch; shifts the labels.
    """

    def __init__(self, collate: Callable[[Sequence[Row]], dict[str, torch.Tensor]]) -> None:
        self._collate = collate

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The batch of these rows, with ``groups``: int64 ``[B, S]``, 0 where there is no target."""
        import torch

        batch = self._collate(rows)
        groups = np.zeros(batch["targets"].shape, dtype=np.int64)
        for number, row in enumerate(rows):
            if len(row["input_ids"]):
                groups[number, : len(row["input_ids"]) - 1] = row[GROUPS][1:]
        return batch | {GROUPS: torch.from_numpy(groups)}


def held_out_paths(eval_dataset: Sequence[str] | None, dataset: Sequence[str]) -> list[Path]:
    """The folders of ``--eval_dataset``, or else the validation parts beside ``--dataset``.

    Raises:
        UserError: there is neither.
    """
    paths = [Path(name) for name in eval_dataset or ()] or validation_beside(dataset)
    if not paths:
        raise UserError(
            "--eval_interval: no held-out rows beside --dataset; prepare it with --validation_fraction, or name some "
            "with --eval_dataset"
        )
    return paths
