"""A model and its tokenizer, ready to generate: which device, which dtype, and LoRA adapters with their base."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from colossal_llama.errors import UserError
from colossal_llama.json_files import check_json_objects

FIRST_GPU = ("auto", "cuda", "cuda:0")
"""Devices that mean the first GPU, and the CPU on a machine without one."""


def choose_device(wanted: str) -> str:
    """The device that ``wanted`` means on this machine: ``cpu`` or ``cuda:N``.

    ``auto``, ``cuda`` and ``cuda:0`` (the default that users know) fall back to the CPU. A further GPU was asked for on
    purpose, so it has to be there.

    Raises:
        UserError: no device's name, or a GPU that this machine does not have.
    """
    import torch

    if wanted == "cpu":
        return wanted
    if wanted in FIRST_GPU:
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    kind, _, index = wanted.partition(":")
    if kind != "cuda" or not index.isdigit():
        raise UserError(f"--device {wanted}: expected auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index) >= count:
        here = "this machine has no GPU" if count == 0 else f"this machine's GPUs are cuda:0 to cuda:{count - 1}"
        raise UserError(f"--device {wanted}: {here}; use --device auto")
    return wanted


def choose_precision(device: str, wanted: str = "auto") -> str:
    """``wanted``; for ``auto`` fp32 on a CPU, on a GPU bf16, or fp16 where it has none (below compute capability 8)."""
    import torch

    if wanted != "auto":
        return wanted
    if device == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"


def load_for_generation(
    folder: Path,
    device: str,
    flag: str = "--model_path",
    precision: str = "auto",
    base_model_path: str | None = None,
) -> tuple[Any, Any]:
    """Model, in evaluation mode and with a key-value cache, and tokenizer of a Hugging Face folder.

    A folder of LoRA adapters gives their base model with the adapters merged into its weights; its tokenizer is the
    one beside the adapters, else that of the base.

    Args:
        folder: model folder or folder of adapters.
        device: of :func:`choose_device`.
        flag: the flag that named the folder, for messages.
        precision: see :func:`choose_precision`.
        base_model_path: the adapters' base model; None for the folder that they name.

    Raises:
        UserError: the folder holds no loadable model or tokenizer, the tokenizer has more tokens than the model has
            rows, or adapters do not fit their base or have none here.
    """
    from colossal_llama.model.loader import check_vocabulary, load_model
    from colossal_llama.model.model_folder import is_adapter_folder, read_model_config
    from colossal_llama.tokenizer.loading import load_tokenizer

    if is_adapter_folder(folder, flag):
        model, tokenizer = _load_with_base(folder, device, flag, precision, base_model_path)
    else:
        if base_model_path is not None:
            raise UserError(f"--base_model_path: {flag} {folder} holds no LoRA adapters; leave it away")
        config = read_model_config(folder, flag)
        tokenizer = load_tokenizer(folder, flag)
        check_vocabulary(config, len(tokenizer), folder, flag)
        model = load_model(folder, flag, choose_precision(device, precision), "sdpa")
        _say_which_head_counts(folder, flag)
    model.config.use_cache = True
    return model.to(device).eval(), tokenizer


def _say_which_head_counts(folder: Path, flag: str) -> None:
    from colossal_llama.model.pretrained import describe_tied_copies

    note = describe_tied_copies(folder, flag)
    if note:
        print(note, file=sys.stderr, flush=True)


def check_for_generation(folder: Path, flag: str) -> None:
    """Look at the files of a model or of adapters without loading them, so that what is damaged is found at once.

    Raises:
        UserError: names the file that is missing or damaged.
    """
    from colossal_llama.model.adapters import find_base
    from colossal_llama.model.model_folder import check_plain_folder, is_adapter_folder, stored_weights
    from colossal_llama.tokenizer.loading import check_tokenizer_folder

    base = find_base(folder, flag, None) if is_adapter_folder(folder, flag) else folder
    check_plain_folder(base, flag)
    stored_weights(base, flag)
    if base == folder or (folder / "tokenizer_config.json").is_file():
        check_tokenizer_folder(folder, flag)


def _load_with_base(
    adapter: Path, device: str, flag: str, precision: str, base_model_path: str | None
) -> tuple[Any, Any]:
    from colossal_llama.model.adapters import find_base
    from colossal_llama.model.base_fingerprint import check_base
    from colossal_llama.model.generation_config import GENERATION_CONFIG_FILE, read_generation_config
    from colossal_llama.model.loader import check_vocabulary, load_model
    from colossal_llama.model.lora import merge_adapter

    base = find_base(adapter, flag, base_model_path)
    check_base(adapter, base, "--base_model_path")
    tokenizer = load_companion_tokenizer(adapter, base, flag)
    model = load_model(base, "--base_model_path", choose_precision(device, precision), "sdpa")
    _say_which_head_counts(base, "--base_model_path")
    model = merge_adapter(model, adapter, flag)
    check_vocabulary({"vocab_size": model.get_input_embeddings().weight.shape[0]}, len(tokenizer), adapter, flag)
    if (adapter / GENERATION_CONFIG_FILE).is_file():
        model.generation_config = read_generation_config(adapter, model.config).config
    return model, tokenizer


def load_companion_tokenizer(adapter: Path, base: Path, flag: str) -> Any:
    """The tokenizer beside the adapters, else that of the base.

    Args:
        adapter: folder of the adapters.
        base: folder of their base model.
        flag: the flag that named the adapters, for messages.

    Raises:
        UserError: neither folder holds one.
    """
    from colossal_llama.tokenizer.loading import SETTINGS_FILES, load_tokenizer

    check_json_objects(adapter, SETTINGS_FILES)
    if (adapter / "tokenizer_config.json").is_file():
        return load_tokenizer(adapter, flag)
    return load_tokenizer(base, "--base_model_path")
