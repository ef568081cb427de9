"""The tokens of a conversation, with each answer as the model wrote it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SEARCH_WIDTH = 4
"""Bytes that a character takes at most: how far from the right length the end of an answer can lie."""


@dataclass(frozen=True)
class WrittenAnswer:
    """An answer as the model wrote it.

    Attributes:
        start: length of the prompt, in tokens as the chat template gives them, that it answered.
        ids: its tokens.
    """

    start: int
    ids: tuple[int, ...]


def restore_answers(tokenizer: Any, prompt: Sequence[int], answers: Sequence[WrittenAnswer]) -> list[int]:
    """``prompt`` with its earlier answers in the tokens that the model chose for them.

    A tokenizer cuts a text in one way, but a model may write it in another, and then nothing behind that place could be
    taken from the cache. Tokens are replaced only by others with exactly the same text.

    Args:
        tokenizer: of the model.
        prompt: a conversation as the chat template gives it.
        answers: what the model wrote in it so far, in order.
    """
    result: list[int] = []
    position = 0
    for answer in answers:
        end = _end_of_same_text(tokenizer, prompt, answer)
        if end is None or answer.start < position:
            continue
        result += prompt[position : answer.start]
        result += answer.ids
        position = end
    return result + list(prompt[position:])


def _end_of_same_text(tokenizer: Any, prompt: Sequence[int], answer: WrittenAnswer) -> int | None:
    """Where the text of ``answer`` ends in ``prompt``, or None where it does not stand there."""
    start, length = answer.start, len(answer.ids)
    if tuple(prompt[start : start + length]) == answer.ids:
        return start + length
    text = _decode(tokenizer, answer.ids)
    longest = start + len(text.encode()) + SEARCH_WIDTH  # no token is shorter than a byte
    ends = range(start, min(longest, len(prompt)) + 1)
    first = bisect_left(ends, len(text), key=lambda end: len(_decode(tokenizer, prompt[start:end])))
    # From the right: a replacement character's first byte alone is decoded as one, too.
    for end in reversed(range(start + first, min(start + first + SEARCH_WIDTH, len(prompt)) + 1)):
        if _decode(tokenizer, prompt[start:end]) == text:
            return end
    return None


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    # Special tokens count as text here: one that the model wrote is not in the conversation's text.
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
