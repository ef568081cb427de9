"""recipes/tiny.yaml from its first stage to its last: failing, killed in the middle of a stage, resumed, skipped."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from colossal_llama.commands.run_stages import main
from tests.helpers.tiny import save_rows, save_tiny_model

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "tiny.yaml"
TIMEOUT_SECONDS = 400


def start(folder: Path, log: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "scripts" / "run_stages.py"), str(RECIPE)],
            cwd=folder,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def run_to_end(folder: Path, log: Path) -> tuple[int, str]:
    process = start(folder, log)
    try:
        code = process.wait(timeout=TIMEOUT_SECONDS)
    finally:
        process.terminate()
    return code, log.read_text(encoding="utf-8", errors="replace")


def terminate_at_first_checkpoint(folder: Path, log: Path, stage: str) -> tuple[int, list[psutil.Process]]:
    """SIGTERM for run_stages.py alone when ``stage`` has a checkpoint; its exit code and what it had started."""
    process = start(folder, log)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    try:
        while not list(folder.glob(f"work/{stage}/epoch-*/running_states.json")):
            assert process.poll() is None, log.read_text(encoding="utf-8", errors="replace")[-4000:]
            assert time.monotonic() < deadline, "no checkpoint appeared"
            time.sleep(0.05)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        return process.wait(timeout=TIMEOUT_SECONDS), family
    finally:
        process.terminate()


def damage_a_copy_of_the_newest_checkpoint(folder: Path) -> None:
    """Leave what a failing disk leaves: a checkpoint newer than all others with a byte flipped in its weights."""
    newest = max(folder.glob("epoch-0_step-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    copy = shutil.copytree(newest, newest.with_name("epoch-0_step-99"))
    weights = next((copy / "modeling").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder that the recipe ran in, and what the failing, the killed and the finishing run printed."""
    folder = tmp_path_factory.mktemp("stages")
    save_rows(folder / "work" / "data" / "arrow", 60)
    save_rows(folder / "work" / "sft_data" / "arrow", 12, seed=1)
    model = folder / "work" / "model"
    save_tiny_model(model)
    weights = model / "model.safetensors"
    weights.rename(folder / "weights")  # which only the training itself finds out
    code, failed = run_to_end(folder, folder / "failed.log")
    assert code == 2, failed
    (folder / "weights").rename(weights)
    code, family = terminate_at_first_checkpoint(folder, folder / "killed.log", "stage2")
    assert code == 128 + signal.SIGTERM
    assert not [member for member in family if member.is_running() and member.status() != psutil.STATUS_ZOMBIE]
    damage_a_copy_of_the_newest_checkpoint(folder / "work" / "stage2")
    code, finished = run_to_end(folder, folder / "finished.log")
    assert code == 0, finished[-4000:]
    killed = (folder / "killed.log").read_text(encoding="utf-8", errors="replace")
    return folder, {"failed": failed, "killed": killed, "finished": finished}


def test_a_failing_stage_stops_the_plan_and_says_where_to_look(runs: tuple[Path, dict[str, str]]) -> None:
    _, printed = runs
    last = printed["failed"].splitlines()[-1]
    assert re.match(r"error: stage stage1 failed with exit code 2 after \d+ seconds; log: work/stage1/train.log", last)
    assert "stage stage2" not in printed["failed"]
    assert "model.safetensors" in printed["failed"]


def test_a_killed_stage_goes_on_from_its_checkpoint(runs: tuple[Path, dict[str, str]]) -> None:
    folder, printed = runs
    assert "== stage stage2: stopped by signal 15" in printed["killed"]
    assert "== stage stage1: done before" in printed["finished"]
    assert re.search(r"^skipped work/stage2/epoch-0_step-99: damaged, modeling/", printed["finished"], re.M)
    (steps,) = re.findall(r"^resumed work/stage2/epoch-0_step-\d+: epoch 0, (\d+) steps", printed["finished"], re.M)
    assert 0 < int(steps) < 30
    lines = (folder / "work" / "stage2" / "logs" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines if "loss" in json.loads(line)] == list(range(1, 31))


def test_each_stage_starts_from_the_one_before(runs: tuple[Path, dict[str, str]]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder, printed = runs
    assert "training the embeddings only" in printed["killed"]
    folders = [folder / "work" / "model", *(folder / "work" / stage / "modeling" for stage in ("stage1", "stage2"))]
    before, first, second = (AutoModelForCausalLM.from_pretrained(str(path)).state_dict() for path in folders)
    changed = {name for name in before if not torch.equal(before[name], first[name])}
    assert changed == {"model.embed_tokens.weight", "lm_head.weight"}
    assert {name for name in before if not torch.equal(first[name], second[name])} > changed
    assert json.loads((folder / "work" / "sft" / "config.json").read_text())["use_neft"] is True


def test_the_summary_counts_what_was_trained(runs: tuple[Path, dict[str, str]]) -> None:
    folder, printed = runs
    stages = json.loads((folder / "work" / "stages.json").read_text(encoding="utf-8"))["stages"]
    assert [(stage["stage"], stage["steps"]) for stage in stages] == [("stage1", 30), ("stage2", 30), ("sft", 6)]
    table = (folder / "work" / "stages.md").read_text(encoding="utf-8")
    for stage in stages:
        metrics = folder / "work" / stage["stage"] / "logs" / "metrics.jsonl"
        entries = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
        assert stage["tokens"] == sum(entry["tokens"] for entry in entries if "loss" in entry)
        assert stage["last_loss"] == [entry["loss"] for entry in entries if "loss" in entry][-1]
        assert f"{stage['stage']}: {stage['steps']} steps, {stage['tokens']:,} tokens" in printed["finished"]
        assert f"| {stage['stage']} | {stage['steps']} | {stage['tokens']:,} |" in table


def test_a_finished_plan_is_skipped_and_a_changed_one_refused(
    runs: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder, printed = runs
    monkeypatch.chdir(folder)
    assert main([str(RECIPE)]) == 0
    again = capsys.readouterr().out
    assert re.findall(r"^== stage (\w+): done before$", again, re.M) == ["stage1", "stage2", "sft"]
    assert printed["finished"].endswith(again.split("done before\n")[-1])
    changed = tmp_path / "changed.yaml"
    changed.write_text(RECIPE.read_text(encoding="utf-8").replace("lr: 3e-4", "lr: 2e-4"))
    assert main([str(changed)]) == 2
    assert "stage stage2: changed since it was trained: lr was 0.0003, now 0.0002" in capsys.readouterr().err
