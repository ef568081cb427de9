"""Rows that hold several documents, the same documents one to a row, and a model that looks at what came before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from colossal_llama.constants import IGNORE_INDEX
from tests.helpers.tiny import VOCAB_SIZE, save_tiny_model

ROWS = ([9, 14, 9], [1, 20, 11], [6, 17], [3, 1, 1, 12, 15])
"""Document lengths of each row of at most 32 tokens; two rows are full, two are padded.

A document of one token stands at the start of a row and twice inside one: the hardest to tell from its neighbours."""

ATTENTION_SCALE = 3
"""With it the loss of these rows is 0.04 nats higher, and a sixth of the gradient signs turn, if documents mix."""


@dataclass(frozen=True)
class Packed:
    """Folders of one set of documents.

    Attributes:
        packed: a part with ``seq_lengths``.
        unpacked: the same documents, each a row of its own.
        documents: their number.
    """

    packed: Path
    unpacked: Path
    documents: int


def save_packed(folder: Path, seed: int = 0) -> Packed:
    """Write :data:`ROWS` of random tokens; a document's first label is ignored, as preparation leaves it."""
    rng = np.random.default_rng(seed)
    documents = [
        [(rng.beta(0.5, 3.0, length) * (VOCAB_SIZE - 2)).astype(np.int32) + 2 for length in row] for row in ROWS
    ]
    write_part(folder / "packed" / "part-00000", documents, with_lengths=True)
    single = [[document] for row in documents for document in row]
    write_part(folder / "unpacked" / "part-00000", single, with_lengths=False)
    return Packed(folder / "packed" / "part-00000", folder / "unpacked" / "part-00000", len(single))


def write_part(folder: Path, rows: list[list[np.ndarray]], with_lengths: bool) -> None:
    """Write rows of documents as a part folder, with or without ``seq_lengths``."""
    columns = {"input_ids": [np.concatenate(row) for row in rows], "labels": [labels_of(row) for row in rows]}
    if with_lengths:
        columns["seq_lengths"] = [[len(document) for document in row] for row in rows]
    _save_columns(folder, columns)


def write_rows(folder: Path, rows: list[list[tuple[np.ndarray, np.ndarray]]]) -> None:
    """Write rows of documents, each its ids and its labels, as a part folder with ``seq_lengths``."""
    ids, labels = ([np.concatenate([document[at] for document in row]) for row in rows] for at in (0, 1))
    lengths = [[len(document) for document, _ in row] for row in rows]
    _save_columns(folder, {"input_ids": ids, "labels": labels, "seq_lengths": lengths})


def _save_columns(folder: Path, columns: dict[str, list]) -> None:
    import datasets

    numbers = datasets.Sequence(datasets.Value("int32"))
    features = datasets.Features(dict.fromkeys(columns, numbers))
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(folder))


def labels_of(documents: list[np.ndarray]) -> np.ndarray:
    """The tokens, with the first of each document ignored."""
    labels = [document.copy() for document in documents]
    for one in labels:
        one[0] = IGNORE_INDEX
    return np.concatenate(labels)


def save_attentive_model(folder: Path) -> Path:
    """The tiny model with larger attention weights, so that seeing another document changes the loss plainly."""
    import torch
    from transformers import AutoModelForCausalLM

    save_tiny_model(folder)
    model = AutoModelForCausalLM.from_pretrained(str(folder), torch_dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "self_attn" in name:
                weight.mul_(ATTENTION_SCALE)
    model.save_pretrained(str(folder))
    return folder
