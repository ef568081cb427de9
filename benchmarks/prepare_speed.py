"""Data preparation against the tokenizer alone, in the same run: what reading, packing and writing cost.

    python benchmarks/prepare_speed.py --tokenizer_dir FOLDER --data_input_dirs FOLDER[,FOLDER] [--num_workers 1 2]

Each line is a process of its own. The tokenizer alone is ``tokenizers``' encode_batch, and its encode_batch_fast, which
leaves out the offsets, on texts that are in memory already, on one thread. CPU seconds are those of all processes;
those of the preparation include starting Python and reading the tokenizer, wall seconds too. Memory is the largest sum
of the processes' proportional set sizes (shared pages count once), looked at five times a second.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

RAW_METHODS = ("encode_batch", "encode_batch_fast")
BATCH = 1000
"""Texts per call of the tokenizer."""

Figures = dict[str, Any]


def cpu_seconds(who: int) -> float:
    """CPU seconds that this process, or its finished children, have used."""
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def measure_raw(tokenizer_dir: str, inputs: str, method: str) -> Figures:
    """Tokens and seconds of the tokenizer's ``method`` on all texts."""
    from colossal_llama.data.readers import read_records
    from colossal_llama.tokenizer.loading import load_tokenizer

    values = (record.value for spec in inputs.split(",") for record in read_records(spec))
    texts = [(value.get("source") or "") + value["target"] for value in values]
    encode = getattr(load_tokenizer(tokenizer_dir, "--tokenizer_dir").backend_tokenizer, method)
    encode(texts[:10])
    tokens = 0
    wall, cpu = time.perf_counter(), cpu_seconds(resource.RUSAGE_SELF)
    for first in range(0, len(texts), BATCH):
        tokens += sum(len(one) for one in encode(texts[first : first + BATCH], add_special_tokens=False))
    return {
        "tokens": tokens,
        "cpu_seconds": cpu_seconds(resource.RUSAGE_SELF) - cpu,
        "wall_seconds": time.perf_counter() - wall,
    }


def measure_preparation(tokenizer_dir: str, inputs: str, workers: int, more: list[str]) -> Figures:
    """Figures of the whole command in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        arrow = Path(folder) / "arrow"
        script = Path(__file__).resolve().parents[1] / "scripts" / "prepare_pretrain_dataset.py"
        command = [sys.executable, str(script), "--data_input_dirs", inputs, "--tokenizer_dir", tokenizer_dir]
        command += ["--data_arrow_output_dir", str(arrow), "--num_workers", str(workers), *more]
        wall, cpu = time.perf_counter(), cpu_seconds(resource.RUSAGE_CHILDREN)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        memory = MemoryWatch(process.pid)
        memory.start()
        if process.wait():
            raise SystemExit("the preparation failed")
        memory.join()
        manifest = json.loads((arrow / "manifest.json").read_text(encoding="utf-8"))
        parts = [path for path in arrow.glob("part-*/*") if path.is_file()]
        return {
            "tokens": manifest["tokens_in"],
            "cpu_seconds": cpu_seconds(resource.RUSAGE_CHILDREN) - cpu,
            "wall_seconds": time.perf_counter() - wall,
            "peak_memory_mb": memory.peak / 1e6,
            "disk_ratio": sum(path.stat().st_size for path in parts) / (4 * manifest["tokens"]),
            "padding": 1 - manifest["tokens"] / (manifest["rows"] * manifest["max_length"]),
            "cut_documents": sum(part["cut_documents"] for part in manifest["parts"]),
        }


class MemoryWatch(threading.Thread):
    """Looks at the memory of a process and its descendants until it ends; ``peak`` is in bytes."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self.peak = 0

    def run(self) -> None:
        """Look five times a second."""
        import psutil

        try:
            process = psutil.Process(self._pid)
            while process.status() != psutil.STATUS_ZOMBIE:
                family = [process, *process.children(recursive=True)]
                self.peak = max(self.peak, sum(_proportional_set_size(one.pid) for one in family))
                time.sleep(0.2)
        except psutil.NoSuchProcess:
            return


def _proportional_set_size(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:  # it has just ended
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def raw_in_child(arguments: argparse.Namespace, method: str) -> Figures:
    """:func:`measure_raw` in a fresh process on one thread."""
    command = [sys.executable, __file__, "--tokenizer_dir", arguments.tokenizer_dir, "--raw", method]
    command += ["--data_input_dirs", arguments.data_input_dirs]
    environment = os.environ | {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer_dir", required=True, help="Hugging Face tokenizer folder")
    parser.add_argument("--data_input_dirs", required=True, help="comma-separated inputs of {source, target} records")
    parser.add_argument("--max_length", type=int, default=4096)
    parser.add_argument("--num_workers", type=int, nargs="+", default=[1], help="numbers of processes to try")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--raw", choices=RAW_METHODS, help="measure only this method of the tokenizer, here")
    arguments = parser.parse_args()
    if arguments.raw:
        print(json.dumps(measure_raw(arguments.tokenizer_dir, arguments.data_input_dirs, arguments.raw)))
        return
    results = {method: raw_in_child(arguments, method) for method in RAW_METHODS}
    more = ["--max_length", str(arguments.max_length)]
    for workers in arguments.num_workers:
        results[f"preparation, {workers} workers"] = measure_preparation(
            arguments.tokenizer_dir, arguments.data_input_dirs, workers, more
        )
    fastest = max(results[method]["tokens"] / results[method]["cpu_seconds"] for method in RAW_METHODS)
    print("| | tokens | CPU s | wall s | tokens per CPU s | of the tokenizer's | memory MB | disk | padding |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name, one in results.items():
        rate = one["tokens"] / one["cpu_seconds"]
        row = f"| {name} | {one['tokens']:,} | {one['cpu_seconds']:.1f} | {one['wall_seconds']:.1f} | {rate:,.0f} "
        row += f"| {rate / fastest:.2f} "
        if "disk_ratio" in one:
            row += f"| {one['peak_memory_mb']:,.0f} | {one['disk_ratio']:.3f} x 4 bytes | {one['padding']:.3%} |"
        else:
            row += "| | | |"
        print(row)
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
