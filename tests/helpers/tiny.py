"""A small Llama with a real byte-level BPE tokenizer and fixed rows, made in seconds."""

from __future__ import annotations

import pydoc_data.topics
from pathlib import Path

import numpy as np

from colossal_llama.quickstart.assets import save_byte_level_tokenizer

VOCAB_SIZE = 512
ROW_LENGTH = 32


def english_text() -> str:
    """English technical prose that every Python carries."""
    return "\n\n".join(pydoc_data.topics.topics.values())


def save_tiny_tokenizer(folder: Path, vocab_size: int = VOCAB_SIZE) -> None:
    """Train a byte-level BPE tokenizer with ``<s>`` and ``</s>`` and save it as a Hugging Face folder."""
    save_byte_level_tokenizer(folder, [english_text()[:300_000]], vocab_size)


def save_tiny_model(
    folder: Path, vocab_size: int = VOCAB_SIZE, tied: bool = False, layers: int = 2, seed: int = 0
) -> Path:
    """A random Llama (hidden 64, 4 heads, 2 key/value heads) and its tokenizer in ``folder``."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=tied,
        initializer_range=0.05,
    )
    LlamaForCausalLM(config).save_pretrained(str(folder))
    save_tiny_tokenizer(folder, vocab_size)
    return folder


def save_rows(folder: Path, count: int, vocab_size: int = VOCAB_SIZE, seed: int = 0) -> Path:
    """One prepared part of rows with different lengths and different numbers of targets.

    Row i has 12 to 32 tokens; the labels of a leading third are masked in every second row.
    """
    import datasets

    rng = np.random.default_rng(seed)
    rows = {"input_ids": [], "labels": []}
    for index in range(count):
        length = int(rng.integers(12, ROW_LENGTH + 1))
        # A skewed distribution gives the model something to learn.
        ids = (rng.beta(0.5, 3.0, length) * (vocab_size - 2)).astype(np.int32) + 2
        labels = ids.copy()
        if index % 2:
            labels[: length // 3] = -100
        rows["input_ids"].append(ids)
        rows["labels"].append(labels)
    features = datasets.Features(
        {
            "input_ids": datasets.Sequence(datasets.Value("int32")),
            "labels": datasets.Sequence(datasets.Value("int32")),
        }
    )
    path = folder / "part-00000"
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(path))
    return path


def save_categorised_rows(folder: Path, count: int, seed: int = 0) -> Path:
    """One part as preparation writes it: rows of one to three documents of the categories ``news`` and ``law``.

    The first token of a document and every second document's leading third are not learned.
    """
    import datasets

    rng = np.random.default_rng(seed)
    columns: dict[str, list] = {"input_ids": [], "labels": [], "seq_lengths": [], "category": []}
    for index in range(count):
        lengths = [int(size) for size in rng.integers(4, ROW_LENGTH // 3 + 1, 1 + index % 3)]
        ids = (rng.beta(0.5, 3.0, sum(lengths)) * (VOCAB_SIZE - 2)).astype(np.int32) + 2
        labels = ids.copy()
        start = 0
        for number, length in enumerate(lengths):
            labels[start : start + (length // 3 if number % 2 else 1)] = -100
            start += length
        columns["input_ids"].append(ids)
        columns["labels"].append(labels)
        columns["seq_lengths"].append(lengths)
        columns["category"].append([("news", "law")[(index + number) % 2] for number in range(len(lengths))])
    numbers = datasets.Sequence(datasets.Value("int32"))
    features = datasets.Features(
        {
            **dict.fromkeys(("input_ids", "labels", "seq_lengths"), numbers),
            "category": datasets.Sequence(datasets.Value("string")),
        }
    )
    path = folder / "part-00000"
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(path))
    return path
