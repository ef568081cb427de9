"""Many prompts out of a file, and their answers into another."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colossal_llama.atomic import atomic_file
from colossal_llama.data.formats.conversations import parse_dialogue
from colossal_llama.data.formats.parsed import ASSISTANT, HUMAN
from colossal_llama.data.readers import Record, read_records
from colossal_llama.errors import UserError
from colossal_llama.generation.batches import Continuation
from colossal_llama.generation.prompts import NO_TEMPLATE, PromptEncoder, check_room
from colossal_llama.json_records import json_type, json_value

TEXT_FIELDS = ("prompt", "input_txt")
MESSAGES_FIELD = "messages"
FIELDS = (*TEXT_FIELDS, MESSAGES_FIELD)

CHAT_ROLES = {HUMAN: "user", ASSISTANT: "assistant"}
"""What chat templates call the roles of a conversation."""


@dataclass(frozen=True)
class FilePrompt:
    """One prompt of a file.

    Attributes:
        where: ``file:line``, for messages.
        record: the fields of its line, which its answer is written beside.
        text: a question or the beginning of a text; None for a conversation.
        messages: a conversation whose last message the model is to answer, as chat templates take it.
    """

    where: str
    record: dict[str, Any]
    text: str | None
    messages: list[dict[str, str]]


def read_prompts(path: Path, flag: str = "--input_file") -> list[FilePrompt]:
    """All prompts of a file, in order.

    A ``.txt`` file has one prompt a line; empty lines are none. Any other kind of file that the preparation of data
    reads (jsonl, json, parquet, compressed or not) has records with exactly one of :data:`FIELDS`.

    Raises:
        UserError: there is no such file, no prompt in it, or a record that is none.
    """
    if not path.is_file():
        raise UserError(f"{flag} {path}: no such file")
    prompts = _read_lines(path) if path.suffix == ".txt" else [_parse(record) for record in read_records(path, flag)]
    if not prompts:
        raise UserError(f"{flag} {path}: no prompt in it")
    return prompts


def _read_lines(path: Path) -> list[FilePrompt]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); convert it to UTF-8") from error
    texts = [(number, line.rstrip("\r")) for number, line in enumerate(lines, start=1)]
    return [FilePrompt(f"{path}:{number}", {"prompt": text}, text, []) for number, text in texts if text.strip()]


def _parse(record: Record) -> FilePrompt:
    fields = [name for name in FIELDS if record.value.get(name) is not None]
    if len(fields) != 1:
        found = " and ".join(fields) or "none"
        raise UserError(f"{record.where}: expected exactly one of the fields {', '.join(FIELDS)}, found {found}")
    if fields[0] == MESSAGES_FIELD:
        return FilePrompt(record.where, record.value, None, question_messages(record))
    text = record.value[fields[0]]
    if not isinstance(text, str):
        raise UserError(f"{record.where}: '{fields[0]}' must be a string, found {json_type(text)}")
    return FilePrompt(record.where, record.value, text, [])


def question_messages(record: Record) -> list[dict[str, str]]:
    """The messages of a record that ends with a human's, as chat templates take them.

    Raises:
        UserError: they are no conversation, or end with an answer.
    """
    system, messages = parse_dialogue(record)
    if not messages or messages[-1].role != HUMAN:
        raise UserError(f"{record.where}: the last message must be the user's, which the model is to answer")
    start = [] if system is None else [{"role": "system", "content": system}]
    return start + [{"role": CHAT_ROLES[message.role], "content": message.content} for message in messages]


def encode_prompts(
    encoder: PromptEncoder, prompts: Iterable[FilePrompt], prompt_style: str, max_new_tokens: int, context: int | None
) -> list[list[int]]:
    """Token ids of each prompt; all are checked before anything is generated.

    Raises:
        UserError: a prompt does not fit the context or the style; the message starts with its ``file:line``.
    """
    encoded = []
    for prompt in prompts:
        ids = _encode(encoder, prompt, prompt_style)
        check_room(len(ids), max_new_tokens, context, prompt.where)
        encoded.append(ids)
    return encoded


def _encode(encoder: PromptEncoder, prompt: FilePrompt, prompt_style: str) -> list[int]:
    if prompt.text is None and (prompt_style != "sft" or not encoder.has_template):
        raise UserError(
            f"{prompt.where}: a conversation needs --prompt_style sft and a model with a chat template; give texts "
            "with --prompt_style pretrained to others"
        )
    if prompt_style == "sft" and not encoder.has_template:
        raise UserError(f"--prompt_style sft: {NO_TEMPLATE}--prompt_style pretrained")
    try:
        if prompt.text is not None:
            return encoder.prompt(prompt.text, prompt_style)
        return encoder.chat_prompt(prompt.messages)
    except UserError as error:
        raise UserError(f"{prompt.where}: {error}") from error


def result_lines(prompts: Sequence[FilePrompt], answers: Sequence[Continuation]) -> list[str]:
    """One JSON object per prompt: its own fields, then ``generated_text``, ``generated_tokens``, ``finish_reason``.

    ``finish_reason`` is "stop" where the model ended its answer, "length" where ``max_new_tokens`` cut it.
    """
    lines = []
    for prompt, answer in zip(prompts, answers, strict=True):
        generated = {
            "generated_text": answer.text,
            "generated_tokens": answer.tokens,
            "finish_reason": "stop" if answer.finished else "length",
        }
        record = json_value(prompt.record) | generated
        lines.append(json.dumps(record, ensure_ascii=False, default=str, allow_nan=False))
    return lines


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines of UTF-8 text; the file is complete or absent."""
    with atomic_file(path) as file:
        file.writelines(f"{line}\n" for line in lines)
