"""Data preparation against the tokenizer alone, in the same run: how much reading, packing and writing cost.

    python benchmarks/prepare_speed.py --tokenizer_dir FOLDER --data_input_dirs FOLDER [--num_workers 1]

The tokenizer alone is ``tokenizers``' encode_batch, and its encode_batch_fast, which leaves out the offsets, on texts
that are in memory already, with as many threads as the preparation has processes.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

RAW_METHODS = ("encode_batch", "encode_batch_fast")

BATCH = 1000
"""Texts per call of the tokenizer."""


def read_texts(directory: Path) -> list[str]:
    """Source and target of every record, as one text each."""
    from colossal_llama.data.readers import read_records

    values = (record.value for record in read_records(directory))
    return [(value.get("source") or "") + value["target"] for value in values]


def raw_speed(tokenizer_dir: str, texts: list[str], method: str) -> tuple[int, float]:
    """Tokens and seconds of a fresh tokenizer's ``method``."""
    from colossal_llama.tokenizer.loading import load_tokenizer

    backend = load_tokenizer(tokenizer_dir, "--tokenizer_dir").backend_tokenizer
    encode = getattr(backend, method)
    tokens = 0
    started = time.perf_counter()
    for first in range(0, len(texts), BATCH):
        encoded = encode(texts[first : first + BATCH], add_special_tokens=False)
        tokens += sum(len(one) for one in encoded)
    return tokens, time.perf_counter() - started


def prepare_speed(arguments: argparse.Namespace) -> tuple[int, float]:
    """Tokens and seconds of the whole preparation: reading, tokenising, packing, writing arrow."""
    from colossal_llama.commands.prepare_pretrain_dataset import build_job
    from colossal_llama.config.prepare import PretrainPrepareConfig
    from colossal_llama.data.pipeline import prepare_dataset

    with tempfile.TemporaryDirectory() as folder:
        config = PretrainPrepareConfig(
            data_input_dirs=arguments.data_input_dirs,
            tokenizer_dir=arguments.tokenizer_dir,
            data_arrow_output_dir=str(Path(folder) / "arrow"),
            max_length=arguments.max_length,
            num_workers=arguments.num_workers,
        )
        started = time.perf_counter()
        manifest = prepare_dataset(build_job(config))
        return manifest.tokens, time.perf_counter() - started


def main() -> None:
    """Measure, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer_dir", required=True, help="Hugging Face tokenizer folder")
    parser.add_argument("--data_input_dirs", required=True, help="comma-separated directories of .jsonl files")
    parser.add_argument("--max_length", type=int, default=4096)
    parser.add_argument(
        "--num_workers", type=int, default=1, help="processes of the preparation, threads of the tokenizer"
    )
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    # Read by the tokenizers library when it starts its threads.
    os.environ |= {"RAYON_NUM_THREADS": str(arguments.num_workers), "TOKENIZERS_PARALLELISM": "true"}
    texts = [text for name in arguments.data_input_dirs.split(",") for text in read_texts(Path(name))]
    results = {method: raw_speed(arguments.tokenizer_dir, texts, method) for method in RAW_METHODS}
    results["preparation"] = prepare_speed(arguments)
    rates = {name: tokens / seconds for name, (tokens, seconds) in results.items()}
    print("| | tokens | seconds | tokens/s | preparation compared to it |\n|---|---:|---:|---:|---:|")
    for name, (tokens, seconds) in results.items():
        ratio = rates["preparation"] / rates[name]
        print(f"| {name} | {tokens:,} | {seconds:.2f} | {rates[name]:,.0f} | {ratio:.2f} |")
    if arguments.output:
        figures = {name: {"tokens": tokens, "seconds": seconds} for name, (tokens, seconds) in results.items()}
        content = {"num_workers": arguments.num_workers, **figures}
        arguments.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
