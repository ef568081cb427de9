"""Starting training runs the way users do, and reading what they leave."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 300


class ForkServer:
    """The process that tests/helpers/fork_server.py describes; started when first used."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, request: dict[str, Any]) -> int:
        """Run one training; returns its exit code."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.helpers.fork_server"],
                cwd=ROOT,
                env=os.environ | ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            atexit.register(self._process.kill)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        try:
            answer = self._process.stdout.readline()
        except BaseException:  # pytest-timeout's; the answer still to come would be taken for the next request's
            self._process.kill()
            raise
        assert answer, "the fork server died"
        return json.loads(answer)["returncode"]


FORK_SERVER = ForkServer()
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TORCHINDUCTOR_COMPILE_THREADS": "1"}


def run_training(
    arguments: list[str],
    processes: int = 2,
    environment: dict[str, str] | None = None,
    kill: dict[str, Any] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run train.py's main on ``processes`` fresh gloo processes, with nothing but what the arguments ask for.

    ``environment`` switches hooks on; see tests/helpers/train_worker.py. ``kill``: see tests/helpers/fork_server.py.
    """
    with tempfile.TemporaryDirectory() as folder:
        outputs = {name: str(Path(folder) / name) for name in ("stdout", "stderr")}
        request = {
            "arguments": arguments,
            "processes": processes,
            "environment": environment or {},
            "timeout": TIMEOUT_SECONDS,
            "kill": kill,
        }
        returncode = FORK_SERVER.run(request | outputs)
        printed = {
            name: Path(path).read_text(encoding="utf-8", errors="replace") if Path(path).exists() else ""
            for name, path in outputs.items()
        }
    return subprocess.CompletedProcess(arguments, returncode, printed["stdout"], printed["stderr"])


def train(folder: Path, arguments: list[str], processes: int = 2, environment: dict[str, str] | None = None) -> Path:
    """Run a training that must succeed, with all its outputs in ``folder``; returns its save_dir."""
    done = run_training([*arguments, *outputs_in(folder)], processes, environment)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr[-6000:]}"
    return folder / "checkpoints"


def outputs_in(folder: Path) -> list[str]:
    """Flags that put all outputs of a training into ``folder``."""
    return [
        "--save_dir",
        str(folder / "checkpoints"),
        "--tensorboard_dir",
        str(folder / "logs"),
        "--config_file",
        str(folder / "config.json"),
    ]


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The metrics of each step that a run in ``folder`` wrote."""
    lines = (folder / "logs" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def read_losses(folder: Path) -> list[float]:
    """The loss of each step of a run in ``folder``."""
    return [metrics["loss"] for metrics in read_metrics(folder)]


def read_grad_norms(folder: Path) -> list[float]:
    """The gradient norm before clipping of each step of a run in ``folder``."""
    return [metrics["grad_norm"] for metrics in read_metrics(folder)]
