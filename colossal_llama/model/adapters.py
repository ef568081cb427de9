"""LoRA adapters on disk, and the base model that they belong to."""

from __future__ import annotations

from pathlib import Path

from colossal_llama.constants import ADAPTER_CONFIG_FILE, CONFIG_FILE
from colossal_llama.errors import UserError
from colossal_llama.json_files import check_json_objects, read_json_object
from colossal_llama.json_records import json_type
from colossal_llama.model.model_folder import is_adapter_folder
from colossal_llama.model.stored_tensors import read_header

ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def check_adapter(adapter: Path) -> None:
    """Refuse a folder whose adapters are missing or damaged; peft would look for missing ones on the hub.

    Raises:
        UserError: names the file.
    """
    config = read_json_object(adapter / ADAPTER_CONFIG_FILE)
    if not isinstance(config.get("peft_type"), str):
        raise UserError(f"{adapter / ADAPTER_CONFIG_FILE}: has no peft_type; expected peft's configuration of adapters")
    check_json_objects(adapter, ("generation_config.json",))
    weights = adapter_weights(adapter)
    if weights.suffix == ".safetensors":
        read_header(weights)


def adapter_weights(adapter: Path) -> Path:
    """The file that holds a folder's adapters, of which peft takes safetensors first.

    Raises:
        UserError: there is none.
    """
    weights = next((adapter / name for name in ADAPTER_WEIGHTS if (adapter / name).is_file()), None)
    if weights is None:
        raise UserError(f"{adapter}: holds no {ADAPTER_WEIGHTS[0]}; copy the adapters again")
    return weights


def find_base(adapter: Path, flag: str, base_model_path: str | None) -> Path:
    """The base model's folder, from ``--base_model_path`` or from what the adapters say.

    Args:
        adapter: folder of the adapters.
        flag: the flag that named it, for messages.
        base_model_path: value of ``--base_model_path``; None for the folder that the adapters name.

    Raises:
        UserError: there are no adapters or not only adapters, they are damaged, or there is no base model.
    """
    path = adapter / ADAPTER_CONFIG_FILE
    if not is_adapter_folder(adapter, flag):
        raise UserError(f"{flag} {adapter}: no {ADAPTER_CONFIG_FILE} here; give a folder of LoRA adapters")
    check_adapter(adapter)
    named = read_json_object(path).get("base_model_name_or_path") or ""
    if not isinstance(named, str):
        raise UserError(f"{path}: base_model_name_or_path must be a string, found {json_type(named)}")
    base = Path(base_model_path or named)
    if not (base / CONFIG_FILE).is_file():
        where = "--base_model_path" if base_model_path else f"{path}: base_model_name_or_path"
        raise UserError(
            f"{where} {base}: no model folder; name the base model with --base_model_path (of merge_lora.py, if this "
            "command has none)"
        )
    return base
