"""Bits per byte of texts against bare forward passes over the same batches, in the same run.

    python benchmarks/evaluate_speed.py --model FOLDER --held_out FILE... [--rounds 3] [--batch_tokens 4096]

The evaluation is all of it from texts to intervals: cutting, tokenising, batching by length, forward, loss, sums and
the bootstrap. The bare passes find their padded batches ready and do nothing but ``model(input_ids)``. Rounds of both
alternate, so that what else the machine does hits both. Tokens are those of the batches, padding included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def seconds(run: Callable[[], Any], device: Any) -> float:
    """Time of one call, until the device has finished."""
    import torch

    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """The median times of both and what follows from them."""
    import torch

    from colossal_llama.evaluation.documents import Windows, figures_by_category, score_documents
    from colossal_llama.evaluation.measured_texts import read_held_out
    from colossal_llama.evaluation.perplexity import encode_texts, padded, plan_batches, split_text
    from colossal_llama.generation import choose_device, load_for_generation

    model, tokenizer = load_for_generation(Path(arguments.model), choose_device("cuda:0"), "--model")
    documents = read_held_out(arguments.held_out, "auto", None).documents
    windows = Windows(arguments.window_characters, arguments.batch_tokens)
    pieces = [piece for one in documents for piece in split_text(one.text, windows.characters)]
    encoded = encode_texts(tokenizer, pieces)
    batches = [padded(encoded, batch) for batch in plan_batches(encoded, tokens=windows.batch_tokens)]

    def evaluate() -> None:
        figures_by_category(score_documents(model, tokenizer, documents, windows), 1000, 42)

    def bare() -> None:
        with torch.inference_mode():
            for input_ids in batches:
                model(input_ids=input_ids.to(model.device), use_cache=False)

    bare()  # the first passes allocate
    times: dict[str, list[float]] = {"evaluation": [], "bare": []}
    for _ in range(arguments.rounds):
        times["bare"].append(seconds(bare, model.device))
        times["evaluation"].append(seconds(evaluate, model.device))
    tokens = sum(batch.numel() for batch in batches)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "texts": len(pieces),
        "tokens": tokens,
        "padding": 1 - sum(map(len, encoded)) / tokens,
        "evaluation_tokens_per_second": tokens / medians["evaluation"],
        "bare_tokens_per_second": tokens / medians["bare"],
        "ratio": medians["bare"] / medians["evaluation"],
        "lowest_ratio": min(one / two for one, two in zip(times["bare"], times["evaluation"], strict=True)),
    }


def main() -> None:
    """Measure, print the figures and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--held_out", required=True, nargs="+", help="texts, as evaluate.py takes them")
    parser.add_argument("--window_characters", type=int, default=1000)
    parser.add_argument("--batch_tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    figures = measure(arguments)
    for name, value in figures.items():
        print(f"{name}: {value:,.3f}")
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
