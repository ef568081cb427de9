"""The chat template that travels with a trained model: it renders every shape of conversation as training saw it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from colossal_llama.data.chat_templates import CHAT_TEMPLATES, BoundTemplate
from colossal_llama.data.formats.parsed import ASSISTANT, HUMAN, Message
from colossal_llama.data.manifest import ChatFormat
from colossal_llama.data.tokenization import TextEncoder, encode_spans, encoder_spec
from colossal_llama.errors import UserError

_SYSTEMS = (None, "Be brief.\n\nAnswer in 中文.")
_CONTENTS = ("What is 2+2?", "It's 4.\n\n- done", "你好，世界！", '"quotes" & <b> {{ x }}')
_TURNS = (1, 2, 3)


def with_exported_template(template: BoundTemplate, tokenizer: Any, flag: str) -> BoundTemplate:
    """The template with a Jinja form that gives each conversation the ids that training gives it.

    That is its own form, or where that does other things (Gemma's refuses system messages, which training puts before
    the first question) the project's own equivalent.

    Args:
        template: bound to ``tokenizer``.
        tokenizer: a fast tokenizer.
        flag: the flag that named the tokenizer, for messages.

    Raises:
        UserError: neither form does.
    """
    if not tokenizer.is_fast:  # the preparation refuses those
        return template
    encoder = TextEncoder(encoder_spec(tokenizer, flag, template.control_tokens, encoder="tokenizers"))
    for candidate in (template, template.equivalent()):
        difference = _first_difference(candidate, tokenizer, encoder)
        if difference is None:
            return candidate
    raise UserError(
        f"{flag}: the chat template {template.name} of a trained model would give {difference} other tokens than "
        "training does; choose another --chat_template"
    )


def adopt_chat_template(tokenizer: Any, formats: Iterable[ChatFormat | None]) -> int | None:
    """Give the tokenizer the chat template that SFT data was prepared with, so that it travels with the model.

    Args:
        tokenizer: of the model that is trained.
        formats: of the manifests of all parts; None for pretraining data.

    Returns:
        The id that ends an answer, or None for pretraining data.

    Raises:
        UserError: the parts have different templates, or no template can be exported; see
            :func:`with_exported_template`.
    """
    known = list(dict.fromkeys(chat for chat in formats if chat is not None))
    if not known:
        return None
    if len(known) > 1:
        names = " and ".join(dict.fromkeys(chat.name for chat in known))
        raise UserError(
            f"--dataset: its parts were prepared with {len(known)} different chat templates ({names}), of which a "
            "model can have one; prepare them with the same --chat_template"
        )
    [chat] = known
    tokenizer.chat_template = chat.jinja
    bound = replace(CHAT_TEMPLATES.get(chat.name).bind(tokenizer, chat.name, "--pretrained"), chat_template=chat.jinja)
    tokenizer.chat_template = with_exported_template(bound, tokenizer, "--pretrained").jinja()
    return bound.end_token_id


def _first_difference(template: BoundTemplate, tokenizer: Any, encoder: TextEncoder) -> str | None:
    """What kind of conversation the Jinja form renders otherwise, or refuses; None where there is none."""
    for system, messages in _conversations():
        [(ids, _)] = encode_spans(encoder, [(template.spans(system, messages), True)])
        if _rendered(template, tokenizer, system, messages) != ids:
            return (
                f"a conversation of {len(messages) // 2} turn(s) {'without' if system is None else 'with'} system text"
            )
    return None


def _conversations() -> Iterator[tuple[str | None, list[Message]]]:
    """Every shape that training makes: with and without system text, of one turn and of several."""
    for system, turns in itertools.product(_SYSTEMS, _TURNS):
        contents = itertools.islice(itertools.cycle(_CONTENTS), 2 * turns)
        yield system, [Message((HUMAN, ASSISTANT)[number % 2], text) for number, text in enumerate(contents)]


def _rendered(template: BoundTemplate, tokenizer: Any, system: str | None, messages: list[Message]) -> list[int] | None:
    roles = {HUMAN: "user", ASSISTANT: "assistant"}
    chat = [] if system is None else [{"role": "system", "content": system}]
    chat += [{"role": roles[message.role], "content": message.content} for message in messages]
    try:
        return list(tokenizer.apply_chat_template(chat, chat_template=template.jinja()))
    except Exception:  # whatever the template's program does
        return None
