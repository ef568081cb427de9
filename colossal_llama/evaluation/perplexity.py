"""How well a model predicts text, in bits per UTF-8 byte: a figure that different tokenizers share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from colossal_llama.constants import IGNORE_INDEX
from colossal_llama.errors import UserError
from colossal_llama.tokenizer.plain_text import text_encoder

CPU_PIECE, GPU_PIECE = 1 << 22, 1 << 27
"""Logits whose softmax is made at once."""

LEAST_FILL = 0.75
"""A text that is shorter than this share of a batch's longest one goes into another batch: padding costs time too."""


@dataclass(frozen=True)
class TextScore:
    """Sums over a set of texts.

    Attributes:
        nats: negative log-likelihood of all text tokens.
        tokens: number of text tokens (the beginning-of-sequence token is context, not text).
        characters: number of Unicode characters.
        utf8_bytes: number of bytes in UTF-8.
    """

    nats: float
    tokens: int
    characters: int
    utf8_bytes: int

    @property
    def bits_per_byte(self) -> float:
        """Cross entropy in bits per UTF-8 byte."""
        return self.nats / math.log(2) / self.utf8_bytes

    @property
    def tokens_per_character(self) -> float:
        """Length of the tokenized text per character."""
        return self.tokens / self.characters


def split_text(text: str, characters: int) -> list[str]:
    """Consecutive pieces of at most ``characters`` characters; joined they are the text again."""
    return [text[start : start + characters] for start in range(0, len(text), characters)]


def score_texts(model: Any, tokenizer: Any, texts: Sequence[str], batch_size: int = 8) -> TextScore:
    """The sums of :func:`score_each` over all texts, ``batch_size`` of them in each forward pass."""
    encoded = encode_texts(tokenizer, texts)
    return TextScore(
        nats=math.fsum(score_each(model, encoded, plan_batches(encoded, rows=batch_size))),
        tokens=sum(len(ids) - 1 for ids in encoded),
        characters=sum(len(text) for text in texts),
        utf8_bytes=sum(len(text.encode()) for text in texts),
    )


def encode_texts(tokenizer: Any, texts: Sequence[str], parse_special: bool = False) -> list[list[int]]:
    """Token ids of each text behind the beginning-of-sequence token.

    Without such a token the first token of each text gets the end-of-sequence token as its context.

    Args:
        tokenizer: of the model.
        texts: to be scored.
        parse_special: whether control tokens that a text spells out become tokens; else they stay letters, as in
            training.

    Raises:
        UserError: the tokenizer has neither of the two tokens.
    """
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise UserError(
            "--held_out: the model's tokenizer has neither a bos_token nor an eos_token to put before a text; set one "
            "in its tokenizer_config.json"
        )
    return [[start, *ids] for ids in text_encoder(tokenizer, parse_special)(texts)]


def plan_batches(
    encoded: Sequence[Sequence[int]], rows: int | None = None, tokens: int | None = None
) -> list[list[int]]:
    """Indices of the texts of each forward pass; texts of like length go together, the longest first.

    Args:
        encoded: token ids of each text.
        rows: texts of one pass at most.
        tokens: tokens of one pass at most, padding included; a longer text gets a pass of its own.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(encoded)), key=lambda one: len(encoded[one]), reverse=True):
        current = batches[-1] if batches else []
        size = len(current) + 1
        # The first text of a batch is its longest.
        longest = len(encoded[current[0]]) if current else 0
        fits = (rows is None or size <= rows) and (tokens is None or size * longest <= tokens)
        if current and fits and len(encoded[index]) >= LEAST_FILL * longest:
            current.append(index)
        else:
            batches.append([index])
    return batches


def padded(encoded: Sequence[Sequence[int]], batch: Sequence[int]) -> Any:
    """The ids of a batch's texts as int64 ``[texts, longest]``; padding lies on the right."""
    import torch

    rows = [torch.tensor(encoded[index]) for index in batch]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def score_each(model: Any, encoded: Sequence[Sequence[int]], batches: Sequence[Sequence[int]]) -> list[float]:
    """Negative log-likelihood in nats of each text without its first token, each text on its own.

    Texts should be cut with :func:`split_text` to what the model can take: cut by characters, not tokens, so that
    every tokenizer sees the same context.

    Args:
        model: a causal LM of transformers; evaluated in its own dtype, the loss in fp32.
        encoded: of :func:`encode_texts`.
        batches: of :func:`plan_batches`.
    """
    import torch

    was_training = model.training
    model.eval()
    sums = [_nats_of_batch(model, encoded, batch) for batch in batches]
    model.train(was_training)
    nats = [0.0] * len(encoded)
    places = [index for batch in batches for index in batch]
    # Read at the end only: until then a GPU is never waited for.
    for index, value in zip(places, torch.cat(sums).tolist() if sums else [], strict=True):
        nats[index] = value
    return nats


def _nats_of_batch(model: Any, encoded: Sequence[Sequence[int]], batch: Sequence[int]) -> Any:
    """Nats of each text of the batch as float64 ``[texts]``, on the model's device."""
    import torch

    input_ids = padded(encoded, batch)
    lengths = torch.tensor([len(encoded[index]) for index in batch])
    targets = torch.full_like(input_ids, IGNORE_INDEX)
    targets[:, :-1] = input_ids[:, 1:]
    targets.masked_fill_(torch.arange(input_ids.shape[1]) >= lengths[:, None] - 1, IGNORE_INDEX)
    # Padding lies on the right, where causal attention never looks: no mask is needed.
    with torch.inference_mode():
        logits = model(input_ids=input_ids.to(model.device), use_cache=False).logits
        losses = _token_losses(logits.flatten(0, 1), targets.to(model.device).flatten())
        return losses.view(targets.shape).double().sum(dim=1)


def _token_losses(logits: Any, targets: Any) -> Any:
    """Cross entropy in nats of each position as fp32 ``[positions]``, 0 where there is no target.

    In pieces of so many positions that the softmax does not leave the cache on a CPU (three times as fast, measured
    with a vocabulary of 49,152) and does not double the memory on a GPU.

    Args:
        logits: ``[positions, vocabulary]``.
        targets: ``[positions]``, ``IGNORE_INDEX`` where there is none.
    """
    import torch

    numbers = CPU_PIECE if logits.device.type == "cpu" else GPU_PIECE
    positions = max(1, numbers // logits.shape[1])
    pieces = zip(logits.split(positions), targets.split(positions), strict=True)
    cross_entropy = torch.nn.functional.cross_entropy
    return torch.cat(
        [cross_entropy(one.float(), goals, ignore_index=IGNORE_INDEX, reduction="none") for one, goals in pieces]
    )


def check_lengths(model: Any, encoded: Sequence[Sequence[int]], window_characters: int) -> None:
    """Refuse texts that are longer than the model's positions.

    Raises:
        UserError: says how to cut the texts shorter.
    """
    longest = max(map(len, encoded), default=0)
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and longest > positions:
        raise UserError(
            f"--window_characters {window_characters}: gives a piece of {longest} tokens, the model has {positions} "
            f"positions; give at most {max(1, window_characters * positions // (longest + 1))}"
        )
