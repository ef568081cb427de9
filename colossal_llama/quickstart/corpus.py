"""Cuts the texts into what each stage learns from and what no stage ever sees."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

CHINESE_CYCLE, ENGLISH_CYCLE = 20, 10
"""Of every so many documents, in order, one is held out, and the middle and the last one are for validation."""

CONTINUE_PROMPT = "请接着往下写：\n"
EXPLAIN_PROMPT = "Go on with this explanation:\n"


@dataclass(frozen=True)
class Corpus:
    """Texts of the quickstart; validation and held-out texts come from documents that nothing else is taken from.

    Attributes:
        chinese, english: passages to learn from, in a fixed random order.
        measured: language to the passages to measure on.
    """

    chinese: list[str]
    english: list[str]
    measured: dict[str, list[str]]


def build_corpus(
    chapters: Sequence[str],
    documents: Sequence[str],
    passage_characters: tuple[int, int],
    measured_characters: tuple[int, int],
    split: str = "held_out",
) -> Corpus:
    """Split documents into passages and set those apart that are measured on.

    Args:
        chapters: Chinese documents.
        documents: English documents.
        passage_characters: longest passage in characters, Chinese and English.
        measured_characters: characters to measure on at most, Chinese and English; spread evenly over the split's
            documents.
        split: ``held_out``, whose figures are reported, or ``validation``, for choosing a plan's numbers.
    """
    zh_size, en_size = passage_characters
    zh_train, zh_measured = _set_apart(chapters, CHINESE_CYCLE, split)
    en_train, en_measured = _set_apart(documents, ENGLISH_CYCLE, split)
    return Corpus(
        chinese=_shuffled(all_passages(zh_train, zh_size)),
        english=_shuffled(all_passages(en_train, en_size)),
        measured={
            "chinese": _even_sample(all_passages(zh_measured, zh_size), measured_characters[0]),
            "english": _even_sample(all_passages(en_measured, en_size), measured_characters[1]),
        },
    )


def _set_apart(documents: Sequence[str], cycle: int, split: str) -> tuple[list[str], list[str]]:
    """The documents to learn from and those of ``split``; the other split's documents are in neither."""
    places = {"held_out": {cycle // 4}, "validation": {cycle // 2 - 1, cycle - 1}}
    apart = places["held_out"] | places["validation"]
    train = [text for number, text in enumerate(documents) if number % cycle not in apart]
    return train, [text for number, text in enumerate(documents) if number % cycle in places[split]]


def all_passages(documents: Iterable[str], characters: int) -> list[str]:
    """The :func:`passages` of all documents."""
    return [passage for text in documents for passage in passages(text, characters)]


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


def write_measured_texts(path: Path, texts: dict[str, list[str]]) -> None:
    """Write the texts to measure on as records, each language a category."""
    records = (
        {"source": "", "target": text, "category": language}
        for language, passages in texts.items()
        for text in passages
    )
    _write_records(path.parent, records, path.name)


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


def _write_records(folder: Path, records: Iterable[dict], name: str = "records.jsonl") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
