"""Tokens per second that one process gets out of a prepared dataset, as the training loop asks for them.

    python benchmarks/loader_speed.py --dataset FOLDER/arrow [--batch 8] [--tokens 20000000]

Rows in the sampler's order through StepLoader and PackedCollator, with and without the position ids that keep the
documents of a row apart. Forward and backward are left out; the mask itself is made on the device.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from colossal_llama.data.collator import PackedCollator
from colossal_llama.data.dataset import PackedDataset
from colossal_llama.data.loader import StepLoader
from colossal_llama.data.sampler import BucketSampler
from colossal_llama.schedule import TrainSchedule


def tokens_per_second(rows: PackedDataset, max_length: int, batch: int, tokens: int, document_mask: bool) -> float:
    """Tokens of batches (padding of packed rows included) a second, over ``tokens`` of them or one epoch."""
    collate = PackedCollator(0, max_length, "max_length", document_mask=document_mask)
    schedule = TrainSchedule(len(rows), 1, batch, 1, num_epochs=1)
    loader = StepLoader(rows, BucketSampler(rows.bucket_sizes, 0), collate, schedule, 0)
    seen = 0
    started = time.perf_counter()
    for loaded in loader.epoch(0):
        seen += loaded.micro_batches[0]["input_ids"].numel()
        if seen >= tokens:
            break
    return seen / (time.perf_counter() - started)


def main() -> None:
    """Measure, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="arrow folder of a preparation")
    parser.add_argument("--max_length", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=8, help="rows per micro-batch")
    parser.add_argument("--tokens", type=int, default=20_000_000, help="stop after so many")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    rows = PackedDataset([arguments.dataset])
    figures = {
        name: tokens_per_second(rows, arguments.max_length, arguments.batch, arguments.tokens, document_mask)
        for name, document_mask in (("documents of a row are one text", False), ("documents kept apart", True))
    }
    print("| | tokens/s |\n|---|---:|")
    for name, rate in figures.items():
        print(f"| {name} | {rate:,.0f} |")
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
