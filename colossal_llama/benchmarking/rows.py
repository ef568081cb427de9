"""The rows of a benchmark, the same for every contender."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from colossal_llama.data.collator import PackedCollator
from colossal_llama.data.loader import LoadedStep, StepLoader
from colossal_llama.data.random_rows import RandomRows
from colossal_llama.data.sampler import BucketSampler
from colossal_llama.schedule import TrainSchedule


def random_rows(model_config: dict[str, Any], length: int, count: int, seed: int) -> RandomRows:
    """Rows of ``length`` random tokens of the model's vocabulary, all of them targets."""
    return RandomRows(count, length, model_config["vocab_size"], seed)


def loaded_steps(rows: RandomRows, length: int, schedule: TrainSchedule, rank: int, seed: int) -> Iterator[LoadedStep]:
    """The steps that the trainer's own loader gives a rank, in its order."""
    sampler = BucketSampler(rows.bucket_sizes, seed)
    return StepLoader(rows, sampler, PackedCollator(0, length, "max_length"), schedule, rank).epoch(0)
