"""Completing a folder of weights so that plain transformers opens it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def finish_export(
    folder: Path,
    tokenizer: Any,
    generation_config: Any,
    vocab_size: int,
    write_more: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Put tokenizer (with its chat template) and generation configuration beside saved weights.

    Args:
        folder: ``modeling`` folder with weights and ``config.json``, or with LoRA adapters.
        tokenizer: saved into the folder.
        generation_config: the model's, saved into the folder.
        vocab_size: rows of the embeddings; written into ``config.json``.
        write_more: writes what else belongs beside the weights.
    """
    write_more(folder)
    tokenizer.init_kwargs.pop("auto_map", None)  # names code that was not run and is not here
    tokenizer.save_pretrained(str(folder))
    if generation_config is not None:
        generation_config.save_pretrained(str(folder))
    path = folder / "config.json"
    if not path.is_file():  # adapters: the configuration is the base model's
        return
    content = json.loads(path.read_text(encoding="utf-8"))
    content.pop("auto_map", None)
    # Training switched the cache off; whoever loads the model wants it on.
    content |= {"use_cache": True, "vocab_size": vocab_size}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
