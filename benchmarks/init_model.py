"""Widening a stored model against a plain copy of its files, in the same run: seconds and peak memory by method.

    python benchmarks/init_model.py --tokenizer_dir FOLDER --wide_tokenizer_dir FOLDER [--layers 13] [--methods mean]

The model is a random Llama of 4,096 x 11,008 in bf16 with untied embeddings, written to a temporary folder (13 layers:
5.8 GB, and as much again for the copy and the wider model, one at a time). Each line is a process of its own,
started Python and imports included; copies and wider models are both flushed to the disk inside the measured time.
Memory is the process's largest resident set, which holds the libraries too (about 0.4 GB); this process stays small,
since what starts a process counts as that one's memory at its start. focus gets random auxiliary
vectors of 300 dimensions.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HIDDEN, INTERMEDIATE, HEADS = 4096, 11008, 32
METHODS = ("mean", "weighted_mean", "global_mean", "gaussian", "random", "focus")
COPY = "import shutil, sys; [shutil.copyfile(path, sys.argv[1] + '/' + path.split('/')[-1]) for path in sys.argv[2:]]"

Figures = dict[str, Any]


def write_model(folder: Path, tokenizer_dir: Path, layers: int) -> None:
    """A sharded checkpoint of random weights: two layers a shard, input embeddings first, the head last."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoTokenizer, LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_dir))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_attention_heads=HEADS,
        num_hidden_layers=layers,
        torch_dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    tokenizer.save_pretrained(str(folder))
    config.save_pretrained(str(folder))
    with torch.device("meta"):
        shapes = {name: one.shape for name, one in LlamaForCausalLM(config).named_parameters()}
    shards = (layers + 1) // 2
    weight_map = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        own = [one for one in shapes if _shard_of(one, shards) == shard]
        tensors = {one: torch.randn(shapes[one], dtype=torch.bfloat16) * 0.02 for one in own}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(own, name)
    size = sum(2 * shape.numel() for shape in shapes.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _shard_of(name: str, shards: int) -> int:
    if ".layers." in name:
        return int(name.split(".")[2]) // 2
    return 0 if "embed" in name else shards - 1


def write_vectors(path: Path, wide_tokenizer_dir: Path) -> None:
    """Random auxiliary vectors for every token."""
    import numpy as np
    from transformers import AutoTokenizer

    vocabulary = AutoTokenizer.from_pretrained(str(wide_tokenizer_dir)).get_vocab()
    vectors = np.random.default_rng(0).standard_normal((len(vocabulary), 300), dtype=np.float32)
    np.savez(path, tokens=np.array(list(vocabulary)), vectors=vectors)


def run_flushed(command: list[str], target: Path) -> Figures:
    """Run a command that writes ``target``; its seconds until everything is on the disk, CPU seconds, peak memory."""
    os.sync()
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    for path in target.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return {
        "wall_seconds": time.perf_counter() - started,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_memory_mb": usage.ru_maxrss * 1024 / 1e6,
        "output": output,
    }


def copy_files(model: Path, target: Path) -> Figures:
    """Copy the model's weights, and nothing else, in a process of its own."""
    target.mkdir()
    files = [str(path) for path in sorted(model.glob("*.safetensors"))]
    return run_flushed([sys.executable, "-c", COPY, str(target), *files], target)


def widen(arguments: argparse.Namespace, model: Path, target: Path, method: str, vectors: Path) -> Figures:
    """Run the command with a method."""
    command = [sys.executable, str(ROOT / "scripts" / "init_model.py"), "--init_method", method]
    command += ["--source_model_and_tokenizer_path", str(model), "--target_model_path", str(target)]
    command += ["--target_tokenizer_path", str(arguments.wide_tokenizer_dir)]
    command += ["--auxiliary_embeddings", str(vectors)] if method == "focus" else []
    return run_flushed(command, target)


def clear(target: Path) -> None:
    """Remove the files of a folder, and it."""
    for path in target.iterdir():
        path.unlink()
    target.rmdir()


def median_of(runs: list[Figures]) -> Figures:
    """The medians of repeated runs, the largest memory, and all wall seconds."""
    return {
        "wall_seconds": statistics.median(one["wall_seconds"] for one in runs),
        "cpu_seconds": statistics.median(one["cpu_seconds"] for one in runs),
        "peak_memory_mb": max(one["peak_memory_mb"] for one in runs),
        "all_wall_seconds": [round(one["wall_seconds"], 2) for one in runs],
        "output": runs[-1]["output"],
    }


def memory_bar(model: Path, rows: int) -> float:
    """1.2 times the two new matrices and one shard, in MB."""
    shard = max(path.stat().st_size for path in model.glob("*.safetensors"))
    return 1.2 * (2 * rows * HIDDEN * 2 + shard) / 1e6


def measure(arguments: argparse.Namespace, place: Path) -> Figures:
    """All figures: copies and methods in turn, so that the machine's moods meet all alike."""
    model, target, vectors = place / "model", place / "target", place / "vectors.npz"
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(write_model, model, arguments.tokenizer_dir, arguments.layers).result()
        pool.submit(write_vectors, vectors, arguments.wide_tokenizer_dir).result()
    runs: dict[str, list[Figures]] = {name: [] for name in ("copy of the files", *arguments.methods)}
    for _ in range(arguments.repeats):
        for name, results in runs.items():
            if name == "copy of the files":
                results.append(copy_files(model, target))
            else:
                results.append(widen(arguments, model, target, name, vectors))
                rows = json.loads((target / "config.json").read_text(encoding="utf-8"))["vocab_size"]
            clear(target)
            print(f"{name}: {results[-1]['wall_seconds']:.1f} s", file=sys.stderr, flush=True)
    size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    return {
        "checkpoint_mb": size / 1e6,
        "rows": rows,
        "memory_bar_mb": memory_bar(model, rows),
        "lines": {name: median_of(results) for name, results in runs.items()},
    }


def main() -> None:
    """Measure, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer_dir", type=Path, required=True, help="the model's tokenizer, 32,000 tokens or so")
    parser.add_argument("--wide_tokenizer_dir", type=Path, required=True, help="what init_tokenizer.py made of it")
    parser.add_argument("--layers", type=int, default=13)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the temporary folder goes (default: the system's)")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        figures = measure(arguments, Path(place))
    copy = figures["lines"]["copy of the files"]["wall_seconds"]
    print(
        f"{figures['checkpoint_mb']:,.0f} MB, {figures['rows']:,} rows; 1.2 x (two new matrices + one shard): ", end=""
    )
    print(f"{figures['memory_bar_mb']:,.0f} MB\n")
    print("| | wall s | of the copy's | CPU s | peak memory MB | of the bar |\n|---|---:|---:|---:|---:|---:|")
    for name, one in figures["lines"].items():
        share = one["peak_memory_mb"] / figures["memory_bar_mb"]
        print(
            f"| {name} | {one['wall_seconds']:.1f} | {one['wall_seconds'] / copy:.2f} | {one['cpu_seconds']:.1f} "
            f"| {one['peak_memory_mb']:,.0f} | {share:.2f} |"
        )
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
