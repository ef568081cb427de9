"""The benchmark on one GPU: shapes of 135 million and a billion parameters, plugins, attention and recomputing."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
needs_flash = pytest.mark.skipif(importlib.util.find_spec("flash_attn") is None, reason="flash-attn is not installed")


def run(tmp_path: Path, *flags: str) -> list[dict[str, Any]]:
    output = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "benchmark.py"), *flags, "--output", str(output)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    print(done.stdout)
    return json.loads(output.read_text(encoding="utf-8"))["contenders"]


@pytest.mark.parametrize(
    "attention", [(), pytest.param(("--use_flash_attn",), marks=needs_flash)], ids=["sdpa", "flash"]
)
@pytest.mark.parametrize("checkpointing", [(), ("-g",)], ids=["kept", "recomputed"])
@pytest.mark.parametrize("plugin", [("zero2",), ("gemini",), ("3d", "--zero", "1")], ids=lambda words: words[0])
@pytest.mark.parametrize("model", ["smollm2-135m", "1b"])
def test_steps_are_measured(
    model: str, plugin: tuple[str, ...], checkpointing: tuple[str, ...], attention: tuple[str, ...], tmp_path: Path
) -> None:
    (figures,) = run(tmp_path, "-c", model, "-l", "1024", "-b", "2", "-p", *plugin, *checkpointing, *attention)
    assert figures["tokens_per_second"] > 0
    assert sum(figures["split"].values()) == pytest.approx(figures["split_seconds"])
    assert all(loss == loss for loss in figures["losses"])
    if figures["mfu"] is not None:
        assert 0 < figures["mfu"] < 1


def test_recomputing_takes_less_memory(tmp_path: Path) -> None:
    common = ("-c", "1b", "-l", "2048", "-b", "4", "-p", "zero2", "-s", "2", "-i", "1")
    kept, recomputed = (run(tmp_path, *common, *flags)[0]["peak_memory_bytes"] for flags in ((), ("-g",)))
    assert recomputed < kept


def test_other_loops_run_on_the_same(tmp_path: Path) -> None:
    peers = "hf_trainer,bare_loop,torch_fsdp2"
    ours, *others = run(tmp_path, "-c", "smollm2-135m", "-p", "ddp", "-l", "512", "-b", "2", "--compare", peers)
    for other in others:
        assert not other["failure"]
        assert other["losses"] == pytest.approx(ours["losses"], rel=0.02)
