"""Generation and chat on a GPU, in the dtype that is chosen for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from colossal_llama.chat.session import ChatSession
from colossal_llama.generation import (
    SamplingSettings,
    build_prompt,
    choose_device,
    generate_batches,
    load_for_generation,
)
from tests.helpers.chat_model import save_chat_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


def test_chat_and_batches_on_the_chosen_device(tmp_path: Path) -> None:
    model, tokenizer = load_for_generation(save_chat_model(tmp_path / "model"), choose_device("auto"))
    assert model.device == torch.device("cuda:0")
    assert model.dtype in (torch.bfloat16, torch.float16)
    greedy = SamplingSettings(max_new_tokens=8, do_sample=False)
    session = ChatSession(model, tokenizer, greedy)
    assert "".join(session.ask("Who?"))
    answer = session.ask("And?")
    assert "".join(answer)
    assert answer.reused_tokens > answer.prompt_tokens / 2
    prompts = [build_prompt(tokenizer, text, "sft") for text in ("Who?", "Which one of them is it?")]
    assert [answer.tokens for answer in generate_batches(model, tokenizer, prompts, greedy, 2)] == [8, 8]
