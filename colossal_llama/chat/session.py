"""One conversation with a model: its messages, what fits into the context, and the answer that is being written."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

from colossal_llama.chat.decoding import IncrementalDecoder
from colossal_llama.chat.engine import StreamingGenerator
from colossal_llama.chat.history import WrittenAnswer, restore_answers
from colossal_llama.errors import UserError
from colossal_llama.generation.prompts import NO_TEMPLATE, PromptEncoder, context_length
from colossal_llama.generation.settings import SamplingSettings

SMALLEST_SHARE = 4
"""An answer gets at least the context / 4, or max_new_tokens if that is less, however long the conversation is."""


def describe_dropped(turns: int) -> str:
    """What to tell the user when the conversation lost ``turns`` of its oldest questions."""
    lost = "oldest question and its answer were" if turns == 1 else f"{turns} oldest questions and their answers were"
    return f"the {lost} dropped: the conversation is longer than the model's context"


class Answer:
    """An answer that is being written; iterate over it once for the pieces of its text.

    Attributes:
        dropped_turns: how many of the oldest questions, with their answers, the conversation lost to make room.
        prompt_tokens: length of the prompt.
        reused_tokens: how many of them the cache already held.
    """

    def __init__(self, pieces: Iterator[str], dropped_turns: int, prompt_tokens: int, reused_tokens: int) -> None:
        self._pieces = pieces
        self.dropped_turns = dropped_turns
        self.prompt_tokens = prompt_tokens
        self.reused_tokens = reused_tokens

    def __iter__(self) -> Iterator[str]:
        return self._pieces


class ChatSession:
    """A conversation that grows by one question and one answer at a time.

    Args:
        model: a causal LM of transformers in evaluation mode.
        tokenizer: its tokenizer, with a chat template.
        settings: how tokens are chosen, unless :meth:`ask` gets others.
        system: the system message; "" for none, or for the one that the template has of its own.
        keep_cache: whether keys and values are kept between turns.
        encoder: makes the prompts; None for a new one, in whose prompts control tokens are letters.

    Raises:
        UserError: the tokenizer has no chat template.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        settings: SamplingSettings,
        system: str = "",
        keep_cache: bool = True,
        encoder: PromptEncoder | None = None,
    ) -> None:
        if not tokenizer.chat_template:
            raise UserError(f"{NO_TEMPLATE}inference_example.py --prompt_style pretrained")
        self.settings = settings
        self._tokenizer = tokenizer
        self._encoder = encoder or PromptEncoder(tokenizer)
        self._context = context_length(model)
        self._generator = StreamingGenerator(model, tokenizer, keep_cache)
        self._system = system
        self._messages: list[dict[str, str]] = []
        self._written: list[WrittenAnswer] = []
        self._stop = threading.Event()

    @property
    def system(self) -> str:
        """The system message; "" for none."""
        return self._system

    @system.setter
    def system(self, text: str) -> None:
        if text != self._system:
            self._system = text
            self._written = []

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as chat templates take it (``role``, ``content``), a system message first."""
        return self._with_system(self._messages)

    def replace(self, messages: Sequence[dict[str, str]]) -> None:
        """Go on from another conversation: an optional system message, then questions with their answers."""
        self.clear()
        self._system = ""
        for message in messages:
            if message["role"] == "system":
                self._system = message["content"]
            else:
                self._messages.append(dict(message))

    def clear(self) -> None:
        """Forget all questions and answers; the system message stays."""
        self._messages, self._written = [], []

    def forget_cache(self) -> None:
        """Free the cache; the next answer computes the whole conversation again."""
        self._generator.forget()

    def stop(self) -> None:
        """End the answer that is being written behind its current token; from another thread or a signal handler."""
        self._stop.set()

    def ask(
        self, question: str, settings: SamplingSettings | None = None, stop: threading.Event | None = None
    ) -> Answer:
        """Put a question and get its answer, which is written while the result is iterated over.

        Question and answer join the conversation when the iteration ends; if it ends early, with what was written so
        far, or not at all where that is nothing.

        Args:
            question: the user's message.
            settings: how tokens are chosen this time.
            stop: ends the answer when it is set, as :meth:`stop` does; a caller's own may be set before this is called.

        Raises:
            UserError: the question alone does not fit the context, or the chat template refuses the messages. The
                conversation stays as it was.
        """
        self._stop = stop or threading.Event()
        settings = settings or self.settings
        asked = [*self._messages, {"role": "user", "content": question}]
        dropped, plain, room = self._fit(asked, settings.max_new_tokens)
        written = [] if dropped else self._written
        prompt = restore_answers(self._tokenizer, plain, written)
        if self._context is not None and len(prompt) + room > self._context:
            # The model wrote more tokens than its tokenizer would for the same text.
            prompt, written = plain, []
        settings = settings.limited(room)
        self._messages, self._written = asked[2 * dropped : -1], written
        pieces = self._write(question, prompt, len(plain), settings)
        return Answer(pieces, dropped, len(prompt), self._generator.reusable(prompt))

    def _write(self, question: str, prompt: list[int], start: int, settings: SamplingSettings) -> Iterator[str]:
        decoder = IncrementalDecoder(self._tokenizer)
        ids: list[int] = []
        text = ""
        stop = self._stop
        tokens = self._generator.stream(prompt, settings, stop)
        complete = False
        try:
            for token in tokens:
                ids.append(token)
                piece = decoder.put(token)
                text += piece
                if piece:
                    yield piece
            rest = decoder.end()
            text += rest
            complete = not stop.is_set()
            if rest:
                yield rest
        finally:
            tokens.close()
            if complete or text:
                self._messages += [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
                self._written = [*self._written, WrittenAnswer(start, tuple(ids))]

    def _fit(self, asked: list[dict[str, str]], max_new_tokens: int) -> tuple[int, list[int], int]:
        """How many of the oldest turns have to go, the prompt that is left, and the longest answer to it."""
        dropped = 0
        while True:
            prompt = self._encoder.chat_prompt(self._with_system(asked[2 * dropped :]))
            if self._context is None:
                return dropped, prompt, max_new_tokens
            if len(prompt) + min(max_new_tokens, self._context // SMALLEST_SHARE) <= self._context:
                return dropped, prompt, min(max_new_tokens, self._context - len(prompt))
            if len(asked[2 * dropped :]) == 1:
                raise UserError(
                    f"the message makes a prompt of {len(prompt):,} tokens, which leaves too little of the model's "
                    f"context of {self._context:,} tokens for an answer; shorten it"
                )
            dropped += 1

    def _with_system(self, messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
        start = [{"role": "system", "content": self._system}] if self._system else []
        return [*start, *(dict(message) for message in messages)]
