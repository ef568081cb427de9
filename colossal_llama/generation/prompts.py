"""From text or messages to the token ids that a model goes on from, and whether they leave room for an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from colossal_llama.errors import UserError

PRETRAINED_PROMPT_END = "\n\n->\n\n"
"""Upstream's separator between a prompt and what a pretrained model writes after it."""

ChatMessages = Sequence[Mapping[str, str]]
"""Messages as chat templates take them: ``role`` (system, user or assistant) and ``content``."""


def build_prompt(tokenizer: Any, text: str, prompt_style: str) -> list[int]:
    """Token ids of the prompt.

    Args:
        tokenizer: for ``sft`` one with a chat template.
        text: the question or the beginning.
        prompt_style: ``sft`` puts the text into the chat template as the user's message; ``pretrained`` puts the
            beginning-of-sequence token before it and :data:`PRETRAINED_PROMPT_END` behind; ``text`` only the former.

    Raises:
        UserError: ``sft`` with a tokenizer without chat template.
    """
    if prompt_style == "sft":
        if not tokenizer.chat_template:
            raise UserError(
                "--prompt_style sft: the model has no chat template, it was not fine-tuned on conversations; use "
                "--prompt_style pretrained"
            )
        return build_chat_prompt(tokenizer, [{"role": "user", "content": text}])
    ending = PRETRAINED_PROMPT_END if prompt_style == "pretrained" else ""
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return start + tokenizer(text + ending, add_special_tokens=False)["input_ids"]


def build_chat_prompt(tokenizer: Any, messages: ChatMessages) -> list[int]:
    """Token ids of a conversation up to where the model's next answer begins, by the chat template that it came with.

    Raises:
        UserError: the template refuses these messages (a system message, for example).
    """
    from jinja2 import TemplateError

    try:
        return list(tokenizer.apply_chat_template([dict(message) for message in messages], add_generation_prompt=True))
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(f"the model's chat template refuses messages of {roles}: {error}") from error


def context_length(model: Any) -> int | None:
    """Tokens that the model was made to take, prompt and answer together; None where it names no limit (ALiBi)."""
    length = getattr(model.config, "max_position_embeddings", None)
    return None if length is None else int(length)


def check_room(prompt_tokens: int, max_new_tokens: int, context: int | None, where: str) -> None:
    """Refuse a prompt that leaves less room in the context than the longest answer needs.

    Args:
        prompt_tokens: length of the prompt.
        max_new_tokens: longest answer.
        context: of :func:`context_length`.
        where: the flag, or file and line, that the prompt comes from.

    Raises:
        UserError: prompt and answer are longer than the context.
    """
    if context is not None and prompt_tokens + max_new_tokens > context:
        raise UserError(
            f"{where}: the prompt has {prompt_tokens:,} tokens and --max_new_tokens is {max_new_tokens:,}, together "
            f"more than the model's context of {context:,} tokens; shorten the prompt or lower --max_new_tokens"
        )
