"""Answers token by token, with the keys and values of everything the model has seen kept for the next answer."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from colossal_llama.errors import UserError, is_out_of_memory
from colossal_llama.generation.batches import end_tokens, padding_token
from colossal_llama.generation.settings import SamplingSettings

_Item = int | BaseException | None
"""What the generating thread hands over: a token, what went wrong, or None at the end."""


class StreamingGenerator:
    """Runs ``model.generate`` in a thread and yields its tokens.

    The key-value cache stays when an answer is done. The next prompt pays only for the tokens behind the longest
    prefix that it shares with what the cache holds; the rest of the cache is cut off. One answer at a time.

    Args:
        model: a causal LM of transformers in evaluation mode.
        tokenizer: its tokenizer.
        keep_cache: False computes every prompt from its start. So it is, too, for models whose cache cannot be cut:
            those with a state instead of keys and values (Mamba), or with a cache of their own (Gemma 2, GPT-2).
    """

    def __init__(self, model: Any, tokenizer: Any, keep_cache: bool = True) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._keep = keep_cache and _takes_dynamic_cache(model)
        self._cache: DynamicCache | None = None
        self._seen: list[int] = []

    def stream(
        self, prompt: Sequence[int], settings: SamplingSettings, stop: threading.Event
    ) -> Generator[int, None, None]:
        """The tokens of an answer, without the one that ends it.

        Args:
            prompt: token ids, at least one.
            settings: how tokens are chosen.
            stop: ends the answer behind the last token that was handed out. Closing the iterator does the same.

        Raises:
            UserError: the memory of the device is exhausted.
        """
        tokens: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        closed = threading.Event()
        criteria = StoppingCriteriaList([_AnySet(stop, closed)])
        thread = threading.Thread(target=self._run, args=(list(prompt), settings, criteria, tokens), daemon=True)
        thread.start()
        try:
            # The thread may have written on while the caller showed what came before.
            while (item := tokens.get()) is not None and not stop.is_set():
                if isinstance(item, BaseException) and is_out_of_memory(item):
                    owner = "machine" if self._model.device.type == "cpu" else "GPU"
                    raise UserError(
                        f"the {owner}'s memory is exhausted; start anew with a shorter conversation"
                    ) from item
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            closed.set()
            thread.join()

    def forget(self) -> None:
        """Free the cache."""
        self._cache, self._seen = None, []

    def reusable(self, prompt: Sequence[int]) -> int:
        """How many tokens of ``prompt`` the cache spares the model; the last one is always computed."""
        return min(_common_prefix(self._seen, prompt), len(prompt) - 1)

    def _run(
        self,
        prompt: list[int],
        settings: SamplingSettings,
        criteria: StoppingCriteriaList,
        tokens: queue.SimpleQueue[_Item],
    ) -> None:
        try:
            self._generate(prompt, settings, criteria, tokens)
        except BaseException as error:
            self.forget()  # it may hold half a step
            tokens.put(error)
        finally:
            tokens.put(None)

    def _generate(
        self,
        prompt: list[int],
        settings: SamplingSettings,
        criteria: StoppingCriteriaList,
        tokens: queue.SimpleQueue[_Item],
    ) -> None:
        ends = end_tokens(self._model, self._tokenizer)
        extra = {"past_key_values": self._cut_cache(prompt)} if self._keep else {}
        input_ids = torch.tensor([prompt], device=self._model.device)
        with torch.inference_mode():
            output = self._model.generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                pad_token_id=padding_token(self._tokenizer),
                eos_token_id=sorted(ends) or None,
                streamer=_TokenStreamer(tokens, ends),
                stopping_criteria=criteria,
                **extra,
                **settings.as_arguments(),
            )
        if self._cache is not None:
            # The token chosen last was never given to the model.
            self._seen = output[0, : self._cache.get_seq_length()].tolist()

    def _cut_cache(self, prompt: list[int]) -> DynamicCache:
        keep = self.reusable(prompt)
        if self._cache is None or keep == 0:
            self._cache = DynamicCache()
        else:
            self._cache.crop(keep)
        # What it will hold is known only afterwards.
        self._seen = []
        return self._cache


def _takes_dynamic_cache(model: Any) -> bool:
    own = model.generation_config.cache_implementation or getattr(model.config, "cache_implementation", None)
    return own is None and model._supports_default_dynamic_cache()


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    for position, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return position
    return min(len(one), len(other))


class _TokenStreamer(BaseStreamer):
    """Puts every new token except those that end an answer into a queue."""

    def __init__(self, tokens: queue.SimpleQueue[_Item], ends: set[int]) -> None:
        self._tokens = tokens
        self._ends = ends
        self._is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        if self._is_prompt:  # generate shows the prompt first
            self._is_prompt = False
            return
        for token in value.tolist():
            if token not in self._ends:
                self._tokens.put(token)

    def end(self) -> None:
        """Nothing to do: the thread says when it is done."""


class _AnySet(StoppingCriteria):
    """Ends generation once one of some events is set; asked after every token."""

    def __init__(self, *events: threading.Event) -> None:
        self._events = events

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        done = any(event.is_set() for event in self._events)
        return torch.full((input_ids.shape[0],), done, device=input_ids.device, dtype=torch.bool)
