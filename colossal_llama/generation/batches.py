"""Answers to one prompt or to many, in batches that are padded on the left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from colossal_llama.generation.settings import SamplingSettings


@dataclass(frozen=True)
class Continuation:
    """What a model wrote after a prompt.

    Attributes:
        text: without special tokens.
        tokens: how many it wrote, without the one that ends the answer.
        finished: whether it ended the answer itself; otherwise ``max_new_tokens`` did.
    """

    text: str
    tokens: int
    finished: bool


def generate(model: Any, tokenizer: Any, prompt: list[int], settings: SamplingSettings, seed: int = 42) -> str:
    """The continuation of ``prompt`` as text, without special tokens; the same for the same seed."""
    return generate_batches(model, tokenizer, [prompt], settings, seed=seed)[0].text


def generate_batches(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    settings: SamplingSettings,
    batch_size: int = 1,
    seed: int = 42,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[Continuation]:
    """The continuations of ``prompts``, in their order.

    Greedy answers do not depend on ``batch_size``, up to the rounding of the model's dtype; sampled ones do, because
    the prompts of a batch share one sequence of random numbers.

    Args:
        model: a causal LM of transformers, in evaluation mode.
        tokenizer: its tokenizer.
        prompts: non-empty sequences of token ids.
        settings: how tokens are chosen.
        batch_size: prompts per call of the model.
        seed: of the sampling; set once for all prompts.
        on_progress: is told after each batch how many prompts are answered.
    """
    import torch

    torch.manual_seed(seed)
    # Prompts of similar length waste little on padding, and the longest first shows at once whether memory suffices.
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    answers: dict[int, Continuation] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        rows = _generate_batch(model, tokenizer, [prompts[number] for number in chosen], settings)
        answers |= dict(zip(chosen, rows, strict=True))
        on_progress(len(answers))
    return [answers[number] for number in range(len(prompts))]


def _generate_batch(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], settings: SamplingSettings
) -> list[Continuation]:
    import torch

    ends = end_tokens(model, tokenizer)
    padding = padding_token(tokenizer)
    width = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), width), padding)
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
        attention_mask[row, width - len(prompt) :] = 1
    with torch.inference_mode():
        output = model.generate(
            input_ids.to(model.device),
            attention_mask=attention_mask.to(model.device),
            pad_token_id=padding,
            eos_token_id=sorted(ends) or None,
            **settings.as_arguments(),
        )
    return [_continuation(tokenizer, row, ends) for row in output[:, width:].tolist()]


def _continuation(tokenizer: Any, written: list[int], ends: set[int]) -> Continuation:
    """The answer in a row of new tokens; behind its end stands padding where other rows went on."""
    end = next((position for position, token in enumerate(written) if token in ends), None)
    ids = written[:end]
    return Continuation(decode_answer(tokenizer, ids), len(ids), end is not None)


def decode_answer(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of an answer without special tokens, with its white space as it was written."""
    return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Ids that end an answer: the tokenizer's, and those the model's generation configuration names."""
    configured = model.generation_config.eos_token_id
    ids = set(configured if isinstance(configured, list) else [configured])
    return (ids | {tokenizer.eos_token_id}) - {None}


def padding_token(tokenizer: Any) -> int:
    """An id to pad with: the tokenizer's own, else its end-of-sequence token, else any, as padding is masked."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0
