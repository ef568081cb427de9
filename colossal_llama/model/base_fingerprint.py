"""Telling whether LoRA adapters were trained on the weights in a folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from colossal_llama.constants import BASE_MODEL_FILE
from colossal_llama.errors import UserError
from colossal_llama.json_files import is_there, read_json_object
from colossal_llama.model.model_folder import weight_files
from colossal_llama.model.stored_tensors import INDEX_FILE, SINGLE_FILE

OUTPUT_EMBEDDING = "lm_head.weight"
"""Left out: of a model with tied embeddings, some programs store it and some do not."""


def weights_fingerprint(folder: Path) -> str | None:
    """SHA-256 of the names and shapes of all weights in ``folder`` and of the first and last row of each in bf16.

    The same for a copy in another dtype whose values bf16 holds alike. None where the weights are not stored as
    safetensors.
    """
    if not any((folder / name).is_file() for name in (SINGLE_FILE, INDEX_FILE)):
        return None
    files = weight_files(folder, "base model")
    samples = {name: sample for file in files for name, sample in _samples(file).items() if name != OUTPUT_EMBEDDING}
    if not samples:
        return None
    digest = hashlib.sha256()
    for name in sorted(samples):
        digest.update(name.encode())
        digest.update(samples[name])
    return digest.hexdigest()


def _samples(file: Path) -> dict[str, bytes]:
    import torch
    from safetensors import SafetensorError, safe_open

    samples = {}
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (no mapping)
                rows = tensors.get_slice(name)
                shape = list(rows.get_shape())
                if not shape or not shape[0]:
                    continue
                ends = torch.cat([rows[0:1], rows[shape[0] - 1 : shape[0]]]).to(torch.bfloat16)
                samples[name] = str(shape).encode() + ends.contiguous().view(torch.int16).numpy().tobytes()
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: cannot be read ({error}); copy the model again") from error
    return samples


def write_fingerprint(fingerprint: str | None, folder: Path) -> None:
    """Put the fingerprint of the base model beside the adapters in ``folder``; nothing where it is None."""
    if fingerprint is not None:
        content: dict[str, Any] = {"fingerprint": fingerprint}
        (folder / BASE_MODEL_FILE).write_text(json.dumps(content) + "\n", encoding="utf-8")


def check_base(adapter: Path, base: Path, flag: str) -> None:
    """Refuse a base model that the adapters were not trained on.

    Adapters made elsewhere carry no fingerprint and pass, as does a base that is not stored as safetensors.

    Args:
        adapter: folder of the adapters.
        base: folder of the model.
        flag: the flag that named the base, for the message.

    Raises:
        UserError: the fingerprints differ, or the adapters' is damaged.
    """
    path = adapter / BASE_MODEL_FILE
    if not is_there(path):
        return
    remedy = "delete it to go on without this check"
    expected = read_json_object(path, remedy=remedy).get("fingerprint")
    if not isinstance(expected, str):
        raise UserError(f"{path}: has no fingerprint; {remedy}")
    found = weights_fingerprint(base)
    if found is not None and found != expected:
        raise UserError(
            f"{flag} {base}: not the weights that the adapters in {adapter} were trained on; name the folder that "
            "their adapter_config.json calls base_model_name_or_path, or a copy of it"
        )
