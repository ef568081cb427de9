"""From files of any record format to scored documents, kept on disk once they are done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colossal_llama.errors import UserError
from colossal_llama.evaluation.documents import (
    Document,
    DocumentScores,
    Windows,
    documents_fingerprint,
    score_documents,
)
from colossal_llama.evaluation.store import ResultStore


@dataclass(frozen=True)
class HeldOutTexts:
    """Documents to measure on.

    Attributes:
        label: the files' names without endings.
        documents: those that hold text.
        fingerprint: of the documents.
    """

    label: str
    documents: list[Document]
    fingerprint: str


def read_held_out(
    inputs: Sequence[str], data_format: str, text_field: str | None, recursive: bool = False
) -> HeldOutTexts:
    """Read texts as the tokenizer commands do; says what was not read.

    Raises:
        UserError: an input is missing, cannot be read, or holds no text.
    """
    from colossal_llama.data.texts import TextReader

    reader = TextReader(inputs, "--held_out", data_format, text_field, recursive)
    names = dict.fromkeys(Path(file.path).name.split(".")[0] for file in reader.files())
    documents = [Document(one.text, one.category) for one in reader if one.text.strip()]
    for line in reader.notes():
        print(line, flush=True)
    if not documents:
        raise UserError(f"--held_out {' '.join(inputs)}: no text in it")
    return HeldOutTexts(", ".join(names), documents, documents_fingerprint(documents))


def measure_texts(
    loaded: tuple[Any, Any], identity: dict[str, str], texts: HeldOutTexts, windows: Windows, store: ResultStore
) -> DocumentScores:
    """The scores of a model on ``texts``, from ``store`` where they were measured before.

    Args:
        loaded: model and tokenizer.
        identity: what tells this model, and how it runs, from others; see :func:`model_identity`.
        texts: of :func:`read_held_out`.
        windows: how the texts go through the model.
        store: of finished measurements.
    """
    settings = {**identity, "texts": texts.fingerprint, "window_characters": windows.characters}
    known = store.load("held_out", settings)
    if known is not None:
        return DocumentScores.from_json(known)
    scores = score_documents(*loaded, texts.documents, windows)
    store.save("held_out", settings, scores.as_json())
    return scores


def model_identity(fingerprint: str, model: Any, parse_special: bool = False) -> dict[str, str]:
    """What a model's figures depend on: its files, the dtype, the kind of device and how texts are read."""
    return {
        "model": fingerprint,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "control_tokens_in_texts": "tokens" if parse_special else "letters",
    }
