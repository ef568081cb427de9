"""Chat templates: how a conversation becomes a sequence of texts and control tokens.

A template is plain data, from which two things follow that must agree: the spans that training tokenises,
where each span knows whether it is learned, and the Jinja string that ``tokenizer.apply_chat_template``
renders for inference. Loss masks come from the spans as built; no one ever searches token ids for a marker.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from colossal_llama.data.formats import HUMAN, Message
from colossal_llama.errors import UserError
from colossal_llama.registry import Registry

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Control:
    """A control token: "bos" and "eos" mean the tokenizer's own, anything else is the token itself."""

    token: str


@dataclass(frozen=True, slots=True)
class Content:
    """The place of a message's content; ``prefix`` is put before the content and learned like it."""

    prefix: str = ""


BOS = Control("bos")
EOS = Control("eos")
CONTENT = Content()
Part = str | Control | Content


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a conversation: either ``text`` (tokenised as ordinary text) or one ``token_id``."""

    learn: bool
    text: str = ""
    token_id: int | None = None


@dataclass(frozen=True, slots=True)
class BoundControl:
    """A control token as one tokenizer knows it."""

    token: str
    token_id: int


BoundPart = str | BoundControl | Content


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """The shape of a conversation; each role is a sequence of parts with one ``CONTENT`` in it.

    Attributes:
        system: parts around a system message.
        human: parts around a human message.
        assistant: parts around an answer. Learned are the content and the control token right behind it.
        default_system: system content of a conversation without a system message; None for no system part.
    """

    system: tuple[Part, ...]
    human: tuple[Part, ...]
    assistant: tuple[Part, ...]
    default_system: str | None = None

    def bind(self, tokenizer: "PreTrainedTokenizerBase", name: str, flag: str) -> "BoundTemplate":
        """Resolve the control tokens.

        Args:
            tokenizer: the tokenizer whose ids are used.
            name: the template's name, for messages and the manifest.
            flag: the flag that named the tokenizer, for messages.

        Raises:
            UserError: the tokenizer lacks a control token of the template ("bos" is left out instead).
        """
        parts = (self.system, self.human, self.assistant)
        system, human, assistant = (_bind_parts(part, tokenizer, name, flag) for part in parts)
        return BoundTemplate(name, system, human, assistant, self.default_system)


@dataclass(frozen=True, slots=True)
class BoundTemplate:
    """A :class:`ChatTemplate` with the token ids of one tokenizer; picklable."""

    name: str
    system: tuple[BoundPart, ...]
    human: tuple[BoundPart, ...]
    assistant: tuple[BoundPart, ...]
    default_system: str | None

    def system_spans(self, content: str | None) -> list[Span]:
        """What stands before the first message; ``content`` None takes the default system text."""
        text = self.default_system if content is None else content
        return [] if text is None else _fill(self.system, text, learn=False)

    def message_spans(self, message: Message) -> list[Span]:
        """One message with its surroundings."""
        if message.role == HUMAN:
            return _fill(self.human, message.content, learn=False)
        return _fill(self.assistant, message.content, learn=True)

    def spans(self, system: str | None, messages: Iterable[Message]) -> list[Span]:
        """A whole conversation."""
        spans = self.system_spans(system)
        for message in messages:
            spans.extend(self.message_spans(message))
        return spans

    def generation_prompt(self) -> list[Span]:
        """What stands between the last human message and the answer."""
        return _fill(self.assistant[: _content_index(self.assistant)], "", learn=False)

    @property
    def control_tokens(self) -> list[str]:
        """The control tokens that may not be recognised inside of contents."""
        parts = (*self.system, *self.human, *self.assistant)
        return list(dict.fromkeys(part.token for part in parts if isinstance(part, BoundControl)))

    @property
    def end_token_id(self) -> int:
        """The token that ends an answer; generation stops at it."""
        part = self.assistant[_content_index(self.assistant) + 1]
        assert isinstance(part, BoundControl), "every template ends an answer with a control token"
        return part.token_id

    def jinja(self) -> str:
        """The string for ``tokenizer.chat_template``: renders the same text that training tokenised.

        Roles are "system", "user" (or "human") and "assistant", as chat programs name them.
        """
        default = ""
        if self.default_system is not None:
            default = "{{ " + _jinja_text(self.system, json.dumps(self.default_system)) + " }}"
        prompt = _jinja_text(self.assistant[: _content_index(self.assistant)], "")
        content = "message['content']"
        return (
            "{% if not messages or messages[0]['role'] != 'system' %}" + default + "{% endif %}"
            "{% for message in messages %}"
            "{% if message['role'] == 'system' and loop.first %}"
            "{{ " + _jinja_text(self.system, content) + " }}"
            "{% elif message['role'] in ['user', 'human'] %}"
            "{{ " + _jinja_text(self.human, content) + " }}"
            "{% elif message['role'] == 'assistant' %}"
            "{{ " + _jinja_text(self.assistant, content) + " }}"
            "{% else %}{{ raise_exception('roles are system (first only), user and assistant') }}{% endif %}"
            "{% endfor %}"
            "{% if add_generation_prompt %}{{ " + prompt + " }}{% endif %}"
        )


def _bind_parts(
    parts: Sequence[Part], tokenizer: "PreTrainedTokenizerBase", name: str, flag: str
) -> tuple[BoundPart, ...]:
    bound: list[BoundPart] = []
    pending_space = ""
    for part in parts:
        if isinstance(part, Control):
            control = _bind_control(part, tokenizer, name, flag)
            if control is not None:
                bound.append(control)
                continue
            # Without BOS a header's last space would stand alone before generation but merge with the first
            # word in training; it moves to the content, so that the two agree.
            if bound and isinstance(bound[-1], str) and bound[-1].endswith(" "):
                bound[-1] = bound[-1][:-1]
                pending_space = " "
        elif isinstance(part, Content):
            bound.append(Content(pending_space))
            pending_space = ""
        else:
            bound.append(part)
    return tuple(bound)


def _bind_control(control: Control, tokenizer: "PreTrainedTokenizerBase", name: str, flag: str) -> BoundControl | None:
    if control == BOS:
        if tokenizer.bos_token_id is None:
            return None
        return BoundControl(str(tokenizer.bos_token), int(tokenizer.bos_token_id))
    token = tokenizer.eos_token if control == EOS else control.token
    token_id = tokenizer.get_vocab().get(token)
    if token_id is None:
        wanted = "an end-of-sequence token" if control == EOS else control.token
        raise UserError(
            f"{flag}: the chat template {name} needs {wanted}, which this tokenizer does not have; "
            "add it to the tokenizer or choose another --chat_template"
        )
    added = tokenizer.added_tokens_decoder.get(token_id)
    if control != EOS and (added is None or added.normalized):
        raise UserError(
            f"{flag}: {control.token}, which the chat template {name} needs, is ordinary text to this tokenizer; "
            "add it as a special token or choose another --chat_template"
        )
    return BoundControl(str(token), int(token_id))


def _content_index(parts: Sequence[BoundPart]) -> int:
    return next(number for number, part in enumerate(parts) if isinstance(part, Content))


def _fill(parts: Sequence[BoundPart], content: str, learn: bool) -> list[Span]:
    spans: list[Span] = []
    after_content = False
    for part in parts:
        if isinstance(part, Content):
            spans.append(Span(learn, part.prefix + content))
        elif isinstance(part, BoundControl):
            spans.append(Span(learn and after_content, token_id=part.token_id))
        else:
            spans.append(Span(False, part))
        after_content = isinstance(part, Content)
    return spans


def _jinja_text(parts: Sequence[BoundPart], content: str) -> str:
    """The parts as a Jinja expression; ``content`` is the expression that stands for the content."""
    terms = []
    for part in parts:
        if isinstance(part, Content):
            terms.extend([json.dumps(part.prefix)] * bool(part.prefix) + [content])
        else:
            # JSON's escapes are a subset of those of Jinja's string literals.
            terms.append(json.dumps(part.token if isinstance(part, BoundControl) else part))
    return " + ".join(terms)


CHAT_TEMPLATES: Registry[ChatTemplate] = Registry("chat template")
"""All chat templates; ``--chat_template`` takes these names."""

_COLOSSAL = ChatTemplate(
    system=(CONTENT, "\n\n"),
    human=("Human: ", BOS, CONTENT, EOS),
    assistant=("Assistant: ", BOS, CONTENT, EOS),
    default_system=(
        "A chat between a curious human and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the human's questions."
    ),
)

# One shape: Llama 2 and Llama 3 differ in their tokenizers' own bos and eos, which are resolved by `bind`.
CHAT_TEMPLATES.add("colossal_llama_2", _COLOSSAL)
CHAT_TEMPLATES.add("colossal_llama_3", _COLOSSAL)


def _chatml_role(role: str) -> tuple[Part, ...]:
    return (Control("<|im_start|>"), f"{role}\n", CONTENT, Control("<|im_end|>"), "\n")


CHAT_TEMPLATES.add(
    "chatml",
    ChatTemplate(system=_chatml_role("system"), human=_chatml_role("user"), assistant=_chatml_role("assistant")),
)
