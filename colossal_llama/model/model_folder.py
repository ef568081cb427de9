"""Which files transformers opens in a model's folder, and what would make it open something else.

``AutoModelForCausalLM.from_pretrained`` (4.51) follows ``adapter_config.json`` to another model, takes
``model.safetensors`` before an index and both before ``pytorch_model.bin``, and lets ``configuration_files`` replace
``config.json``. None of that is reported, so a folder in which it matters is refused here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from colossal_llama.constants import ADAPTER_CONFIG_FILE, CONFIG_FILE
from colossal_llama.errors import UserError
from colossal_llama.json_files import check_json_objects, read_json_object
from colossal_llama.model.config_values import check_sizes, check_types
from colossal_llama.model.stored_tensors import (
    INDEX_FILE,
    SINGLE_FILE,
    StoredTensor,
    checkpoint_tensors,
    read_header,
    read_weight_map,
)

if TYPE_CHECKING:
    import torch

PICKLE_FILE = "pytorch_model.bin"
PICKLE_INDEX_FILE = "pytorch_model.bin.index.json"
WEIGHT_FILES = (SINGLE_FILE, INDEX_FILE, PICKLE_FILE, PICKLE_INDEX_FILE)
"""What transformers looks for, in its order."""

_DTYPE_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def read_model_config(folder: Path, flag: str) -> dict[str, Any]:
    """The content of a model folder's ``config.json``.

    Raises:
        UserError: the folder or the file is missing, or it is not the configuration of a model.
    """
    if not folder.is_dir():
        raise UserError(f"{flag} {folder}: no such folder")
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{flag} {folder}: no {CONFIG_FILE} in it; expected a local Hugging Face model folder")
    content = read_json_object(path)
    check_json_objects(folder, ("generation_config.json",))
    if not isinstance(content.get("model_type"), str):
        raise UserError(f"{path}: has no model_type; expected the config.json of a Hugging Face model")
    check_sizes(content, path)
    return content


def check_plain_folder(folder: Path, flag: str) -> dict[str, Any]:
    """Refuse a folder in which transformers would not open exactly its ``config.json`` and its weights.

    Args:
        folder: of a model; weights are looked for, but not read as a whole.
        flag: the flag that named it, for messages.

    Returns:
        The content of ``config.json``.

    Raises:
        UserError: there is no model in it, it holds LoRA adapters too, its architecture is code in the folder, or which
            of its files count is not clear.
    """
    if is_adapter_folder(folder, flag):
        raise UserError(
            f"{flag} {folder}: holds LoRA adapters, not a model; merge them into their base with merge_lora.py, and "
            "give the merged folder"
        )
    content = read_model_config(folder, flag)
    if "configuration_files" in content:
        raise UserError(
            f"{folder / CONFIG_FILE}: names other configuration files, which transformers may read instead; keep the "
            "right one as config.json, without configuration_files"
        )
    _refuse_foreign_code(folder, flag, content["model_type"])
    check_types(content, folder / CONFIG_FILE)
    weight_files(folder, flag)
    return content


def is_adapter_folder(folder: Path, flag: str) -> bool:
    """Whether a folder holds LoRA adapters.

    Raises:
        UserError: it holds a model's weights as well, which transformers would pass over for the adapters' base.
    """
    path = folder / ADAPTER_CONFIG_FILE
    if not path.is_file():
        return False
    own = next((name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if own is None:
        return True
    base = read_json_object(path).get("base_model_name_or_path")
    raise UserError(
        f"{flag} {folder}: holds {ADAPTER_CONFIG_FILE} beside {own}, so transformers opens {base} with the adapters "
        "instead of this model; move the adapter_* files into a folder of their own"
    )


def _refuse_foreign_code(folder: Path, flag: str, model_type: Any) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(
            f"{flag} {folder}: transformers has no causal language model of type {model_type!r} of its own, and code "
            "from a model's folder is not run; convert it to a known architecture, such as llama"
        )


def weight_files(folder: Path, flag: str) -> list[Path]:
    """The files that transformers reads a folder's weights from, sorted.

    Raises:
        UserError: there are none, one is missing, or others beside them hold other weights.
    """
    found = [name for name in WEIGHT_FILES if (folder / name).is_file()]
    if not found:
        raise UserError(
            f"{flag} {folder}: holds neither {SINGLE_FILE} nor {INDEX_FILE}, nor {PICKLE_FILE}; copy the model again"
        )
    files = _files_of(folder, found[0])
    if found[:2] == [SINGLE_FILE, INDEX_FILE]:
        _refuse_second_copy(folder, flag)
    if found[0] in (SINGLE_FILE, INDEX_FILE) and found[-1] in (PICKLE_FILE, PICKLE_INDEX_FILE):
        _refuse_other_pickles(folder, flag, files, found)
    return files


def _files_of(folder: Path, name: str) -> list[Path]:
    """The files behind one of :data:`WEIGHT_FILES`.

    Raises:
        UserError: an index is broken or names a missing file.
    """
    if name in (SINGLE_FILE, PICKLE_FILE):
        return [folder / name]
    names = sorted(set(read_weight_map(folder / name).values()))
    for one in names:
        if not (folder / one).is_file():
            raise UserError(f"{folder / name}: names the file {one}, which is missing; copy the model again")
    return [folder / one for one in names]


def _refuse_second_copy(folder: Path, flag: str) -> None:
    """Shards that are left of an older save are read by other programs, and an index without them by none."""
    names = set(read_weight_map(folder / INDEX_FILE).values()) - {SINGLE_FILE}
    shards = sorted(name for name in names if (folder / name).is_file())
    if shards:
        raise UserError(
            f"{flag} {folder}: holds {SINGLE_FILE} and also {shards[0]} of {INDEX_FILE}; transformers reads only the "
            "first, other programs the second: delete the one that is out of date"
        )


def _refuse_other_pickles(folder: Path, flag: str, files: list[Path], found: list[str]) -> None:
    """Compare names, shapes and the first and last rows of what both formats hold."""
    try:
        pickled = {
            name: tensor
            for file in _files_of(folder, next(name for name in found if name in (PICKLE_FILE, PICKLE_INDEX_FILE)))
            for name, tensor in load_pickle(file).items()
        }
    except UserError:  # no program opens an index with missing files
        return
    stored = [one for file in files for one in read_header(file)[0]]
    shared = [one for one in stored if one.name in pickled]
    differing = next((one.name for one in shared if not _same_ends(one, pickled[one.name])), None)
    if differing is not None or not shared:
        raise UserError(
            f"{flag} {folder}: holds {files[0].name} and also {found[-1]} with other weights"
            f"{f' ({differing})' if differing else ''}; transformers reads only the first: delete the one that is out "
            "of date"
        )


def _same_ends(stored: StoredTensor, other: torch.Tensor) -> bool:
    import torch
    from safetensors import safe_open

    if stored.shape != tuple(other.shape):
        return False
    if 0 in stored.shape or not stored.shape:
        return True
    with safe_open(stored.file, framework="pt") as tensors:
        rows = tensors.get_slice(stored.name)
        last = stored.shape[0] - 1
        mine = torch.cat([rows[0:1], rows[last : last + 1]]).to(torch.bfloat16)
    return torch.equal(mine, torch.cat([other[:1], other[last:]]).to(torch.bfloat16))


def load_pickle(file: Path, device: str = "cpu") -> dict[str, torch.Tensor]:
    """The tensors of a ``pytorch_model*.bin``, mapped where its format allows that.

    Args:
        file: one file.
        device: ``meta`` for names, shapes and dtypes alone.

    Raises:
        UserError: it is truncated or no such file.
    """
    import torch

    try:
        try:
            content = torch.load(str(file), map_location=device, weights_only=True, mmap=True)
        except RuntimeError:  # written before PyTorch 1.6: no zip file, which cannot be mapped
            content = torch.load(str(file), map_location=device, weights_only=True)
        return {name: tensor for name, tensor in content.items() if isinstance(tensor, torch.Tensor)}
    except Exception as error:  # RuntimeError, UnpicklingError, EOFError and more, by what is broken
        raise UserError(f"{file}: is truncated or not a file of weights; copy it again") from error


def stored_weights(folder: Path, flag: str) -> dict[str, StoredTensor]:
    """Name, dtype and shape of every tensor that transformers reads from a folder.

    Of ``pytorch_model*.bin`` the places of the bytes are not known, and are 0.

    Raises:
        UserError: see :func:`weight_files`; or a file is broken, or an index names what its files do not hold.
    """
    files = weight_files(folder, flag)
    if files[0].suffix == ".safetensors":
        return checkpoint_tensors(folder, flag)
    return {
        name: StoredTensor(
            name, file, _DTYPE_NAMES.get(_dtype_of(tensor), _dtype_of(tensor)), tuple(tensor.shape), 0, 0
        )
        for file in files
        for name, tensor in load_pickle(file, "meta").items()
    }


def _dtype_of(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
