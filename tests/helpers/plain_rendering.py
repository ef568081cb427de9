"""What each chat template should make of a conversation, written down plainly and apart from the program.

Nothing here uses the program's templates or tokenization: a rendering is a list of pieces, and a tokenizer's ids are
turned back into bytes by its vocabulary alone, so that the two can be compared byte by byte.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

DEFAULT_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
CHATML = ["<|im_start|>", "<|im_end|>"]
LLAMA3 = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]

OWN_TEMPLATES = {
    "llama-2": (
        "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
        "{% set head = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
        "{% else %}{% set rest = messages %}{% set head = '' %}{% endif %}"
        "{% for m in rest %}{% if m['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + (head if loop.first else '') + m['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "llama-3, stripping": (
        "{{ bos_token }}{% for m in messages %}"
        "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + (m['content'] | trim) + '<|eot_id|>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "chatml with a default system text": (
        "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
        "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "chatml with newlines between": (
        "{% for m in messages %}{{ '' if loop.first else '\n' }}"
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\n<|im_start|>assistant\n' }}{% endif %}"
    ),
    "no system role, plain headers": (
        "{{ bos_token }}{% for m in messages %}"
        "{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'] + '\n' }}"
        "{% else %}{{ 'ASSISTANT:' + m['content'] + eos_token + '\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    ),
}
"""Jinja templates of tokenizers, as ``--chat_template tokenizer`` meets them."""


@dataclass(frozen=True)
class Turn:
    """A question, the parts of its answer with whether each is learned, and whether anything of it is."""

    question: str
    answer: tuple[tuple[str, bool], ...]
    has_loss: bool = True

    @property
    def learned(self) -> str:
        """The text with loss."""
        return "".join(text for text, learn in self.answer if learn)


@dataclass(frozen=True)
class Piece:
    """A stretch of text, or a control token."""

    text: str
    learn: bool = False
    control: bool = False


Pieces = list[Piece]


def render(name: str, system: str | None, turns: Sequence[Turn], bos: str | None, eos: str) -> Pieces:
    """A conversation in the template ``name``."""
    return TEMPLATES[name](system, turns, Piece(bos, control=True) if bos else Piece(""), eos)


def _answer(turn: Turn, end: str, before: str = "", behind: str = "", strip: bool = False) -> Pieces:
    letters = [(letter, learn and turn.has_loss) for text, learn in turn.answer for letter in text]
    while strip and letters and letters[0][0].isspace():
        del letters[0]
    while strip and letters and letters[-1][0].isspace():
        del letters[-1]
    inside = [Piece(letter, learn) for letter, learn in letters]
    return [Piece(before, turn.has_loss), *inside, Piece(behind, turn.has_loss), Piece(end, turn.has_loss, True)]


def _colossal(system: str | None, turns: Sequence[Turn], bos: Piece, eos: str) -> Pieces:
    pieces = [Piece((DEFAULT_SYSTEM if system is None else system) + "\n\n")]
    # Without BOS the space behind "Assistant:" is the model's to write.
    header, space = ("Assistant: ", "") if bos.text else ("Assistant:", " ")
    for turn in turns:
        pieces += [Piece("Human: "), bos, Piece(turn.question), Piece(eos, control=True)]
        pieces += [Piece(header), bos, *_answer(turn, eos, space)]
    return pieces


def _header(role: str) -> Pieces:
    return [Piece("<|im_start|>", control=True), Piece(f"{role}\n")]


def _chatml(
    system: str | None, turns: Sequence[Turn], default: str | None = None, between: str = "", behind: str = "\n"
) -> Pieces:
    end = Piece("<|im_end|>", control=True)
    pieces: Pieces = []
    if system is None:
        system = default
    if system is not None:
        pieces += [*_header("system"), Piece(system), end, Piece(behind)]
    for turn in turns:
        pieces += [Piece(between if pieces else ""), *_header("user"), Piece(turn.question), end, Piece(behind)]
        pieces += [Piece(between), *_header("assistant"), *_answer(turn, "<|im_end|>"), Piece(behind)]
    return pieces


def _llama3(system: str | None, turns: Sequence[Turn], bos: Piece, strip: bool = False) -> Pieces:
    def message(role: str, content: Pieces) -> Pieces:
        names = ("<|start_header_id|>", "<|end_header_id|>")
        return [Piece(names[0], control=True), Piece(role), Piece(names[1], control=True), Piece("\n\n"), *content]

    def given(text: str) -> Pieces:
        return [Piece(text.strip() if strip else text), Piece("<|eot_id|>", control=True)]

    pieces = [bos]
    if system is not None:
        pieces += message("system", given(system))
    for turn in turns:
        pieces += message("user", given(turn.question))
        pieces += message("assistant", _answer(turn, "<|eot_id|>", strip=strip))
    return pieces


def _open_llama(system: str | None, turns: Sequence[Turn], eos: str) -> Pieces:
    pieces = [] if system is None else [Piece(f"{system}\n")]
    for turn in turns:
        pieces += [Piece(f"user:{turn.question}\n"), Piece("system:"), *_answer(turn, eos)]
    return pieces


def _llama2(system: str | None, turns: Sequence[Turn], bos: Piece, eos: str) -> Pieces:
    head = "" if system is None else f"<<SYS>>\n{system}\n<</SYS>>\n\n"
    pieces: Pieces = []
    for turn in turns:
        pieces += [bos, Piece(f"[INST] {head}{turn.question} [/INST]"), *_answer(turn, eos, " ", " ")]
        head = ""
    return pieces


def _plain_headers(system: str | None, turns: Sequence[Turn], bos: Piece, eos: str) -> Pieces:
    pieces, head = [bos], "" if system is None else f"{system}\n\n"
    for turn in turns:
        pieces += [Piece(f"USER: {head}{turn.question}\n"), Piece("ASSISTANT:"), *_answer(turn, eos), Piece("\n")]
        head = ""
    return pieces


TEMPLATES: dict[str, Callable[[str | None, Sequence[Turn], Piece, str], Pieces]] = {
    "colossal_llama_2": _colossal,
    "colossal_llama_3": _colossal,
    "chatml": lambda system, turns, bos, eos: _chatml(system, turns),
    "llama3": lambda system, turns, bos, eos: _llama3(system, turns, bos),
    "open_llama": lambda system, turns, bos, eos: _open_llama(system, turns, eos),
    "llama-2": _llama2,
    "llama-3, stripping": lambda system, turns, bos, eos: _llama3(system, turns, bos, strip=True),
    "chatml with a default system text": lambda system, turns, bos, eos: _chatml(system, turns, "Be kind."),
    "chatml with newlines between": lambda system, turns, bos, eos: _chatml(system, turns, None, "\n", ""),
    "no system role, plain headers": _plain_headers,
}
"""Every template of the program, and the tokenizers' own of :data:`OWN_TEMPLATES`."""


def render_text(source: str, target: str, bos: str | None, eos: str) -> Pieces:
    """A pretraining text; without a source its BOS is learned too."""
    start = Piece(bos, not source, True) if bos else Piece("")
    return [start, Piece(source), Piece(target, True), Piece(eos, True, True)]


class Bytes:
    """The bytes of a tokenizer's tokens, by its vocabulary."""

    def __init__(self, tokenizer: Any) -> None:
        vocabulary = tokenizer.get_vocab()
        added = {token.content for token in tokenizer.added_tokens_decoder.values()}
        self.is_sentencepiece = "<0x0A>" in vocabulary
        self._added = {number for text, number in vocabulary.items() if text in added}
        letters = _byte_letters()
        self._bytes: dict[int, bytes] = {}
        for text, number in vocabulary.items():
            if text in added:
                self._bytes[number] = text.encode()
            elif self.is_sentencepiece:
                byte = re.fullmatch("<0x([0-9A-F]{2})>", text)
                self._bytes[number] = bytes([int(byte[1], 16)]) if byte else text.replace("▁", " ").encode()
            else:
                self._bytes[number] = bytes(letters[letter] for letter in text)
        single = {content[0] for content in self._bytes.values() if len(content) == 1}
        self.missing = set(range(256)) - single
        """Bytes that no token has alone: a text with one of them cannot be encoded."""

    def of(self, token: int) -> bytes:
        """The bytes of one token."""
        return self._bytes[token]

    def is_control(self, token: int) -> bool:
        """Whether it is an added token, which no text gives."""
        return token in self._added


def _byte_letters() -> dict[str, int]:
    """The letter that stands for each byte in byte-level vocabularies (GPT-2's encoder.json)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {chr(byte): byte for byte in shown}
    hidden = [byte for byte in range(256) if byte not in shown]
    return letters | {chr(256 + place): byte for place, byte in enumerate(hidden)}


def difference(
    pieces: Pieces,
    ids: Sequence[int],
    learned: Sequence[bool],
    table: Bytes,
    prefix: str = "never",
    bos_is_start: bool = False,
) -> str | None:
    """What is wrong with ids and their loss as a rendering of ``pieces``; None where nothing is.

    A control token must be one token. A token of text is learned if any of its bytes is. ``prefix`` says where the
    tokenizer puts a space before a text: "never", at the "start" of the sequence, or "always", behind control tokens.
    With ``bos_is_start`` what stands behind a first control token is the start still.
    """
    expected: list[tuple[int, bool]] = []  # bytes of text with their loss, and -1 with its own for each control token
    controls: list[str] = []
    at_start, in_text = True, False
    for piece in pieces:
        if not piece.text:
            continue
        if piece.control:
            controls.append(piece.text)
            expected.append((-1, piece.learn))
            in_text = False
        else:
            text = piece.text.replace("▁", " ") if table.is_sentencepiece else piece.text
            wants = prefix == "always" or (prefix == "start" and at_start and not text.startswith(" "))
            if not in_text and wants:
                expected.append((32, piece.learn))
            expected += [(byte, piece.learn) for byte in text.encode()]
            in_text = True
        at_start = at_start and bos_is_start and piece.control
    position = 0
    for number, (token, learn) in enumerate(zip(ids, learned, strict=True)):
        if table.is_control(token):
            if position >= len(expected) or expected[position][0] != -1:
                return f"token {number} is the control token {table.of(token)!r}, expected text"
            if controls[0].encode() != table.of(token):
                return f"token {number} is {table.of(token)!r}, expected {controls[0]!r}"
            wanted, length = expected[position][1], 1
            del controls[0]
        else:
            length = len(table.of(token))
            span = expected[position : position + length]
            if [byte for byte, _ in span] != list(table.of(token)):
                return f"token {number} is {table.of(token)!r}, expected {_shown(span)}"
            wanted = any(learn for _, learn in span)
        if learn != wanted:
            return f"token {number} {table.of(token)!r} is {'' if learn else 'not '}learned"
        position += length
    return None if position == len(expected) else f"{_shown(expected[position:])} is missing at the end"


def _shown(span: list[tuple[int, bool]]) -> str:
    return repr(b"".join(b"<control>" if byte < 0 else bytes([byte]) for byte, _ in span[:60]))
