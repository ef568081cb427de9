"""``merge_lora.py``: LoRA adapters and their base model become one plain model."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from colossal_llama.atomic import atomic_directory, refuse_existing
from colossal_llama.config.cli import parse_config
from colossal_llama.config.merge_lora import MergeLoraConfig
from colossal_llama.errors import run_command
from colossal_llama.generation.loading import load_companion_tokenizer
from colossal_llama.model.adapters import find_base

DESCRIPTION = "Merge LoRA adapters into the model they were trained on: a plain folder for transformers."

MEMORY_ADVICE = "merge on a machine with more memory: base model and adapters must fit"

GENERATION_CONFIG = "generation_config.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command; returns the exit code."""
    return run_command(lambda: merge(parse_config(MergeLoraConfig, argv, DESCRIPTION)), MEMORY_ADVICE)


def merge(config: MergeLoraConfig) -> None:
    """Write the merged model, in the dtype of the base, with tokenizer and generation configuration beside it."""
    adapter, output = Path(config.adapter_path), Path(config.output_path)
    base = find_base(adapter, "--adapter_path", config.base_model_path)
    refuse_existing(output, "--output_path", config.overwrite)
    from transformers import GenerationConfig

    from colossal_llama.model.base_fingerprint import check_base
    from colossal_llama.model.lora import merge_adapter
    from colossal_llama.model.pretrained import inspect_model, load_causal_lm
    from colossal_llama.quiet import quiet_transformers

    check_base(adapter, base, "--base_model_path")
    note = inspect_model(base, "--base_model_path")
    if note:
        print(note, flush=True)
    model = merge_adapter(load_causal_lm(base, "--base_model_path"), adapter, "--adapter_path")
    tokenizer = load_companion_tokenizer(adapter, base, "--adapter_path")
    model.generation_config = GenerationConfig()
    with atomic_directory(output) as scratch, quiet_transformers():
        model.save_pretrained(str(scratch), safe_serialization=True)
        tokenizer.save_pretrained(str(scratch))
        copy_generation_config(adapter, base, scratch)
    print(f"merged {adapter} into {base}: {output} ({str(model.dtype).removeprefix('torch.')})", flush=True)


def copy_generation_config(adapter: Path, base: Path, folder: Path) -> None:
    """The generation configuration beside the adapters, else that of the base, as it is.

    Published ones contradict themselves, and transformers refuses to write those.
    """
    for source in (base / GENERATION_CONFIG, adapter / GENERATION_CONFIG):
        if source.is_file():
            shutil.copyfile(source, folder / GENERATION_CONFIG)
