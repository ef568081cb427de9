"""The commands of docs/benchmark.md and docs/planner.md, as they stand: the tiny ones run, the others are parsed."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from colossal_llama.commands import benchmark as command
from colossal_llama.commands import plan
from colossal_llama.config.benchmark import BenchmarkConfig
from colossal_llama.config.cli import parse_config
from colossal_llama.config.workload import MODEL_NAMES
from colossal_llama.metrics.flops import flops_per_token
from colossal_llama.planning.communication import estimate_traffic
from colossal_llama.planning.shapes import KNOWN_SHAPES, ModelShape
from colossal_llama.planning.workload import training_memory, workload_of
from colossal_llama.plugins import build_options

ROOT = Path(__file__).resolve().parents[2]


def documented(script: str) -> list[list[str]]:
    """All commands with ``script`` in the bash blocks of the two pages, cut into words."""
    found = []
    for page in ("benchmark.md", "planner.md"):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        for block in re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            found += [shlex.split(line) for line in lines if f"scripts/{script}.py" in line]
    assert found
    return found


def flags(words: list[str]) -> list[str]:
    return words[next(place for place, word in enumerate(words) if word.startswith("scripts/")) + 1 :]


def run(words: list[str], output: Path) -> tuple[dict[str, Any], str]:
    """Run a documented command, with its figures in ``output``; returns them and what was printed."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [*words, "--output", str(output)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(output.read_text(encoding="utf-8")), done.stdout


def tiny_command(*parts: str) -> list[str]:
    (words,) = [
        words
        for words in documented("benchmark")
        if "tiny" in words and ("torchrun" in words) == ("torchrun" in parts) and set(parts) <= set(words)
    ]
    return words


def test_one_process_measures_what_the_planner_says(tmp_path: Path) -> None:
    content, printed = run(tiny_command("--trace_memory"), tmp_path / "figures.json")
    (figures,) = content["contenders"]
    config = BenchmarkConfig(**content["settings"])
    tokens = config.micro_batch_size * config.max_length
    assert len(figures["seconds"]) == config.num_steps
    assert len(figures["losses"]) == config.num_steps + config.ignore_steps
    assert figures["tokens_per_second"] == pytest.approx(tokens * config.num_steps / sum(figures["seconds"]))
    assert sum(figures["split"].values()) == pytest.approx(figures["split_seconds"])
    assert figures["split"]["backward"] > 0 < figures["split"]["forward"]
    flops = flops_per_token(KNOWN_SHAPES["tiny"], config.max_length)
    assert figures["tflops_per_device"] == pytest.approx(flops * figures["tokens_per_second"] / 1e12)
    assert figures["mfu"] == pytest.approx(figures["tflops_per_device"] / config.peak_tflops)
    memory = training_memory(config.train_config(), KNOWN_SHAPES["tiny"], "tiny", processes=1)
    assert memory.total(config.use_grad_checkpoint) == pytest.approx(figures["tensor_bytes"], rel=0.15)
    assert memory.between_steps == pytest.approx(figures["tensor_bytes_between_steps"], rel=0.05)
    assert f"{figures['tokens_per_second']:,.1f}" in printed


def test_two_processes_train_alike_in_every_loop(tmp_path: Path) -> None:
    content, printed = run(tiny_command("torchrun", "--compare"), tmp_path / "figures.json")
    ours, *peers = content["contenders"]
    assert {peer["contender"] for peer in peers} == {"bare_loop", "hf_trainer", "torch_fsdp2"}
    for peer in peers:
        # The Trainer rounds what it logs.
        assert peer["losses"] == pytest.approx(ours["losses"], abs=1e-4 if peer["contender"] == "hf_trainer" else 3e-6)
        assert peer["tokens_per_step"] == ours["tokens_per_step"]
        assert f"{peer['tokens_per_second'] / ours['tokens_per_second']:.2f} |" in printed
    assert len(set(ours["losses"])) > 1
    config = BenchmarkConfig(**content["settings"])
    settings = config.train_config()
    options = build_options(settings, on_host=True, flash_attention=False)
    shape = ModelShape.from_config(KNOWN_SHAPES["tiny"], "tiny")
    planned = estimate_traffic(shape, settings, options, workload_of(settings, options), processes=2)
    assert ours["sent_bytes"] == pytest.approx(planned.total, rel=0.05)
    assert ours["split"]["communication"] > 0
    assert sum(ours["split"].values()) == pytest.approx(ours["split_seconds"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-c", "70b", "-p", "ddp"), "needs about"),
        (("-c", "tiny", "--use_flash_attn"), "--use_flash_attn needs a GPU"),
        (("-c", "tiny", "-p", "3d", "--tp", "2"), "does not divide the 1 processes"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert command.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_loop_that_does_not_fit_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    config = parse_config(BenchmarkConfig, ["-c", "70b", "--compare", "bare_loop"], "")
    figures = command.measure_apart(config, "bare_loop")
    assert not figures.seconds
    assert "with bare_loop on 1 process(es) needs about" in figures.failure


def test_other_documented_benchmarks_parse() -> None:
    for words in documented("benchmark"):
        config = parse_config(BenchmarkConfig, flags(words), "")
        assert config.model in MODEL_NAMES


@pytest.mark.parametrize("words", documented("plan"), ids=" ".join)
def test_documented_plans_run(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert plan.main(flags(words)) == 0
