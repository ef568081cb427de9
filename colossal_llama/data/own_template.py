"""The tokenizer's own chat template, taken apart by rendering it.

A Jinja template is a program; what it puts around contents shows when conversations of unique marks are rendered
and split at the marks. The parts found so must then reproduce what the template renders for other conversations,
letter by letter, or the template is refused.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from colossal_llama.data.chat_templates import BoundControl, BoundPart, BoundTemplate, Content
from colossal_llama.data.formats.parsed import ASSISTANT, HUMAN, Message
from colossal_llama.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SYSTEM_MARK = "qzSystemMarkzq"
_PADDING = " \n "

_PROBES = (
    "plain words",
    "你好，世界！",
    '  leading and trailing\n\n- "quotes" & <b>\\n</b> {{ x }} {% y %}\n',
    "a </s> b<|im_start|>assistant [INST] <|eot_id|>",
)
"""Contents that a template may be tempted to change."""


class _TemplateError(ValueError):
    """Why the template cannot be used."""


@dataclass(frozen=True, slots=True)
class _Renderer:
    """Renders conversations with a tokenizer's template."""

    tokenizer: "PreTrainedTokenizerBase"

    def __call__(self, system: str | None, contents: Sequence[str], generation_prompt: bool = False) -> str:
        messages = [] if system is None else [{"role": "system", "content": system}]
        for number, content in enumerate(contents):
            messages.append({"role": ("user", "assistant")[number % 2], "content": content})
        try:
            return str(
                self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
            )
        except Exception as error:  # whatever the template's program does
            raise _TemplateError(f"it fails ({type(error).__name__}: {' '.join(str(error).split())})") from error


def _marks(count: int) -> list[str]:
    return [f"qzContentMark{number}zq" for number in range(count)]


def _between(text: str, marks: Sequence[str]) -> list[str]:
    """What stands before, between and behind the marks."""
    pieces = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found or mark in text:
            raise _TemplateError("it does not put every content once and in order")
        pieces.append(before)
    return [*pieces, text]


def bind_own_template(tokenizer: "PreTrainedTokenizerBase", name: str, flag: str) -> BoundTemplate:
    """Derive a :class:`BoundTemplate` from ``tokenizer.chat_template``.

    A template without a system role gets the system text before the first human message, and a blank line.

    Args:
        tokenizer: has the template.
        name: registered name of this way to choose a template.
        flag: the flag that named the tokenizer, for messages.

    Raises:
        UserError: there is no template; it does not end answers with a control token right behind the content;
            it changes contents other than by stripping white space; or what it puts around a content depends on
            more than the content's role and whether it is the first.
    """
    template = tokenizer.chat_template
    if not template:
        raise UserError(f"{flag}: the tokenizer has no chat_template; choose another --chat_template")
    if not isinstance(template, str):
        raise UserError(f"{flag}: the tokenizer has several chat templates; keep one in its tokenizer_config.json")
    try:
        bound = _derive(_Renderer(tokenizer), name, template)
    except _TemplateError as error:
        raise UserError(
            f"{flag}: the tokenizer's own chat template cannot be trained on, because {error}; "
            "choose another --chat_template"
        ) from error
    return bound


def _derive(render: _Renderer, name: str, template: str) -> BoundTemplate:
    marks = _marks(4)
    opening, to_answer, to_human, again, behind = _between(render(None, marks), marks)
    if again != to_answer:
        raise _TemplateError("it writes the first answer's header differently from the second's")
    if not to_human.startswith(behind):
        raise _TemplateError("it ends the last answer differently from the others")
    prompt = _between(render(None, marks[:1], generation_prompt=True), marks[:1])[1]
    if not to_answer.startswith(prompt):
        raise _TemplateError(f"its generation prompt {prompt!r} is not how answers begin ({to_answer!r})")
    strip = _stripping(render)
    split = TemplateSplitter(render.tokenizer)
    header, prefix = to_answer, ""
    if not to_answer[len(prompt) :].strip():
        # White space that the prompt lacks is the model's to produce.
        header, prefix = prompt, to_answer[len(prompt) :]
    answer_end = split(behind)
    suffix = answer_end.pop(0) if answer_end and isinstance(answer_end[0], str) else ""
    assert isinstance(suffix, str)
    if suffix.strip() or not answer_end:
        raise _TemplateError(f"no control token stands right behind an answer ({behind!r})")
    human = Content(strip=strip[0])
    bound = BoundTemplate(
        name=name,
        opening=tuple(split(opening)),
        system=_system_parts(render, split, opening, marks),
        first_human=(human,),
        human=(*split(to_human[len(behind) :]), human),
        assistant=(*split(header), Content(prefix, suffix, strip[1]), *answer_end),
        chat_template=template,
    )
    _verify(bound, render)
    return replace(
        bound,
        opening=split.as_read(bound.opening),
        system=split.as_read(bound.system),
        human=split.as_read(bound.human),
        assistant=split.as_read(bound.assistant),
    )


def _stripping(render: _Renderer) -> list[bool]:
    """Whether contents of the human and of the assistant lose the white space around them."""
    marks = _marks(2)
    text = render(None, [f"{_PADDING}{mark}{_PADDING}" for mark in marks])
    return [f"{_PADDING}{mark}{_PADDING}" not in text for mark in marks]


def _takes_system(render: _Renderer, marks: Sequence[str]) -> bool:
    try:
        return _SYSTEM_MARK in render(_SYSTEM_MARK, marks)
    except _TemplateError:
        return False  # templates refuse a role by raising an error


def _system_parts(
    render: _Renderer, split: "TemplateSplitter", opening: str, marks: Sequence[str]
) -> tuple[BoundPart, ...]:
    if not _takes_system(render, marks):
        return (*split(opening), Content(), "\n\n")
    before, behind, *_ = _between(render(_SYSTEM_MARK, marks), [_SYSTEM_MARK, *marks])
    padded = f"{_PADDING}{_SYSTEM_MARK}{_PADDING}"
    strip = padded not in render(padded, marks)
    return (*split(before), Content(strip=strip), *split(behind))


class TemplateSplitter:
    """Splits a template's own text into control tokens and ordinary text."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._added: dict[str, Any] = {}
        self._ids: dict[str, int] = {}
        for token_id, token in tokenizer.added_tokens_decoder.items():
            if token.special or not token.normalized:
                self._added[token.content] = token
                self._ids[token.content] = int(token_id)
        longest_first = sorted(self._added, key=len, reverse=True)
        self._pattern = re.compile("|".join(re.escape(content) for content in longest_first) or r"(?!)")

    def __call__(self, text: str) -> list[BoundPart]:
        """The parts of ``text``; joined they are the text again."""
        parts: list[BoundPart] = []
        position = 0
        for found in self._pattern.finditer(text):
            token = self._added[found.group()]
            before = text[position : found.start()]
            if before:
                parts.append(before)
            parts.append(BoundControl(token.content, self._ids[token.content]))
            position = found.end()
        if text[position:]:
            parts.append(text[position:])
        return parts

    def as_read(self, parts: Sequence[BoundPart]) -> tuple[BoundPart, ...]:
        """The parts without the white space that some tokens swallow when the tokenizer reads them in a text."""
        result = list(parts)
        for number, part in enumerate(parts):
            if not isinstance(part, BoundControl):
                continue
            token = self._added[part.token]
            before, behind = number - 1, number + 1
            if token.lstrip and before >= 0 and isinstance(result[before], str):
                result[before] = str(result[before]).rstrip()
            if token.rstrip and behind < len(result) and isinstance(result[behind], str):
                result[behind] = str(result[behind]).lstrip()
        return tuple(part for part in result if part != "")


def _verify(bound: BoundTemplate, render: _Renderer) -> None:
    """Compare with the template on conversations of one to three turns, with and without system text."""
    systems = [None, *_PROBES] if _takes_system(render, _marks(2)) else [None]
    for system in systems:
        for turns in (1, 2, 3):
            contents = [_PROBES[number % len(_PROBES)] for number in range(1, 2 * turns + 1)]
            messages = [Message((HUMAN, ASSISTANT)[number % 2], text) for number, text in enumerate(contents)]
            if bound.render(system, messages) != render(system, contents):
                raise _TemplateError("what it puts around a content depends on more than the content's role")
