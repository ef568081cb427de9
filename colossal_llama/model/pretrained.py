"""Model folders on disk: loading without losing bits, saving beside a tokenizer."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from colossal_llama.constants import CONFIG_FILE
from colossal_llama.errors import UserError
from colossal_llama.json_files import check_json_objects, read_json_object
from colossal_llama.model.config_values import check_types
from colossal_llama.quiet import quiet_transformers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

MODEL_FILES = ("config.json", "generation_config.json", "model*.safetensors*", "pytorch_model*.bin*")
"""Patterns of the files that make a folder a model's; everything else beside a tokenizer is kept."""


def load_causal_lm(
    path: Path, flag: str, dtype: "torch.dtype | None" = None, attn_implementation: str | None = None
) -> "PreTrainedModel":
    """Load a causal language model from a local folder.

    Args:
        path: Hugging Face model folder.
        flag: the flag that named it, for messages.
        dtype: of the parameters; None for the one that the weights are stored in.
        attn_implementation: ``sdpa``, ``eager`` or ``flash_attention_2``; None for transformers' choice.

    Raises:
        UserError: the folder is missing, holds no model, or weights are missing or unreadable.
    """
    check_model_folder(path, flag)
    from transformers import AutoModelForCausalLM

    with quiet_transformers():
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                str(path),
                torch_dtype=dtype or stored_dtype(path) or "auto",
                attn_implementation=attn_implementation,
                local_files_only=True,
                low_cpu_mem_usage=True,
                output_loading_info=True,
            )
        except Exception as error:  # OSError, ValueError, SafetensorError and more, by what is broken
            raise _unreadable(path, flag, error) from error
    if info["missing_keys"] or info["mismatched_keys"]:
        refuse_weights(path, flag, [str(key) for key in [*info["missing_keys"], *info["mismatched_keys"]]])
    return model


def outline_causal_lm(path: Path, flag: str) -> "PreTrainedModel":
    """The model that a folder's ``config.json`` describes, on the meta device, tied as the model ties its weights.

    No file of weights is opened. (from_pretrained with ``device_map="meta"`` reads every weight.)

    Raises:
        UserError: there is no ``config.json``, or it is not that of a causal language model.
    """
    check_model_folder(path, flag)
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with quiet_transformers():
        try:
            config = AutoConfig.from_pretrained(str(path), local_files_only=True)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config)
        except Exception as error:  # ValueError, KeyError, TypeError and more, by what is broken
            raise _unreadable(path, flag, error) from error
    model.tie_weights()
    model.name_or_path = str(path)
    return model


def check_model_folder(path: Path, flag: str) -> None:
    """Refuse what cannot be a model's folder.

    Raises:
        UserError: it has no ``config.json``, or its small files are damaged.
    """
    if not (path / CONFIG_FILE).is_file():
        raise UserError(f"{flag} {path}: no {CONFIG_FILE} here; give a local Hugging Face model folder")
    check_json_objects(path, (CONFIG_FILE, "generation_config.json"))
    check_types(read_json_object(path / CONFIG_FILE), path / CONFIG_FILE)


def refuse_weights(path: Path, flag: str, names: Sequence[str]) -> NoReturn:
    """Say which weights are missing or of another shape than the model's.

    Raises:
        UserError: always.
    """
    shown = ", ".join(names[:3])
    raise UserError(f"{flag} {path}: weights are missing or misshapen ({shown}); copy the model again")


def _unreadable(path: Path, flag: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(f"{flag} {path}: the model cannot be read ({reason}); copy it again")


def stored_dtype(path: Path) -> "torch.dtype | None":
    """The widest floating dtype in a folder's weights (safetensors, else ``pytorch_model*.bin``), or None.

    ``config.json`` may name a narrower one than the weights are stored in; following it would lose bits. None where
    there are no weights or where they are broken, which from_pretrained reports.
    """
    import torch

    dtypes = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    files = sorted(path.glob("*.safetensors"))
    try:
        if files:
            found = {dtypes[name] for file in files for name in _dtype_names(file) if name in dtypes}
        else:
            found = {dtype for file in sorted(path.glob("pytorch_model*.bin")) for dtype in _pickled_dtypes(file)}
    except Exception:  # SafetensorError, OSError, RuntimeError, UnpicklingError, by what is broken
        return None
    widest = list(dtypes.values())
    return min(found.intersection(widest), key=widest.index, default=None)


def _dtype_names(file: Path) -> set[str]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        return {tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118


def _pickled_dtypes(file: Path) -> "set[torch.dtype]":
    import torch

    state = torch.load(str(file), map_location="meta", weights_only=True, mmap=True)
    return {tensor.dtype for tensor in state.values() if isinstance(tensor, torch.Tensor)}


def is_model_file(path: Path) -> bool:
    """Whether ``path`` is one of the files of a model rather than of a tokenizer."""
    return any(path.match(pattern) for pattern in MODEL_FILES)


def copy_beside_model(tokenizer_dir: Path, folder: Path) -> None:
    """Copy everything of a tokenizer's folder except a model's files."""
    for path in sorted(tokenizer_dir.iterdir()):
        if path.is_dir():
            shutil.copytree(path, folder / path.name)
        elif not is_model_file(path):
            shutil.copyfile(path, folder / path.name)


def save_as_safetensors(source: Path, flag: str, folder: Path) -> None:
    """Save a model whose weights are stored in another format (``pytorch_model.bin``) as safetensors and config.json.

    The whole model passes through memory.

    Raises:
        UserError: the model cannot be read.
    """
    from transformers import GenerationConfig

    model = load_causal_lm(source, flag)
    # save_pretrained refuses settings that contradict themselves, as Llama 2's published ones do.
    model.generation_config = GenerationConfig()
    with quiet_transformers():
        model.save_pretrained(str(folder), safe_serialization=True)
