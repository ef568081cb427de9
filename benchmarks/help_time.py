"""Seconds until ``--help`` of every script has printed; the machine should be idle.

python benchmarks/help_time.py [--repeat 5] [--output FILE.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def scripts() -> list[Path]:
    """Every program a user starts."""
    return [*sorted((ROOT / "scripts").glob("*.py")), ROOT / "inference_example.py"]


def seconds_of_help(script: Path) -> float:
    """Wall time of one ``--help``."""
    started = time.perf_counter()
    subprocess.run([sys.executable, str(script), "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    """Measure, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5, help="runs of each script; the first one is not counted")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    print("| script | median s | slowest s |\n|---|---:|---:|")
    for script in scripts():
        seconds_of_help(script)
        times = [seconds_of_help(script) for _ in range(arguments.repeat)]
        figures[script.name] = {"median": statistics.median(times), "slowest": max(times)}
        print(f"| {script.name} | {statistics.median(times):.2f} | {max(times):.2f} |", flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
