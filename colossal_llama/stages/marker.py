"""What a stage leaves of itself: with which settings and inputs it was trained, and whether to the end."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colossal_llama.atomic import write_text_atomically
from colossal_llama.config.recipe import StageRecipe
from colossal_llama.config.train import TrainConfig
from colossal_llama.errors import UserError
from colossal_llama.json_files import build_dataclass, read_json_object

MARKER_FILE = "stage.json"

FREE_SETTINGS = (
    "pretrained", "dataset", "load_checkpoint", "initial_weights", "save_dir", "tensorboard_dir", "config_file",
    "save_interval", "skip_save_each_epoch", "keep_last", "keep_every", "async_save", "overwrite", "benchmark",
    "num_samples", "eval_interval", "eval_dataset", "eval_rows", "peak_tflops",
)  # fmt: skip
"""Flags that may change without the stage becoming another one: where things lie (their content is compared instead)
and what is saved, evaluated and reported, and when."""

RESUMABLE_SETTINGS = (
    "processes", "plugin", "tp", "pp", "sp", "enable_sequence_parallelism", "sp_mode", "zero", "zero_cpu_offload",
    "micro_batch_size", "accumulation_steps", "microbatch_size", "mixed_precision", "use_grad_checkpoint",
    "use_flash_attn", "lr", "weight_decay", "warmup_steps", "gradient_clipping",
)  # fmt: skip
"""What train.py accepts another value of when it resumes a checkpoint; free while a stage is not finished."""

COMPARED_SUFFIXES = (".arrow", ".safetensors", ".bin", ".model", ".json")
NOT_COMPARED = ("state.json", "dataset_info.json", "stage.json")
"""``datasets`` writes random fingerprints and cache names into its two."""

SAMPLE_BYTES = 65_536


@dataclass
class Marker:
    """Content of ``stage.json``.

    Attributes:
        run: made when the stage starts from the beginning; the next stage remembers it as its input.
        finished: whether the final weights are written.
        settings: the resolved flags that decide the result, and the number of processes.
        inputs: fingerprint or run of the weights that the stage started from and of its datasets, by name.
        summary: of the finished stage.
    """

    run: str
    finished: bool
    settings: dict[str, Any]
    inputs: dict[str, str]
    summary: dict[str, Any] = field(default_factory=dict)


def stage_settings(stage: StageRecipe, processes: int) -> dict[str, Any]:
    """The settings that decide a stage's result."""
    settings = dataclasses.asdict(stage.settings)
    kept = {key: value for key, value in settings.items() if key not in FREE_SETTINGS}
    return {"processes": processes} | kept


def stage_inputs(stage: StageRecipe, start: str) -> dict[str, str]:
    """A stage's inputs by name; ``start`` stands for the weights that it starts from."""
    datasets = {f"dataset {folder}": fingerprint(Path(folder)) for folder in stage.settings.dataset}
    return {"the weights it starts from": start} | datasets


def differences(old: Marker, settings: dict[str, Any], inputs: dict[str, str]) -> list[str]:
    """What differs from the time of ``old``, in words; flags that did not exist then count with their defaults.

    While a stage is not finished, :data:`RESUMABLE_SETTINGS` may differ.
    """
    defaults = dataclasses.asdict(TrainConfig(pretrained="", dataset=[""]))
    changed = []
    for key, value in settings.items():
        before = old.settings.get(key, defaults.get(key))
        if before != value and (old.finished or key not in RESUMABLE_SETTINGS):
            changed.append(f"{key} was {before}, now {value}")
    if list(old.inputs.values()) != list(inputs.values()):
        changed += [f"{name} is new" for name in inputs if name not in old.inputs]
        changed += [f"{name} is gone" for name in old.inputs if name not in inputs]
        changed += [f"{name} changed" for name, value in inputs.items() if old.inputs.get(name, value) != value]
        if not changed:
            changed.append("the order of the datasets changed")
    return changed


def fingerprint(folder: Path) -> str:
    """A digest of a folder's model, tokenizer and dataset files.

    Of each file it takes the path inside the folder, the size, and the first, middle and last 64 KiB, so that a file of
    any size takes milliseconds. Copies have the same fingerprint; a change that keeps every size and touches none of
    these places is not seen.
    """
    digest = hashlib.sha256()
    for file in _compared_files(folder):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder).as_posix()}\0{size}\0".encode("utf-8", "surrogateescape"))
        with file.open("rb") as content:
            for start in sorted({0, max(0, (size - SAMPLE_BYTES) // 2), max(0, size - SAMPLE_BYTES)}):
                content.seek(start)
                digest.update(content.read(SAMPLE_BYTES))
    return digest.hexdigest()[:32]


def _compared_files(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if name.endswith(COMPARED_SUFFIXES) and name not in NOT_COMPARED:
                yield Path(root) / name


def read_marker(folder: Path) -> Marker | None:
    """The marker in a stage's folder, or None.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / MARKER_FILE
    if not path.is_file():
        return None
    remedy = f"delete the folder {folder} to train the stage again"
    content = read_json_object(path, remedy=remedy)
    try:
        return build_dataclass(Marker, content)
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); {remedy}") from error


def write_marker(marker: Marker, folder: Path) -> None:
    """Write the marker, complete or not at all."""
    text = json.dumps(dataclasses.asdict(marker), indent=2, ensure_ascii=False)
    write_text_atomically(folder / MARKER_FILE, text + "\n")
