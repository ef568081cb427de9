"""From text or messages to the token ids that a model goes on from, and whether they leave room for an answer.

What a user writes is text, here as in the preparation of data: control tokens in it are letters, so that no message can
end a turn or open another one. The chat template's own control tokens go in by id.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from colossal_llama.data.chat_templates import BoundControl, BoundPart, BoundTemplate, Span
from colossal_llama.data.formats.parsed import ASSISTANT, HUMAN, Message
from colossal_llama.data.own_template import TemplateSplitter, bind_own_template
from colossal_llama.data.tokenization import SpanTextEncoder, TextEncoder, encode_spans, encoder_spec
from colossal_llama.errors import UserError
from colossal_llama.tokenizer.plain_text import TextToIds, text_encoder

PRETRAINED_PROMPT_END = "\n\n->\n\n"
"""Upstream's separator between a prompt and what a pretrained model writes after it."""

ChatMessages = Sequence[Mapping[str, str]]
"""Messages as chat templates take them: ``role`` (system, user or assistant) and ``content``."""

NO_TEMPLATE = "the model has no chat template, it was not fine-tuned on conversations; use "

_MARK_START, _MARK_END = "\U000f0000", "\U000f0001"
"""Characters for private use, around the number of a control token that a content spells out."""

_ROLES = {"user": HUMAN, "human": HUMAN, "assistant": ASSISTANT}


class PromptEncoder:
    """Makes prompts for one model; what it has to find out about tokenizer and template, it finds out once.

    Args:
        tokenizer: of the model.
        parse_special: whether control tokens in texts of users and files become tokens.
    """

    def __init__(self, tokenizer: Any, parse_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._parse_special = parse_special
        self._chat = _ChatEncoder(tokenizer) if tokenizer.chat_template and not parse_special else None

    @property
    def has_template(self) -> bool:
        """Whether the model has a chat template."""
        return bool(self._tokenizer.chat_template)

    def prompt(self, text: str, prompt_style: str) -> list[int]:
        """Token ids of one prompt.

        Args:
            text: the question or the beginning.
            prompt_style: ``sft`` puts the text into the chat template as the user's message; ``pretrained`` puts the
                beginning-of-sequence token before it and :data:`PRETRAINED_PROMPT_END` behind; ``text`` only the
                former.

        Raises:
            UserError: ``sft`` with a tokenizer without chat template, or one whose template fails.
        """
        if prompt_style == "sft":
            if not self.has_template:
                raise UserError(f"--prompt_style sft: {NO_TEMPLATE}--prompt_style pretrained")
            return self.chat_prompt([{"role": "user", "content": text}])
        ending = PRETRAINED_PROMPT_END if prompt_style == "pretrained" else ""
        start = [] if self._tokenizer.bos_token_id is None else [self._tokenizer.bos_token_id]
        [ids] = self._text_to_ids([text + ending])
        return start + ids

    @cached_property
    def _text_to_ids(self) -> TextToIds:
        return text_encoder(self._tokenizer, self._parse_special)

    def chat_prompt(self, messages: ChatMessages) -> list[int]:
        """Token ids of a conversation up to where the next answer begins, by the chat template that the model has.

        They are the ids that the preparation of data gives the same conversation.

        Raises:
            UserError: the template refuses these messages (a system message, for example), fails, or gives no text.
        """
        if self._chat is not None:
            return self._chat.ids(messages)
        rendered = render_chat(self._tokenizer, messages)
        return list(self._tokenizer(rendered, add_special_tokens=False)["input_ids"])


def build_prompt(tokenizer: Any, text: str, prompt_style: str, parse_special: bool = False) -> list[int]:
    """One prompt of :class:`PromptEncoder`, for programs that need no second one."""
    return PromptEncoder(tokenizer, parse_special).prompt(text, prompt_style)


def render_chat(tokenizer: Any, messages: ChatMessages) -> str:
    """The text of a conversation up to where the next answer begins, by the tokenizer's chat template.

    Raises:
        UserError: see :meth:`PromptEncoder.chat_prompt`.
    """
    from jinja2 import TemplateError

    roles = ", ".join(message["role"] for message in messages)
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
        )
    except TemplateError as error:
        raise UserError(f"the model's chat template refuses messages of {roles}: {_one_line(error)}") from error
    except Exception as error:  # whatever the template's program does
        reason = f"{type(error).__name__}: {_one_line(error)}"
        raise UserError(
            f"the model's chat template fails on messages of {roles} ({reason}); repair chat_template in the model's "
            "folder"
        ) from error
    if not text.strip():
        raise UserError(
            f"the model's chat template renders messages of {roles} to nothing; repair chat_template in the model's "
            "folder"
        )
    return text


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


class _ChatEncoder:
    """Conversations of one tokenizer, with template and contents apart.

    A template that the preparation of data can take apart gives the spans that training saw. Of any other one the
    rendered text is cut at its control tokens, after those in contents were replaced by marks.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._split = TemplateSplitter(tokenizer)
        self._bound = _bind(tokenizer)
        own = self._bound.control_tokens if self._bound is not None else self._template_tokens()
        special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._control = sorted({*tokenizer.all_special_tokens, *special, *own}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, self._control)) or r"(?!)")
        self._encoder: SpanTextEncoder = _SlowEncoder(tokenizer)
        if tokenizer.is_fast:
            self._encoder = TextEncoder(encoder_spec(tokenizer, "tokenizer", own, encoder="tokenizers"))

    def ids(self, messages: ChatMessages) -> list[int]:
        rendered = render_chat(self._tokenizer, messages)
        spans = self._known_spans(messages, rendered)
        if spans is None:
            spans = self._cut_spans(messages)
        # Nothing is learned here; one kind of span keeps header and content one text.
        [(ids, _)] = encode_spans(self._encoder, [([replace(span, learn=False) for span in spans], True)])
        return ids

    def _known_spans(self, messages: ChatMessages, rendered: str) -> list[Span] | None:
        """The spans of the bound template, where it renders what the tokenizer's own program does."""
        if self._bound is None:
            return None
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        turns = messages if system is None else messages[1:]
        roles = [_ROLES.get(message["role"]) for message in turns]
        if not turns or roles != [(HUMAN, ASSISTANT)[number % 2] for number in range(len(turns))]:
            return None
        spans = self._bound.spans(
            system, [Message(str(role), message["content"]) for role, message in zip(roles, turns, strict=True)]
        )
        if roles[-1] == HUMAN:
            spans += self._bound.generation_prompt()
        # White space may differ: some control tokens swallow what stands around them.
        return spans if _squeezed(self._bound.text_of(spans)) == _squeezed(rendered) else None

    def _cut_spans(self, messages: ChatMessages) -> list[Span]:
        """The rendered text, cut at the template's own control tokens."""
        start = _MARK_START
        while any(start in message["content"] for message in messages):
            start += _MARK_START
        marked = [
            {**message, "content": self._pattern.sub(lambda found: self._mark(start, found), message["content"])}
            for message in messages
        ]
        parts = self._split.as_read(self._split(render_chat(self._tokenizer, marked)))
        unmark = re.compile(f"{re.escape(start)}([0-9]+){_MARK_END}")
        return [
            Span(False, token_id=part.token_id)
            if isinstance(part, BoundControl)
            else Span(False, unmark.sub(lambda found: self._control[int(found.group(1))], str(part)))
            for part in parts
        ]

    def _mark(self, start: str, found: re.Match[str]) -> str:
        return f"{start}{self._control.index(found.group())}{_MARK_END}"

    def _template_tokens(self) -> list[str]:
        """The control tokens that a template which cannot be taken apart puts around contents."""
        question, answer = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
        parts: list[BoundPart] = []
        for messages in ([question], [question, answer, question], [{"role": "system", "content": "s"}, question]):
            try:
                parts += self._split(render_chat(self._tokenizer, messages))
            except UserError:  # not every template takes every conversation
                continue
        return list(dict.fromkeys(part.token for part in parts if isinstance(part, BoundControl)))


class _SlowEncoder:
    """A tokenizer without fast version, asked as :class:`TextEncoder` is."""

    def __init__(self, tokenizer: Any) -> None:
        self._text_to_ids = text_encoder(tokenizer)

    def ids(self, texts: Sequence[str], *, at_start: bool) -> list[list[int]]:
        return self._text_to_ids(texts)


def _bind(tokenizer: Any) -> BoundTemplate | None:
    try:
        return bind_own_template(tokenizer, "tokenizer", "tokenizer")
    except UserError:
        return None


def _squeezed(text: str) -> str:
    return "".join(text.split())


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
