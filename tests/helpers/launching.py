"""Starting training runs the way users do, and reading what they leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORKER = ROOT / "tests" / "helpers" / "train_worker.py"
TIMEOUT_SECONDS = 300


def run_training(
    arguments: list[str], processes: int = 2, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run train.py's main on ``processes`` gloo processes through torchrun on a free port.

    The worker adds nothing but what ``environment`` asks for; see tests/helpers/train_worker.py.
    """
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), str(WORKER),
    ]  # fmt: skip
    return subprocess.run(
        [*command, *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | (environment or {}),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


def train(folder: Path, arguments: list[str], processes: int = 2, environment: dict[str, str] | None = None) -> Path:
    """Run a training that must succeed, with all its outputs in ``folder``; returns its save_dir."""
    save_dir = folder / "checkpoints"
    outputs = [
        "--save_dir",
        str(save_dir),
        "--tensorboard_dir",
        str(folder / "logs"),
        "--config_file",
        str(folder / "config.json"),
    ]
    done = run_training([*arguments, *outputs], processes, environment)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr[-6000:]}"
    return save_dir


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
