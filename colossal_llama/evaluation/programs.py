"""HumanEval in the harness's format: programs that the model completes are run against the benchmark's checks.

The harness's own task loads its scoring from the hub, which is out of reach here. The programs run in processes of
their own with limits on time, memory and file size, but with the user's rights: this is no sandbox.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from colossal_llama.evaluation.benchmark_files import Row, read_json_lines, require_texts

SECONDS = 10
MEMORY_BYTES = 4 << 30
FILE_BYTES = 1 << 20
REACHED_ITS_END = 97
"""Exit code behind the last check; a program that calls ``exit(0)`` before it has not passed."""

_LIMITED = f"""
import resource, runpy
for kind, limit in (("CPU", {SECONDS}), ("AS", {MEMORY_BYTES}), ("FSIZE", {FILE_BYTES}), ("CORE", 0)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + kind), (limit, limit))
runpy.run_path("program.py", run_name="__main__")
"""

_FIELDS = ("prompt", "test", "entry_point")


def humaneval_task() -> tuple[Callable[[list[Path]], dict[str, list[Row]]], dict[str, Any]]:
    """How to read the benchmark, and its task: greedy completion, one try a problem."""

    def read(files: list[Path]) -> dict[str, list[Row]]:
        rows = read_json_lines(files[0])
        require_texts(rows, _FIELDS, files[0])
        return {"test": [{name: row[name] for name in _FIELDS} for row in rows]}

    return read, {
        "task": "humaneval",
        "unsafe_code": True,
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": "prompt",
        "doc_to_target": "entry_point",
        "process_results": process_results,
        "metric_list": [{"metric": "pass@1", "aggregation": "mean", "higher_is_better": True}],
        # A completion ends where the function does.
        "generation_kwargs": {
            "until": ["\nclass", "\ndef", "\n#", "\nif", "\nprint"],
            "do_sample": False,
            "max_gen_toks": 200,
        },
    }


def process_results(problem: Row, completions: list[str]) -> dict[str, float]:
    """Whether the first completion passes the problem's checks, as the harness's metric."""
    program = f"{problem['prompt']}{completions[0]}\n\n{problem['test']}\n\ncheck({problem['entry_point']})\n"
    return {"pass@1": float(runs_without_error(program))}


def runs_without_error(program: str, seconds: float = SECONDS) -> bool:
    """Run a Python program in a process and folder of its own; False where it fails, exits early or takes longer."""
    with tempfile.TemporaryDirectory(prefix="program-") as folder:
        ending = f"\nraise SystemExit({REACHED_ITS_END})\n"
        (Path(folder) / "program.py").write_text(program + ending, encoding="utf-8", errors="replace")
        # The child limits itself: to do it between fork and exec would fork all threads of this process.
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _LIMITED],
            cwd=folder,
            env={"PATH": "/usr/bin:/bin", "HOME": folder},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return process.wait(timeout=seconds) == REACHED_ITS_END
        except subprocess.TimeoutExpired:
            return False
        finally:
            _end_group(process)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the program and whatever it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
