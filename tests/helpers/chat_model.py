"""A tiny model that chats: it has a chat template, room for a long conversation, and ends no answer itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.tiny import save_tiny_model

CHAT_TEMPLATE = (
    "{% for m in messages %}<s>[{{ m['role'] }}]{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>[assistant]{% endif %}"
)


def save_chat_model(folder: Path, context: int = 100_000) -> Path:
    """A random Llama with ``context`` position embeddings; greedy answers go on until they are stopped."""
    import torch
    from transformers import LlamaForCausalLM

    save_tiny_model(folder)
    model = LlamaForCausalLM.from_pretrained(str(folder))
    with torch.no_grad():
        model.lm_head.weight[:2] = 0  # the logit 0 of <s> and </s> is never the largest of 512
    model.config.max_position_embeddings = context
    model.save_pretrained(str(folder))
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(settings | {"chat_template": CHAT_TEMPLATE}), encoding="utf-8")
    return folder


def count_passes(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list to which each pass of the model adds how many tokens it is given."""
    calls: list[int] = []
    forward = model.forward

    def count(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["input_ids"].shape[1])
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", count)
    return calls
