"""Chat templates: how a conversation becomes a sequence of texts and control tokens.

A template is plain data, from which two things follow that must agree: the spans that training tokenises,
where each span knows whether it is learned, and the Jinja string that ``tokenizer.apply_chat_template``
renders for inference. Loss masks come from the spans as built; no one ever searches token ids for a marker.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from colossal_llama.data.formats.parsed import ASSISTANT, HUMAN, SYSTEM, Message
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
    """The place of a message's content.

    Attributes:
        prefix: is put before the content and learned like it.
        suffix: the same behind it.
        strip: whether white space around the content is dropped.
    """

    prefix: str = ""
    suffix: str = ""
    strip: bool = False

    def pieces(self, message: "Message") -> list[tuple[str, bool]]:
        """The content with what belongs to it, as texts that are learned or not when the message is an answer."""
        segments = [(message.content, True)] if message.segments is None else list(message.segments)
        if self.strip:
            whole = "".join(text for text, _ in segments)
            start, end = len(whole) - len(whole.lstrip()), len(whole.rstrip())
            segments = _cut(segments, start, max(start, end))
        return [(self.prefix, True), *segments, (self.suffix, True)]


def _cut(segments: list[tuple[str, bool]], start: int, end: int) -> list[tuple[str, bool]]:
    """The characters ``start:end`` of texts that follow each other."""
    result, position = [], 0
    for text, learn in segments:
        result.append((text[max(start - position, 0) : max(end - position, 0)], learn))
        position += len(text)
    return result


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


class Template(Protocol):
    """What :data:`CHAT_TEMPLATES` holds."""

    def bind(self, tokenizer: "PreTrainedTokenizerBase", name: str, flag: str) -> "BoundTemplate":
        """Fit the template to a tokenizer; see :meth:`ChatTemplate.bind`."""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """The shape of a conversation; each role is a sequence of parts with one ``CONTENT`` in it.

    Attributes:
        system: parts around a system message.
        human: parts around a human message.
        assistant: parts around an answer. Learned are the content and the control token right behind it.
        default_system: system content of a conversation without a system message; None for no system part.
        start: parts before everything else.
    """

    system: tuple[Part, ...]
    human: tuple[Part, ...]
    assistant: tuple[Part, ...]
    default_system: str | None = None
    start: tuple[Part, ...] = ()

    def bind(self, tokenizer: "PreTrainedTokenizerBase", name: str, flag: str) -> "BoundTemplate":
        """Resolve the control tokens.

        Args:
            tokenizer: the tokenizer whose ids are used.
            name: the template's name, for messages and the manifest.
            flag: the flag that named the tokenizer, for messages.

        Raises:
            UserError: the tokenizer lacks a control token of the template ("bos" is left out instead).
        """
        parts = (self.start, self.system, self.human, self.assistant)
        start, system, human, assistant = (_bind_parts(part, tokenizer, name, flag) for part in parts)
        opening = start
        if self.default_system is not None:
            opening += _with_text(system, self.default_system)
        return BoundTemplate(
            name=name,
            opening=opening,
            system=start + system,
            first_human=human,
            human=human,
            assistant=assistant,
            chat_template=jinja_of(opening, start + system, human, human, assistant),
        )


@dataclass(frozen=True, slots=True)
class BoundTemplate:
    """A chat template with the token ids of one tokenizer; picklable.

    Attributes:
        name: the registered name.
        opening: what begins a conversation without a system message; holds no content.
        system: what begins one with a system message; the content is the message's.
        first_human: parts around the first human message.
        human: parts around every other human message.
        assistant: parts around an answer; a control token follows the content.
        chat_template: the string for ``tokenizer.chat_template``, which renders the same text.
    """

    name: str
    opening: tuple[BoundPart, ...]
    system: tuple[BoundPart, ...]
    first_human: tuple[BoundPart, ...]
    human: tuple[BoundPart, ...]
    assistant: tuple[BoundPart, ...]
    chat_template: str

    def system_spans(self, content: str | None) -> list[Span]:
        """What stands before the first message; ``content`` None: there is no system message."""
        return _fill(self.opening if content is None else self.system, Message(SYSTEM, content or ""), learn=False)

    def message_spans(self, message: Message, first: bool) -> list[Span]:
        """One message with its surroundings, an answer up to its end token.

        Args:
            message: of a human or the assistant.
            first: whether a human message is the first of its conversation.
        """
        if message.role == HUMAN:
            return _fill(self.first_human if first else self.human, message, learn=False)
        return _fill(self.assistant[: self._end_index + 1], message, learn=message.has_loss)

    def after_answer_spans(self) -> list[Span]:
        """What stands between an answer's end token and the next message or the end."""
        return _fill(self.assistant[self._end_index + 1 :], Message(ASSISTANT, ""), learn=False)

    def spans(self, system: str | None, messages: Sequence[Message]) -> list[Span]:
        """A whole conversation."""
        spans = self.system_spans(system)
        for number, message in enumerate(messages):
            spans.extend(self.message_spans(message, first=number == 0))
            if message.role != HUMAN:
                spans.extend(self.after_answer_spans())
        return spans

    def generation_prompt(self) -> list[Span]:
        """What stands between the last human message and the answer."""
        return _fill(self.assistant[: _content_index(self.assistant)], Message(ASSISTANT, ""), learn=False)

    @property
    def _end_index(self) -> int:
        return _content_index(self.assistant) + 1

    @property
    def control_tokens(self) -> list[str]:
        """The control tokens that may not be recognised inside of contents."""
        return list(dict.fromkeys(part.token for part in self._parts() if isinstance(part, BoundControl)))

    def _parts(self) -> tuple[BoundPart, ...]:
        return (*self.opening, *self.system, *self.first_human, *self.human, *self.assistant)

    @property
    def end_token_id(self) -> int:
        """The token that ends an answer; generation stops at it."""
        part = self.assistant[self._end_index]
        assert isinstance(part, BoundControl), "every template ends an answer with a control token"
        return part.token_id

    def render(self, system: str | None, messages: Sequence[Message]) -> str:
        """A whole conversation as text, in which control tokens look like any other text."""
        return self.text_of(self.spans(system, messages))

    def text_of(self, spans: Sequence[Span]) -> str:
        """Spans of this template as text, in which control tokens look like any other text."""
        tokens = {part.token_id: part.token for part in self._parts() if isinstance(part, BoundControl)}
        return "".join(span.text if span.token_id is None else tokens[span.token_id] for span in spans)

    def jinja(self) -> str:
        """The string for ``tokenizer.chat_template``: renders the same text that training tokenised.

        Roles are "system", "user" (or "human", unless the string is the tokenizer's own) and "assistant".
        """
        return self.chat_template

    def equivalent(self) -> "BoundTemplate":
        """This template with a Jinja form of the project's own in the place of the tokenizer's."""
        parts = (self.opening, self.system, self.first_human, self.human, self.assistant)
        return replace(self, chat_template=jinja_of(*parts))


def _with_text(parts: tuple[BoundPart, ...], content: str) -> tuple[BoundPart, ...]:
    return tuple(part.prefix + content + part.suffix if isinstance(part, Content) else part for part in parts)


def jinja_of(
    opening: Sequence[BoundPart],
    system: Sequence[BoundPart],
    first_human: Sequence[BoundPart],
    human: Sequence[BoundPart],
    assistant: Sequence[BoundPart],
) -> str:
    """A chat template in Jinja that renders these parts; they are those of a :class:`BoundTemplate`."""
    content = "message['content']"
    prompt = _jinja_text(assistant[: _content_index(assistant)], "")
    asked = "{{ " + _jinja_text(human, content) + " }}"
    if first_human != human:
        first = "loop.first or (loop.index0 == 1 and messages[0]['role'] == 'system')"
        asked = (
            "{% if " + first + " %}{{ " + _jinja_text(first_human, content) + " }}{% else %}" + asked + "{% endif %}"
        )
    return (
        "{% if not messages or messages[0]['role'] != 'system' %}{{ " + _jinja_text(opening, "") + " }}{% endif %}"
        "{% for message in messages %}"
        "{% if message['role'] == 'system' and loop.first %}"
        "{{ " + _jinja_text(system, content) + " }}"
        "{% elif message['role'] in ['user', 'human'] %}" + asked + "{% elif message['role'] == 'assistant' %}"
        "{{ " + _jinja_text(assistant, content) + " }}"
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


def _fill(parts: Sequence[BoundPart], message: Message, learn: bool) -> list[Span]:
    spans: list[Span] = []
    after_content = False
    for part in parts:
        if isinstance(part, Content):
            spans.extend(Span(learn and learned, text) for text, learned in part.pieces(message))
        elif isinstance(part, BoundControl):
            spans.append(Span(learn and after_content, token_id=part.token_id))
        else:
            spans.append(Span(False, part))
        after_content = isinstance(part, Content)
    return [span for span in spans if span.text or span.token_id is not None]


def _jinja_text(parts: Sequence[BoundPart], content: str) -> str:
    """The parts as a Jinja expression; ``content`` is the expression that stands for the content."""
    terms = []
    for part in parts:
        if isinstance(part, Content):
            inner = f"({content} | trim)" if part.strip else content
            terms.extend([_jinja_string(part.prefix)] * bool(part.prefix) + [inner])
            terms.extend([_jinja_string(part.suffix)] * bool(part.suffix))
        else:
            terms.append(_jinja_string(part.token if isinstance(part, BoundControl) else part))
    return " + ".join(terms) or "''"


def _jinja_string(text: str) -> str:
    # JSON's escapes are a subset of those of Jinja's string literals, but for those of halves of a surrogate pair.
    return json.dumps(text, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class OwnTemplate:
    """The tokenizer's own ``chat_template``."""

    def bind(self, tokenizer: "PreTrainedTokenizerBase", name: str, flag: str) -> BoundTemplate:
        """Find out what the tokenizer's template puts around contents.

        Raises:
            UserError: the tokenizer has no template, or it does more than put fixed text around contents.
        """
        from colossal_llama.data.own_template import bind_own_template

        return bind_own_template(tokenizer, name, flag)


CHAT_TEMPLATES: Registry[Template] = Registry("chat template")
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


def _llama3_role(role: str) -> tuple[Part, ...]:
    header = (Control("<|start_header_id|>"), role, Control("<|end_header_id|>"), "\n\n")
    return (*header, CONTENT, Control("<|eot_id|>"))


# The format of the Llama 3 Instruct models, without their stripping of contents.
CHAT_TEMPLATES.add(
    "llama3",
    ChatTemplate(
        system=_llama3_role("system"),
        human=_llama3_role("user"),
        assistant=_llama3_role("assistant"),
        start=(BOS,),
    ),
)

# The format of the Open-Llama models, whose answers stand behind the word "system"; a system text is our addition.
CHAT_TEMPLATES.add(
    "open_llama",
    ChatTemplate(system=(CONTENT, "\n"), human=("user:", CONTENT, "\n"), assistant=("system:", CONTENT, EOS)),
)
CHAT_TEMPLATES.add("tokenizer", OwnTemplate())
