"""Cuts the texts into what each stage learns from and what no stage ever sees."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

HELD_OUT_EVERY = 20
"""Every 20th chapter and every 10th English document (see below) is held out."""

ENGLISH_HELD_OUT_EVERY = 10

CONTINUE_PROMPT = "请接着往下写：\n"
EXPLAIN_PROMPT = "Go on with this explanation:\n"


@dataclass(frozen=True)
class Corpus:
    """Texts of the quickstart; held-out texts come from documents that nothing else is taken from.

    Attributes:
        chinese, english: passages to learn from, in a fixed random order.
        chinese_held_out, english_held_out: passages to measure on.
    """

    chinese: list[str]
    english: list[str]
    chinese_held_out: list[str]
    english_held_out: list[str]


def build_corpus(
    chapters: Sequence[str], documents: Sequence[str], passage_characters: tuple[int, int], held_out: tuple[int, int]
) -> Corpus:
    """Split documents into passages and set the held-out ones apart.

    Args:
        chapters: Chinese documents.
        documents: English documents.
        passage_characters: longest passage in characters, Chinese and English.
        held_out: characters to measure on at most, Chinese and English; spread evenly over the held-out documents.
    """
    zh_out = [text for number, text in enumerate(chapters) if number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1]
    zh_in = [text for number, text in enumerate(chapters) if number % HELD_OUT_EVERY != HELD_OUT_EVERY - 1]
    en_out = documents[ENGLISH_HELD_OUT_EVERY - 1 :: ENGLISH_HELD_OUT_EVERY]
    en_in = [text for number, text in enumerate(documents) if (number + 1) % ENGLISH_HELD_OUT_EVERY]
    zh_size, en_size = passage_characters
    return Corpus(
        chinese=_shuffled([passage for text in zh_in for passage in passages(text, zh_size)]),
        english=_shuffled([passage for text in en_in for passage in passages(text, en_size)]),
        chinese_held_out=_even_sample([p for text in zh_out for p in passages(text, zh_size)], held_out[0]),
        english_held_out=_even_sample([p for text in en_out for p in passages(text, en_size)], held_out[1]),
    )


def passages(text: str, characters: int) -> list[str]:
    """Consecutive passages of whole lines, at most ``characters`` long; longer lines are cut."""
    result: list[str] = []
    current = ""
    for line in text.splitlines(keepends=True):
        for start in range(0, len(line), characters):
            piece = line[start : start + characters]
            if len(current) + len(piece) > characters:
                result.append(current)
                current = ""
            current += piece
    result.append(current)
    return [passage.strip() for passage in result if passage.strip()]


def take(texts: Sequence[str], start: int, characters: int) -> list[str]:
    """Texts from index ``start`` on, until ``characters`` are reached or the texts end."""
    taken: list[str] = []
    total = 0
    for text in texts[start:]:
        if total >= characters:
            break
        taken.append(text)
        total += len(text)
    return taken


def _shuffled(texts: list[str]) -> list[str]:
    """A fixed random order: the few passages that a stage takes then come from all documents."""
    random.Random(0).shuffle(texts)
    return texts


def _even_sample(texts: Sequence[str], characters: int) -> list[str]:
    total = sum(len(text) for text in texts)
    step = max(1, total // characters)
    return take(list(texts[::step]), 0, characters)


def write_pretraining_texts(folder: Path, texts: Iterable[str], category: str) -> None:
    """Write texts as records that prepare_pretrain_dataset.py reads, loss on everything."""
    _write_records(folder, ({"source": "", "target": text, "category": category} for text in texts))


def write_continuation_pairs(folder: Path, texts: Iterable[str], category: str) -> None:
    """Write texts as source and target halves: loss on the second half only."""
    records = (
        {"source": text[: len(text) // 2], "target": text[len(text) // 2 :], "category": category} for text in texts
    )
    _write_records(folder, records)


def write_conversations(folder: Path, texts: Iterable[str], prompt: str) -> None:
    """Write texts as conversations: the first half is asked, the second is the answer."""
    _write_records(
        folder,
        (
            {
                "messages": [
                    {"from": "human", "content": prompt + text[: len(text) // 2]},
                    {"from": "assistant", "content": text[len(text) // 2 :]},
                ]
            }
            for text in texts
        ),
    )


def _write_records(folder: Path, records: Iterable[dict]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "records.jsonl").open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
