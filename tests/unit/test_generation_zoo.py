"""Batches and kept caches on architectures that place their tokens and keep their caches in different ways."""

from __future__ import annotations

from pathlib import Path

import pytest

from colossal_llama.chat.session import ChatSession
from colossal_llama.generation import SamplingSettings, build_prompt, generate_batches, load_for_generation
from tests.helpers.chat_model import CHAT_TEMPLATE
from tests.helpers.model_zoo import save_zoo_model

GREEDY = SamplingSettings(max_new_tokens=10, do_sample=False)
QUESTIONS = ("Who?", "And?", "So?")
PROMPTS = ("the class", "a", "Some longer text, which needs no padding at all")

KEEPS = {"DeepSeek-V3": True, "Bloom": True, "OPT": True, "Falcon": True, "GPT-2": False, "Gemma 2": False}
"""Whether the cache is kept between turns: not those with a format or a window of their own."""


@pytest.mark.parametrize("name", KEEPS)
def test_answers_depend_on_neither_batch_nor_cache(name: str, tmp_path: Path) -> None:
    model, tokenizer = load_for_generation(save_zoo_model(tmp_path, name), "cpu")
    prompts = [build_prompt(tokenizer, text, "text") for text in PROMPTS]
    alone = [generate_batches(model, tokenizer, [prompt], GREEDY)[0] for prompt in prompts]
    assert generate_batches(model, tokenizer, prompts, GREEDY, batch_size=3) == alone
    tokenizer.chat_template = CHAT_TEMPLATE
    kept, again = (ChatSession(model, tokenizer, GREEDY, keep_cache=keep) for keep in (True, False))
    for question in QUESTIONS:
        answer = kept.ask(question)
        assert "".join(answer) == "".join(again.ask(question))
    assert (answer.reused_tokens > answer.prompt_tokens / 2) == KEEPS[name]
