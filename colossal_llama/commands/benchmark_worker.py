"""One contender of ``benchmark.py`` in processes of its own: ``python -m ... CONFIG.json CONTENDER FIGURES.json``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from colossal_llama.config.benchmark import BenchmarkConfig
from colossal_llama.config.cli import parse_config
from colossal_llama.distributed.launch import leave
from colossal_llama.errors import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the worker; returns the exit code."""
    return run_command(lambda: work(*(sys.argv[1:] if argv is None else argv)))


def work(config_file: str, contender: str, output: str) -> None:
    """Measure one contender, and write its figures on rank 0."""
    from colossal_llama.commands.benchmark import measure

    figures = measure(parse_config(BenchmarkConfig, ["--config", config_file], ""), contender)
    if os.environ.get("RANK", "0") == "0":
        Path(output).write_text(json.dumps(figures.as_dict()), encoding="utf-8")


if __name__ == "__main__":
    leave(main())
