"""From a stored model to a wider one, file by file: memory for the embeddings, not for the model."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colossal_llama.constants import CONFIG_FILE
from colossal_llama.errors import UserError
from colossal_llama.json_files import read_json_object
from colossal_llama.model.checkpoint_writer import CheckpointWriter
from colossal_llama.model.embeddings import (
    InitSettings,
    WideningReport,
    find_row_tensors,
    plan_widening,
    report_widening,
    rows_needed,
)
from colossal_llama.model.model_folder import check_plain_folder
from colossal_llama.model.new_rows import NewTokens
from colossal_llama.model.pretrained import outline_causal_lm, save_as_safetensors
from colossal_llama.model.stored_tensors import (
    INDEX_FILE,
    ITEM_BYTES,
    SINGLE_FILE,
    checkpoint_tensors,
)
from colossal_llama.model.weight_check import check_weights, tied_copy_note, unmatched_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OTHER_FORMATS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
"""Weights that transformers can read and this module cannot."""

_GENERATION_FILE = "generation_config.json"
_CONFIG_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_WIDTHS: dict[Any, int] = {name: ITEM_BYTES[dtype] for dtype, name in _CONFIG_DTYPES.items()}


@contextmanager
def begin_copy(source: Path, flag: str, folder: Path) -> Iterator[CheckpointWriter | None]:
    """Check the headers of ``source`` and start to copy what cannot change, while the caller prepares the rest.

    That is every file without a tensor of as many rows as the configuration's ``vocab_size``.

    Yields:
        The writer for :func:`widen_checkpoint`; None for weights in another format, which are converted there.

    Raises:
        UserError: the folder, its ``config.json`` or weights are missing, truncated or damaged.
    """
    content = check_plain_folder(source, flag)
    if _is_other_format(source):
        yield None
        return
    places = [content, *(one for one in content.values() if isinstance(one, dict))]
    sizes = {one["vocab_size"] for one in places if isinstance(one.get("vocab_size"), int)}
    with CheckpointWriter(source, flag, folder) as writer:
        if sizes:
            writer.copy_early(lambda one: bool(sizes.intersection(one.shape[:1])))
        yield writer


def _is_other_format(source: Path) -> bool:
    has_safetensors = any((source / name).is_file() for name in (SINGLE_FILE, INDEX_FILE))
    return not has_safetensors and any((source / name).is_file() for name in OTHER_FORMATS)


def widen_checkpoint(
    source: Path,
    flag: str,
    folder: Path,
    tokens: NewTokens,
    pad_to_multiple_of: int,
    settings: InitSettings,
    writer: CheckpointWriter | None = None,
) -> WideningReport:
    """Write the model of ``source`` with rows for new tokens: weights, ``config.json``, generation settings.

    Old rows and all other tensors keep their bits and dtypes. Memory is needed for one old matrix and one block of
    new rows, plus what the method needs. Weights in ``pytorch_model.bin`` pass through memory and a temporary copy.

    Args:
        source: Hugging Face model folder.
        flag: the flag that named it, for messages.
        folder: an existing folder to write into.
        tokens: the step to the wider vocabulary.
        pad_to_multiple_of: the number of rows becomes a multiple of this.
        settings: how new rows start; the deviation is taken from the model's configuration.
        writer: of :func:`begin_copy` with the same folders; None to copy now.

    Raises:
        UserError: the checkpoint is broken, or the model does not fit the old ids.
        OSError: the folder cannot be written.
    """
    if writer is not None:
        return _widen(source, flag, folder, tokens, pad_to_multiple_of, settings, writer)
    if not _is_other_format(source):
        with CheckpointWriter(source, flag, folder) as own:
            return _widen(source, flag, folder, tokens, pad_to_multiple_of, settings, own)
    converted = folder / ".converted"
    save_as_safetensors(source, flag, converted)
    with CheckpointWriter(converted, flag, folder) as own:
        report = _widen(source, flag, folder, tokens, pad_to_multiple_of, settings, own)
    shutil.rmtree(converted)
    return report


def _widen(
    source: Path,
    flag: str,
    folder: Path,
    tokens: NewTokens,
    pad_to_multiple_of: int,
    settings: InitSettings,
    writer: CheckpointWriter,
) -> WideningReport:
    outline = outline_causal_lm(source, flag)
    check_weights(outline, writer.tensors, source, flag)
    tensors = find_row_tensors(outline, writer.tensors)
    rows = rows_needed(tensors[0].rows, tokens, pad_to_multiple_of, str(source))
    deviation = getattr(outline.config, "initializer_range", None) or InitSettings.deviation
    settings = dataclasses.replace(settings, deviation=deviation)
    wider = plan_widening(tensors, rows, tokens, settings)
    writer.write({name: one.replacement() for name, one in wider.items()})
    _write_config(outline, source, tensors[0].stored.dtype, rows, folder)
    if (source / _GENERATION_FILE).is_file():
        shutil.copyfile(source / _GENERATION_FILE, folder / _GENERATION_FILE)
    _check_result(folder, flag)
    report = report_widening(tensors, wider, rows, tokens, settings)
    return dataclasses.replace(report, note=tied_copy_note(outline, writer.tensors, source, flag))


def _write_config(outline: "PreTrainedModel", source: Path, dtype: str, rows: int, folder: Path) -> None:
    """The source's ``config.json`` with the new number of rows; everything else but ``auto_map`` stays as it was.

    Where it names a dtype that cannot hold what the embeddings are stored in, it names theirs from now on: whoever
    loads the model as the configuration says would lose bits.
    """
    content: dict[str, Any] = read_json_object(source / CONFIG_FILE)
    content.pop("auto_map", None)  # names code that is neither run nor copied
    text_config = outline.config.get_text_config()
    key = text_config.attribute_map.get("vocab_size", "vocab_size")
    place = content
    if text_config is not outline.config:
        place = next((one for one in content.values() if isinstance(one, dict) and key in one), content)
    place[key] = rows
    named, actual = content.get("torch_dtype"), _CONFIG_DTYPES[dtype]
    if named in _WIDTHS and named != actual and _WIDTHS[named] <= _WIDTHS[actual]:
        content["torch_dtype"] = actual
    text = json.dumps(content, indent=2, ensure_ascii=False)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def _check_result(folder: Path, flag: str) -> None:
    """Hold what was written against its own configuration, as a user's transformers will."""
    outline = outline_causal_lm(folder, flag)
    unmatched = unmatched_weights(outline, checkpoint_tensors(folder, flag))
    if unmatched:
        raise UserError(
            f"{flag}: models of the type {outline.config.model_type} cannot be widened: {unmatched[0]} depends on "
            "the vocabulary and is no embedding"
        )
