"""Model folders on disk: loading without losing bits, saving beside a tokenizer."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from colossal_llama.constants import CONFIG_FILE
from colossal_llama.errors import UserError, is_out_of_memory
from colossal_llama.model.generation_config import (
    read_generation_config,
    remove_generation_settings,
    remove_impossible_pad_id,
)
from colossal_llama.model.model_folder import check_plain_folder, stored_weights
from colossal_llama.model.weight_check import (
    check_weights,
    refuse_quantised,
    refuse_weights,
    tied_copy_note,
)
from colossal_llama.quiet import quiet_transformers

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

MODEL_FILES = ("config.json", "generation_config.json", "model*.safetensors*", "pytorch_model*.bin*")
"""Patterns of the files that make a folder a model's."""


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
        UserError: the folder is missing, holds no model or not only one, weights are missing, unknown or unreadable, or
            a configuration is damaged. Settings that transformers could not write again are repaired: see
            :func:`describe_repairs`.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    check_weights(outline_causal_lm(path, flag), stored_weights(path, flag), path, flag)
    config = _read_config(path, flag)
    generation_config, _ = _repair_settings(path, config)
    with quiet_transformers():
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                str(path),
                config=config,
                generation_config=GenerationConfig(),  # the folder's own, read here, may be one that it refuses
                torch_dtype=dtype or stored_dtype(path) or "auto",
                attn_implementation=attn_implementation,
                local_files_only=True,
                trust_remote_code=False,
                low_cpu_mem_usage=True,
                output_loading_info=True,
            )
        except Exception as error:  # OSError, ValueError, SafetensorError and more, by what is broken
            if is_out_of_memory(error):
                raise
            raise _unreadable(path, flag, error) from error
    if info["missing_keys"] or info["mismatched_keys"]:
        refuse_weights(path, flag, [str(key) for key in [*info["missing_keys"], *info["mismatched_keys"]]])
    if model.can_generate():
        model.generation_config = generation_config
    return model


def describe_repairs(path: Path, flag: str) -> list[str]:
    """What :func:`load_causal_lm` changes in a folder's settings, so that transformers can write them again.

    Raises:
        UserError: a configuration is damaged.
    """
    _, repairs = _repair_settings(path, _read_config(path, flag))
    return repairs


def _repair_settings(path: Path, config: "PretrainedConfig") -> "tuple[GenerationConfig, list[str]]":
    """The folder's generation settings, and what was changed in them and in ``config``."""
    repairs = remove_impossible_pad_id(config)
    generation = read_generation_config(path, config)
    repairs += remove_generation_settings(path, config)
    return generation.config, [*(f"{path / CONFIG_FILE}: {repair}" for repair in repairs), *generation.repairs]


def _read_config(path: Path, flag: str) -> "PretrainedConfig":
    from transformers import AutoConfig

    with quiet_transformers():
        try:
            return AutoConfig.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
        except Exception as error:  # ValueError, KeyError, TypeError and more, by what is broken
            raise _unreadable(path, flag, error) from error


def outline_causal_lm(path: Path, flag: str) -> "PreTrainedModel":
    """The model that a folder's ``config.json`` describes, on the meta device, tied as the model ties its weights.

    No file of weights is opened. (from_pretrained with ``device_map="meta"`` reads every weight.)

    Raises:
        UserError: the folder will not do, or its ``config.json`` is not that of a causal language model.
    """
    check_plain_folder(path, flag)
    import torch
    from transformers import AutoModelForCausalLM

    config = _read_config(path, flag)
    remove_impossible_pad_id(config)
    with quiet_transformers():
        try:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config)
        except Exception as error:  # ValueError, KeyError, TypeError and more, by what is broken
            raise _unreadable(path, flag, error) from error
    model.tie_weights()
    model.name_or_path = str(path)
    return model


def inspect_model(path: Path, flag: str) -> str | None:
    """Look at a model's files before it is trained, widened or merged: configuration, headers, names and shapes.

    Returns:
        What to tell about embeddings that are stored twice, or None.

    Raises:
        UserError: transformers would open something else, or not exactly what is stored, or the model is quantised.
    """
    refuse_quantised(check_plain_folder(path, flag), path, flag)
    outline, stored = outline_causal_lm(path, flag), stored_weights(path, flag)
    check_weights(outline, stored, path, flag)
    return tied_copy_note(outline, stored, path, flag)


def describe_tied_copies(path: Path, flag: str) -> str | None:
    """What to tell about tied embeddings that are stored twice and differ, or None; see ``tied_copy_note``.

    Raises:
        UserError: transformers would open something else.
    """
    return tied_copy_note(outline_causal_lm(path, flag), stored_weights(path, flag), path, flag)


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
    try:
        found = {dtypes[one.dtype] for one in stored_weights(path, "").values() if one.dtype in dtypes}
    except UserError:
        return None
    widest = list(dtypes.values())
    return min(found, key=widest.index, default=None)


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
