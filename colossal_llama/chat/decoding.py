"""Text out of tokens that arrive one by one."""

from __future__ import annotations

from typing import Any

from colossal_llama.generation.batches import decode_answer
from colossal_llama.html_page import REPLACEMENT


class IncrementalDecoder:
    """Hands out the text of a growing answer as soon as its characters are complete.

    A character may take several tokens, and a tokenizer may write a token differently at the beginning of a text. So
    each step decodes the tokens since the last but one complete place, and hands out what the newest ones add. The
    pieces add up to the text of the whole answer, without its special tokens.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0
        """Where decoding starts: the last but one place at which no character was open."""
        self._complete = 0
        """Tokens whose text was handed out."""

    def put(self, token: int) -> str:
        """The text that ``token`` completes; "" while a character is open."""
        self._ids.append(token)
        text = self._pending()
        if not text or text.endswith(REPLACEMENT):
            return ""
        self._start, self._complete = self._complete, len(self._ids)
        return text

    def end(self) -> str:
        """What is left when no more tokens come; an unfinished character gives a replacement character."""
        text = self._pending()
        self._start = self._complete = len(self._ids)
        return text

    def _pending(self) -> str:
        known = decode_answer(self._tokenizer, self._ids[self._start : self._complete])
        return decode_answer(self._tokenizer, self._ids[self._start :])[len(known) :]
