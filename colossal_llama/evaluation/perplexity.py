"""How well a model predicts text, in bits per UTF-8 byte: a figure that different tokenizers share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from colossal_llama.constants import IGNORE_INDEX


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
    """Score each text on its own, after the beginning-of-sequence token where the tokenizer has one.

    Texts should be cut with :func:`split_text` to what the model can take: cut by characters, not tokens, so that
    every tokenizer sees the same context. Without a beginning-of-sequence token the first token of each text
    gets the end-of-sequence token as its context.

    Args:
        model: a causal LM of transformers; evaluated in its own dtype, the loss in fp32.
        tokenizer: the tokenizer that goes with it.
        texts: non-empty texts.
        batch_size: texts per forward pass.
    """
    import torch

    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    encoded = [[start, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts]
    # Neighbours of similar length waste no computation on padding.
    encoded.sort(key=len)
    nats = 0.0
    was_training = model.training
    model.eval()
    for first in range(0, len(encoded), batch_size):
        nats += _nats_of_batch(model, encoded[first : first + batch_size], torch)
    model.train(was_training)
    return TextScore(
        nats=nats,
        tokens=sum(len(ids) - 1 for ids in encoded),
        characters=sum(len(text) for text in texts),
        utf8_bytes=sum(len(text.encode()) for text in texts),
    )


def _nats_of_batch(model: Any, batch: Sequence[Sequence[int]], torch: Any) -> float:
    length = max(len(ids) for ids in batch)
    input_ids = torch.zeros(len(batch), length, dtype=torch.long)
    targets = torch.full((len(batch), length), IGNORE_INDEX)
    for row, ids in enumerate(batch):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        targets[row, : len(ids) - 1] = input_ids[row, 1 : len(ids)]
    # Padding lies on the right, where causal attention never looks: no mask is needed.
    with torch.inference_mode():
        logits = model(input_ids=input_ids.to(model.device), use_cache=False).logits
    flat = logits.float().flatten(0, 1)
    return torch.nn.functional.cross_entropy(
        flat, targets.to(model.device).flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    ).item()
