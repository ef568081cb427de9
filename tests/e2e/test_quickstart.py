"""The quickstart's small variant: killed in the middle of a stage, run to its end, and run once more."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT_TIMEOUT_SECONDS = 400

pytestmark = pytest.mark.timeout(1800)  # three runs of the quickstart, in the fixture


def start(output: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "colossal_llama.commands.quickstart", "--tiny", "--output_dir", str(output)],
            cwd=ROOT,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def run_to_end(output: Path, log: Path) -> str:
    process = start(output, log)
    try:
        code = process.wait(timeout=800)
    finally:
        kill_with_children(process)
    printed = log.read_text(encoding="utf-8", errors="replace")
    assert code == 0, printed[-4000:]
    return printed


def kill_with_children(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for the process and all its descendants, as a machine that goes down would do."""
    if process.poll() is not None:
        return
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        if member.is_running():
            member.kill()
    psutil.wait_procs(family, timeout=30)
    process.wait(timeout=30)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The workspace and what the killed, the finishing and the repeated run printed."""
    folder = tmp_path_factory.mktemp("quickstart")
    process = start(folder / "out", folder / "killed.log")
    deadline = time.monotonic() + CHECKPOINT_TIMEOUT_SECONDS
    try:
        while not (found := list(folder.glob("out/*/runs/*/checkpoints/epoch-*/running_states.json"))):
            assert process.poll() is None, (folder / "killed.log").read_text(encoding="utf-8")[-4000:]
            assert time.monotonic() < deadline, "no checkpoint appeared"
            time.sleep(0.1)
    finally:
        kill_with_children(process)
    workspace = found[0].parents[4]
    finished = run_to_end(folder / "out", folder / "finished.log")
    repeated = run_to_end(folder / "out", folder / "repeated.log")
    return workspace, [(folder / "killed.log").read_text(encoding="utf-8", errors="replace"), finished, repeated]


def test_a_killed_run_goes_on_from_its_checkpoint(runs: tuple[Path, list[str]]) -> None:
    workspace, (killed, finished, _) = runs
    assert "report:" not in killed
    assert f"talk to it: python scripts/chat.py {workspace}/runs/sft/checkpoints/modeling" in finished
    (resumed,) = re.findall(
        r"^resumed .*/runs/(\w+)/checkpoints/epoch-0_step-\d+: epoch 0, (\d+) steps", finished, re.M
    )
    stage, done = resumed[0], int(resumed[1])
    steps = [
        json.loads(line)["step"]
        for line in (workspace / "runs" / stage / "logs" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert 0 < done < len(steps)
    assert steps == list(range(1, len(steps) + 1))
    assert "done before" in finished


def test_chinese_gets_better_by_a_fifth(runs: tuple[Path, list[str]]) -> None:
    workspace, _ = runs
    before, untrained, aligned, after = (
        json.loads((workspace / "steps" / f"measure-{name}.json").read_text(encoding="utf-8"))
        for name in ("base", "model", "stage1", "sft")
    )
    # Shorter text alone helps; training must add a fifth to that, in the first stage already.
    assert aligned["chinese"]["bits_per_byte"] < 0.8 * untrained["chinese"]["bits_per_byte"]
    assert after["chinese"]["bits_per_byte"] < 0.8 * untrained["chinese"]["bits_per_byte"]
    assert after["chinese"]["bits_per_byte"] < 0.8 * before["chinese"]["bits_per_byte"]
    assert after["chinese"]["tokens_per_character"] < 0.8 * before["chinese"]["tokens_per_character"]
    assert after["english"]["bits_per_byte"] < 1.3 * before["english"]["bits_per_byte"]


def test_report_and_figure_are_written(runs: tuple[Path, list[str]]) -> None:
    workspace, _ = runs
    report = (workspace / "report.md").read_text(encoding="utf-8")
    for heading in (
        "| text (held_out) | figure | before | after | change |",
        "|  | before | after |",
        "| step | seconds | tokens | tokens/s |",
    ):
        assert heading in report
    for language in ("chinese", "english"):
        before, after = (
            json.loads((workspace / "steps" / f"measure-{name}.json").read_text(encoding="utf-8"))[language]
            for name in ("base", "sft")
        )
        cell = r"(\d+\.\d+) \[.+\]"
        row = rf"^\| {language} \| bits per UTF-8 byte \| {cell} \| {cell} \| [+-]\d+\.\d % \[.+\] \|$"
        (shown,) = re.findall(row, report, re.MULTILINE)
        expected = before["bits_per_byte"], after["bits_per_byte"]
        assert tuple(map(float, shown)) == pytest.approx(expected, abs=0.001)
    for stage in ("1 embedding alignment", "2 knowledge injection", "3 knowledge replay", "4 SFT with NEFTune"):
        assert report.count(stage) >= 2
    assert (workspace / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (workspace / "curves.png").stat().st_size > 10_000


def test_a_second_run_skips_everything(runs: tuple[Path, list[str]]) -> None:
    _, (_, finished, repeated) = runs
    titles = re.findall(r"^== (.*)$", repeated, re.M)
    assert len(titles) > 15
    assert all(title.endswith(": done before") for title in titles)
    assert "$ " not in repeated
    assert finished.rsplit("\n\nreport:")[0].endswith(repeated.split("\n\n", 1)[1].rsplit("\n\nreport:")[0])
