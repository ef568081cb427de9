"""Random records of every format through the preparation, compared with plain renderings of what they mean.

    python -m benchmarks.fuzz_formats --minutes 30 [--formats messages,moss] [--kits NAME,NAME] [--seed 0]
        [--examples 100] [--output FILE.json]

Each round takes one seed for every format: so many files of random records, of which what is learned is compared token
by token with a rendering that does not use the program's code, and as many files of damaged records, of which each must
be kept or counted. Tokenizers and chat templates are drawn with the files. A round that fails prints its seed and the
smallest file that shows the fault, and the exit code is 1; `--seed N --formats NAME --minutes 0` runs it again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

from tests.helpers.format_fuzzing import KITS, FaultError, fuzz
from tests.helpers.record_strategies import RECORDS

COLUMNS = ("files", "records", "kept", "dropped", "turns", "tokens", "unread", "damaged", "damaged kept")


def main() -> int:
    """Fuzz until the time is up; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1, help="no new round begins later; 0 runs one")
    parser.add_argument("--formats", default=",".join(RECORDS), help="names, separated by commas")
    parser.add_argument("--kits", default=";".join(KITS), help="names of tokenizers, separated by semicolons")
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    parser.add_argument("--examples", type=int, default=100, help="files of good and of damaged records in each round")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    started, faults = time.monotonic(), 0
    seen: dict[str, Counter[str]] = {name: Counter() for name in options.formats.split(",")}
    number = options.seed
    with tempfile.TemporaryDirectory() as scratch:
        while True:
            for name, counter in seen.items():
                try:
                    counter.update(fuzz(name, number, options.examples, options.kits.split(";"), Path(scratch)))
                except FaultError as fault:
                    counter["faults"] += 1
                    faults += 1
                    print(f"FAULT\n{fault}\n", flush=True)
            number += 1
            if time.monotonic() - started > 60 * options.minutes:
                break
    _print_table(seen, number - options.seed, time.monotonic() - started)
    if options.output is not None:
        figures = {"seconds": round(time.monotonic() - started), "rounds": number - options.seed, "formats": seen}
        options.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 1 if faults else 0


def _print_table(seen: dict[str, Counter[str]], rounds: int, seconds: float) -> None:
    total: Counter[str] = sum(seen.values(), Counter())
    print(f"{rounds} rounds in {seconds:.0f} s, {total['faults']} faults")
    columns = (*COLUMNS, "faults")
    print("| format | " + " | ".join(columns) + " |")
    print("|" + "---|" * (len(columns) + 1))
    for name, counter in [*seen.items(), ("all", total)]:
        print(f"| {name} | " + " | ".join(f"{counter[column]:,}" for column in columns) + " |")


if __name__ == "__main__":
    raise SystemExit(main())
