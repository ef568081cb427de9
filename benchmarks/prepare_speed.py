"""Data preparation against the bare tokenizer and against other tools, in the same run, with the bars it should meet.

    python benchmarks/prepare_speed.py --tokenizer_dir FOLDER --data_input_dirs FOLDER[,FOLDER] [--num_workers 1 2]
        [--max_length 4096 2048] [--peer NAME RATIO 'COMMAND'] [--larger_input_dirs FOLDER[,FOLDER]]
        [--output FILE.json]

Each line is a process of its own. The bare tokenizer is ``encode_batch`` and ``encode_batch_fast`` of tokenizers and,
where the folder has a ``tokenizer.model`` that gives the same ids, sentencepiece's ``Encode``: on texts that are in
memory already, on one thread. A peer is any other program that tokenises the same files; ``{input}`` in its command is
the comma-separated input, ``{output}`` an empty folder, ``{tokenizer}`` the tokenizer; RATIO is how many times its
speed the preparation should have.

CPU seconds are those of all processes; those of the preparation and of peers include starting Python and reading the
tokenizer, wall seconds too. Rates are tokens of the bare tokenizer (no special tokens) per CPU second for all. Memory
is the largest sum of the processes' proportional set sizes (shared pages count once), looked at five times a second.
A larger corpus is prepared with the last number of workers, to show that memory does not grow with it.
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
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

RAW_METHODS = ("encode_batch", "encode_batch_fast", "sentencepiece")
BATCH = 1000
"""Texts per call of the tokenizer."""

Figures = dict[str, Any]

MEMORY_MB = 1500
DISK_RATIO = 1.15
PADDING = 0.001
OF_TOKENIZER = 0.85
SPEED_UP = 1.7
GROWTH = 1.15
"""The bars: most memory, bytes on disk per four bytes a token, share of padding; least share of the faster bare
tokenizer's tokens per CPU second, least ratio of the wall seconds of one worker and of two, and most ratio of the
memory for a larger corpus and for this one."""

LARGER = "preparation of the larger corpus"


def cpu_seconds(who: int) -> float:
    """CPU seconds that this process, or its finished children, have used."""
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def measure_raw(tokenizer_dir: str, inputs: str, method: str) -> Figures:
    """Tokens and seconds of the tokenizer's ``method`` on all texts; nothing if it would give other ids."""
    from colossal_llama.data.readers import read_records
    from colossal_llama.data.tokenization import encoder_spec
    from colossal_llama.tokenizer.loading import load_tokenizer

    spec = encoder_spec(load_tokenizer(tokenizer_dir, "--tokenizer_dir"), "--tokenizer_dir")
    if method == "sentencepiece" and spec.sentencepiece is None:
        return {}
    values = (record.value for name in inputs.split(",") for record in read_records(name))
    texts = [(value.get("source") or "") + value["target"] for value in values]
    encode = _bare(spec, method)
    encode(texts[:10])
    tokens = 0
    wall, cpu = time.perf_counter(), cpu_seconds(resource.RUSAGE_SELF)
    for first in range(0, len(texts), BATCH):
        tokens += sum(len(one) for one in encode(texts[first : first + BATCH]))
    return {
        "tokens": tokens,
        "cpu_seconds": cpu_seconds(resource.RUSAGE_SELF) - cpu,
        "wall_seconds": time.perf_counter() - wall,
    }


def _bare(spec: Any, method: str) -> Callable[[list[str]], list[Any]]:
    """A library's own method, on the tokenizer that the preparation uses."""
    if method == "sentencepiece":
        from sentencepiece import SentencePieceProcessor

        processor = SentencePieceProcessor()
        processor.LoadFromSerializedProto(spec.sentencepiece.content)
        return partial(processor.Encode, num_threads=1)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(spec.head_json)
    tokenizer.encode_special_tokens = True
    return partial(getattr(tokenizer, method), add_special_tokens=False)


def run_measured(command: list[str]) -> Figures:
    """CPU and wall seconds and peak memory of a command and all that it starts.

    Raises:
        SystemExit: it failed.
    """
    wall, cpu = time.perf_counter(), cpu_seconds(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    memory = MemoryWatch(process.pid)
    memory.start()
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors[-2000:]}")
    memory.join()
    return {
        "cpu_seconds": cpu_seconds(resource.RUSAGE_CHILDREN) - cpu,
        "wall_seconds": time.perf_counter() - wall,
        "peak_memory_mb": memory.peak / 1e6,
    }


def measure_peer(command: str, tokenizer_dir: str, inputs: str) -> Figures:
    """Figures of another tool's command line."""
    with tempfile.TemporaryDirectory() as folder:
        places = {"input": inputs, "output": folder, "tokenizer": tokenizer_dir}
        return run_measured(["bash", "-c", command.format(**places)])


def measure_preparation(tokenizer_dir: str, inputs: str, workers: int, max_length: int) -> Figures:
    """Figures of the whole command in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        arrow = Path(folder) / "arrow"
        script = Path(__file__).resolve().parents[1] / "scripts" / "prepare_pretrain_dataset.py"
        command = [sys.executable, str(script), "--data_input_dirs", inputs, "--tokenizer_dir", tokenizer_dir]
        command += ["--data_arrow_output_dir", str(arrow), "--num_workers", str(workers)]
        figures = run_measured([*command, "--max_length", str(max_length)])
        manifest = json.loads((arrow / "manifest.json").read_text(encoding="utf-8"))
        parts = [path for path in arrow.glob("part-*/*") if path.is_file()]
        return figures | {
            "tokens_with_special": manifest["tokens"],
            "max_length": max_length,
            "workers": workers,
            "disk_ratio": sum(path.stat().st_size for path in parts) / (4 * manifest["tokens"]),
            "padding": 1 - manifest["tokens"] / (manifest["rows"] * manifest["max_length"]),
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


def like(larger: Figures, ours: list[Figures]) -> Figures:
    """The figures of the same preparation of the smaller corpus."""
    return next(one for one in ours if all(one[name] == larger[name] for name in ("workers", "max_length")))


def bars(results: dict[str, Figures], peers: dict[str, float]) -> list[tuple[str, str, str, bool]]:
    """What should hold, the bar, the figure, and whether it holds; of what was measured."""
    raw = {name: results[name] for name in RAW_METHODS if name in results}
    best = max(raw, key=lambda name: results[name]["rate"])
    ours = [one for name, one in results.items() if "padding" in one and name != LARGER]
    single = next((one for one in ours if one["workers"] == 1), ours[0])
    share = single["rate"] / results[best]["rate"]
    every = [one for one in results.values() if "padding" in one]
    memory, disk = (max(one[name] for one in every) for name in ("peak_memory_mb", "disk_ratio"))
    rows = [(f"tokens per CPU second, of {best}'s", f">= {OF_TOKENIZER}", f"{share:.2f}", share >= OF_TOKENIZER)]
    for name, bar in peers.items():
        ratio = single["rate"] / results[name]["rate"]
        rows.append((f"tokens per CPU second, times {name}'s", f">= {bar:g}", f"{ratio:.1f}", ratio >= bar))
    double = next((one for one in ours if one["workers"] == 2 and one["max_length"] == single["max_length"]), None)
    if double is not None:
        faster = single["wall_seconds"] / double["wall_seconds"]
        rows.append(("wall seconds of 1 worker / of 2", f">= {SPEED_UP}", f"{faster:.2f}", faster >= SPEED_UP))
    rows.append(("peak memory, MB", f"<= {MEMORY_MB}", f"{memory:,.0f}", memory <= MEMORY_MB))
    rows.append(("bytes on disk / 4 bytes a token", f"<= {DISK_RATIO}", f"{disk:.3f}", disk <= DISK_RATIO))
    if LARGER in results:
        growth = results[LARGER]["peak_memory_mb"] / like(results[LARGER], ours)["peak_memory_mb"]
        rows.append(("peak memory, of the larger corpus / of this", f"<= {GROWTH}", f"{growth:.2f}", growth <= GROWTH))
    for one in {one["max_length"]: one for one in ours}.values():
        label = f"padding in rows of {one['max_length']}"
        rows.append((label, f"<= {PADDING:.1%}", f"{one['padding']:.3%}", one["padding"] <= PADDING))
    return rows


def print_tables(results: dict[str, Figures], checks: list[tuple[str, str, str, bool]]) -> None:
    """The figures and the bars as Markdown tables."""
    print("| | CPU s | wall s | tokens per CPU s | memory MB | disk, of 4 bytes a token | padding |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, one in results.items():
        row = f"| {name} | {one['cpu_seconds']:.1f} | {one['wall_seconds']:.1f} | {one['rate']:,.0f} "
        row += f"| {one['peak_memory_mb']:,.0f} " if "peak_memory_mb" in one else "| "
        row += f"| {one['disk_ratio']:.3f} | {one['padding']:.3%} |" if "padding" in one else "| | |"
        print(row)
    print("\n| | bar | measured | |\n|---|---:|---:|---|")
    for label, bar, figure, met in checks:
        print(f"| {label} | {bar} | {figure} | {'met' if met else 'NOT MET'} |")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer_dir", required=True, help="Hugging Face tokenizer folder")
    parser.add_argument("--data_input_dirs", required=True, help="comma-separated inputs of {source, target} records")
    parser.add_argument("--max_length", type=int, nargs="+", default=[4096], help="lengths of rows to try")
    parser.add_argument("--num_workers", type=int, nargs="+", default=[1], help="numbers of processes to try")
    parser.add_argument("--peer", nargs=3, action="append", default=[], metavar=("NAME", "RATIO", "COMMAND"))
    parser.add_argument("--larger_input_dirs", help="another corpus, to compare the memory")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--raw", choices=RAW_METHODS, help="measure only this method of the tokenizer, here")
    return parser.parse_args()


def main() -> None:
    """Measure, print the tables and write the figures."""
    arguments = parse_arguments()
    tokenizer_dir, inputs = arguments.tokenizer_dir, arguments.data_input_dirs
    if arguments.raw:
        print(json.dumps(measure_raw(tokenizer_dir, inputs, arguments.raw)))
        return
    results = {method: found for method in RAW_METHODS if (found := raw_in_child(arguments, method))}
    tokens = {one["tokens"] for one in results.values()}
    if len(tokens) != 1:
        raise SystemExit(f"the bare tokenizers differ: {tokens} tokens")
    for number, length in enumerate(arguments.max_length):
        for workers in arguments.num_workers if number == 0 else arguments.num_workers[:1]:
            name = f"preparation, rows of {length}, {workers} worker(s)"
            results[name] = measure_preparation(tokenizer_dir, inputs, workers, length)
    for name, _, command in arguments.peer:
        results[name] = measure_peer(command, tokenizer_dir, inputs)
    (total,) = tokens
    for one in results.values():
        one["rate"] = total / one["cpu_seconds"]
    if arguments.larger_input_dirs:
        workers, length = arguments.num_workers[-1], arguments.max_length[0]
        larger = measure_preparation(tokenizer_dir, arguments.larger_input_dirs, workers, length)
        results[LARGER] = larger | {"rate": larger["tokens_with_special"] / larger["cpu_seconds"]}
    checks = bars(results, {name: float(ratio) for name, ratio, _ in arguments.peer})
    print(f"{total:,} tokens")
    print_tables(results, checks)
    if arguments.output:
        content = {"tokens": total, "results": results, "bars": checks}
        arguments.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
