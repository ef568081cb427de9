"""Bits per byte of texts against bare forward passes over the same batches, in the same run.

    python benchmarks/evaluate_speed.py --model FOLDER --held_out FILE... [--rounds 3] [--batch_tokens 4096]

The evaluation is all of it from texts to intervals: cutting, tokenising, batching by length, forward, loss, sums and
the bootstrap. The bare passes find their padded batches ready and do nothing but ``model(input_ids)``. Rounds of both
alternate, so that what else the machine does hits both; processor time, which other programs hardly touch, is compared
too. Tokens are those of the batches, padding included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def seconds(run: Callable[[], Any], device: Any) -> tuple[float, float]:
    """Time and processor time of one call, until the device has finished."""
    import torch

    started, processor = time.perf_counter(), time.process_time()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started, time.process_time() - processor


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
    rounds = [(seconds(bare, model.device), seconds(evaluate, model.device)) for _ in range(arguments.rounds)]
    tokens = sum(batch.numel() for batch in batches)
    bare_seconds, bare_processor, all_seconds, all_processor = (
        statistics.median(one[place][kind] for one in rounds) for place in (0, 1) for kind in (0, 1)
    )
    ratios = [one[0][0] / one[1][0] for one in rounds]
    return {
        "texts": len(pieces),
        "tokens": tokens,
        "padding": 1 - sum(map(len, encoded)) / tokens,
        "evaluation_tokens_per_second": tokens / all_seconds,
        "bare_tokens_per_second": tokens / bare_seconds,
        "ratio": bare_seconds / all_seconds,
        "lowest_ratio": min(ratios),
        "highest_ratio": max(ratios),
        "processor_time_ratio": bare_processor / all_processor,
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
