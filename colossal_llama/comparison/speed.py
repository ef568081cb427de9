"""How fast and how large a model is."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from colossal_llama.generation.prompts import context_length

ROW_TOKENS = 256
PROMPT_TOKENS = 16
NEW_TOKENS = 32
REPEATS = 3

_WEIGHT_SUFFIXES = (".safetensors", ".bin")


@dataclass(frozen=True)
class Size:
    """What a model takes.

    Attributes:
        parameters: tied ones once.
        weight_bytes: of the weight files on disk.
        vocabulary: tokens of the tokenizer.
    """

    parameters: int
    weight_bytes: int
    vocabulary: int

    def as_json(self) -> dict[str, int]:
        """All figures as a mapping."""
        return asdict(self)


@dataclass(frozen=True)
class Speed:
    """Tokens per second: of forward passes without a cache, and of greedy generation of one answer."""

    forward: float
    generation: float


def measure_size(folder: Path, model: Any, tokenizer: Any) -> Size:
    """The size of a model that was loaded from ``folder``."""
    files = [file for file in folder.iterdir() if file.suffix in _WEIGHT_SUFFIXES]
    return Size(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        weight_bytes=sum(file.stat().st_size for file in files),
        vocabulary=len(tokenizer),
    )


def measure_speed(model: Any, tokens: int) -> Speed:
    """Time forward passes over ``tokens`` random tokens in rows of up to 256, and generation of 32 tokens after 16.

    The median of three runs after one that is not counted.
    """
    import torch

    positions = context_length(model) or ROW_TOKENS
    length = max(1, min(ROW_TOKENS, positions, tokens))
    rows = max(1, tokens // length)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (rows, length), generator=generator).to(model.device)
    prompt = ids[:1, : max(1, min(PROMPT_TOKENS, length // 2))]
    new_tokens = max(1, min(NEW_TOKENS, positions - prompt.shape[1]))
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        forward = _seconds(lambda: model(input_ids=ids, use_cache=False), model.device)
        generation = _seconds(lambda: _generate(model, prompt, new_tokens), model.device)
    model.train(was_training)
    return Speed(ids.numel() / forward, new_tokens / generation)


def _generate(model: Any, prompt: Any, new_tokens: int) -> None:
    model.generate(
        prompt,
        attention_mask=prompt.new_ones(prompt.shape),
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        do_sample=False,
        temperature=None,
        top_k=None,
        top_p=None,
        pad_token_id=0,
    )


def _seconds(run: Callable[[], Any], device: Any) -> float:
    import torch

    times = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])
