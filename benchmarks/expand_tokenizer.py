"""Seconds and memory that init_tokenizer.py needs, with all its checks, and where the seconds go.

    python benchmarks/expand_tokenizer.py --tokenizer_dir FOLDER [FOLDER ...] --pieces FILE.jsonl
        [--check_text FILE ...] [--repeat 3] [--profile 15] [--output FILE.json]

Each run is a process of its own, from starting Python to the written folder; the median counts. Memory is the largest
resident set of that process. --profile prints the functions with the most time of their own in one further run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "init_tokenizer.py"


def run_once(source: Path, pieces: Path, texts: list[str], profile: Path | None = None) -> dict[str, Any]:
    """One expansion: wall and CPU seconds, peak memory in MiB, and what its report counts."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "target"
        command = [sys.executable, *(["-m", "cProfile", "-o", str(profile)] if profile else []), str(SCRIPT)]
        command += ["--source_tokenizer_dir", str(source), "--target_tokenizer_dir", str(target)]
        command += ["--expand_tokens_file", str(pieces), *(["--check_text", *texts] if texts else [])]
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        if status:
            raise SystemExit(f"{' '.join(command)} failed")
        report = json.loads((target / "expansion.json").read_text(encoding="utf-8"))
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss / 1024,
        "family": report["family"],
        "added": report["pieces_added"],
        "intermediates": len(report["intermediates"]),
        "texts": report["texts"],
    }


def measure(source: Path, pieces: Path, texts: list[str], repeat: int) -> dict[str, Any]:
    """The medians over ``repeat`` runs."""
    runs = [run_once(source, pieces, texts) for _ in range(repeat)]
    return runs[0] | {
        name: statistics.median(run[name] for run in runs) for name in ("seconds", "cpu_seconds", "peak_mib")
    }


def print_profile(source: Path, pieces: Path, texts: list[str], lines: int) -> None:
    """The functions that take the most time themselves."""
    import pstats

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "profile"
        run_once(source, pieces, texts, file)
        pstats.Stats(str(file)).sort_stats("tottime").print_stats(lines)


def main() -> None:
    """Measure, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer_dir", type=Path, nargs="+", required=True, help="tokenizers to widen")
    parser.add_argument("--pieces", type=Path, required=True, help="jsonl of pieces to add")
    parser.add_argument("--check_text", nargs="+", default=[], help="texts to compare the tokenizers on as well")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each tokenizer")
    parser.add_argument("--profile", type=int, default=0, help="print so many functions of a profile")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    figures: dict[str, dict[str, Any]] = {}
    print("| tokenizer | family | added | intermediates | s | CPU s | peak MiB |\n|---|---|---:|---:|---:|---:|---:|")
    for source in arguments.tokenizer_dir:
        row = figures[str(source)] = measure(source, arguments.pieces, arguments.check_text, arguments.repeat)
        print(
            f"| {source.name} | {row['family']} | {row['added']:,} | {row['intermediates']:,} | {row['seconds']:.1f} "
            f"| {row['cpu_seconds']:.1f} | {row['peak_mib']:,.0f} |",
            flush=True,
        )
        if arguments.profile:
            print_profile(source, arguments.pieces, arguments.check_text, arguments.profile)
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
