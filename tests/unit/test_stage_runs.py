"""What a plan's stages leave and how they are launched: signals, exit codes, locks, fingerprints and markers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from colossal_llama.config.recipe import read_recipe
from colossal_llama.errors import UserError
from colossal_llama.stages.launcher import run_logged, training_exit_code
from colossal_llama.stages.marker import (
    SAMPLE_BYTES,
    Marker,
    differences,
    fingerprint,
    read_marker,
    stage_settings,
    write_marker,
)
from colossal_llama.stages.runner import lock_folder
from colossal_llama.stages.summary import summarise, write_summaries

ROOT = Path(__file__).resolve().parents[2]

STUBBORN = """\
import os, signal, subprocess, sys, time
# A grandchild in a session of its own that needs a moment to end, as torchrun's processes do.
worker = "import signal,time,sys\\nsignal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), sys.exit(0)))\\n"
worker += "print('working', flush=True)\\ntime.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", worker], start_new_session=True)
print("child", child.pid, flush=True)
def stop(*_):
    child.terminate()
    sys.exit(7)
signal.signal(signal.SIGTERM, stop)
time.sleep(60)
"""
RELAY = """\
import os, sys
from pathlib import Path
from colossal_llama.stages.launcher import run_logged
ended = run_logged([sys.executable, "-c", Path(sys.argv[1]).read_text()], Path(sys.argv[2]), dict(os.environ))
print("ended", ended.code, ended.signal, flush=True)
"""


def test_signals_are_passed_on_and_nothing_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    log = tmp_path / "log"
    process = subprocess.Popen(
        [sys.executable, "-c", RELAY, str(tmp_path / "stubborn.py"), str(log)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    deadline = time.monotonic() + 60
    while "working" not in (log.read_text() if log.exists() else "") and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert printed.splitlines()[-1] == f"ended 7 {signal.SIGTERM}"
    child = int(log.read_text().split("child ")[1].split()[0])
    status = Path(f"/proc/{child}/stat")
    assert not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def test_output_goes_to_the_log_and_the_exit_code_comes_back(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    body = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    for _ in range(2):
        ended = run_logged([sys.executable, "-c", body], tmp_path / "log", dict(os.environ))
        assert (ended.code, ended.signal) == (3, None)
    assert sorted((tmp_path / "log").read_text().split()) == ["err", "err", "out", "out"]
    assert "out" in capfd.readouterr().out


def test_the_trainings_own_exit_code_is_read_from_torchruns_report(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("x" * 100_000 + "\nRoot Cause:\n  rank      : 0\n  exitcode  : 2 (pid: 77)\n")
    assert training_exit_code(log, 0) == 2
    assert training_exit_code(log, log.stat().st_size) is None


def test_only_one_plan_works_in_a_folder(tmp_path: Path) -> None:
    with lock_folder(tmp_path) as descriptor:
        with pytest.raises(UserError, match="still at work"), lock_folder(tmp_path):
            pass
        os.set_inheritable(descriptor, True)
        child = subprocess.Popen(["sleep", "60"], pass_fds=[descriptor])
    try:
        with pytest.raises(UserError, match="still at work"), lock_folder(tmp_path):
            pass
    finally:
        child.kill()
        child.wait()
    with lock_folder(tmp_path):
        pass


def test_fingerprints_follow_the_content(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    (folder / "part").mkdir(parents=True)
    content = bytes(5 * SAMPLE_BYTES)
    (folder / "part" / "data.arrow").write_bytes(content)
    (folder / "part" / "state.json").write_text("random")
    first = fingerprint(folder)
    shutil.copytree(folder, tmp_path / "b")
    (tmp_path / "b" / "part" / "state.json").write_text("another")
    (tmp_path / "b" / "report.html").write_text("new")
    assert fingerprint(tmp_path / "b") == first
    for place in (0, len(content) // 2, len(content) - 1):
        changed = bytearray(content)
        changed[place] = 1
        (folder / "part" / "data.arrow").write_bytes(changed)
        assert fingerprint(folder) != first
    (folder / "part" / "data.arrow").write_bytes(content)
    assert fingerprint(folder) == first
    (folder / "part" / "data.arrow").rename(folder / "data.arrow")
    assert fingerprint(folder) != first


def test_differences_are_named_and_places_do_not_count(tmp_path: Path) -> None:
    def settings(text: str) -> dict:
        (tmp_path / "plan.yaml").write_text(f"pretrained: m\noutput_dir: {text}")
        return stage_settings(read_recipe(tmp_path / "plan.yaml").stages[0], 2)

    stages = "stages: [{name: one, dataset: d, lr: %s, save_interval: %s}]"
    old = settings("out\n" + stages % ("1e-3", 5))
    marker = Marker("run", True, old, {"dataset d": "1", "dataset e": "2"})
    assert differences(marker, settings("elsewhere\n" + stages % ("1e-3", 7)), dict(marker.inputs)) == []
    assert differences(marker, settings("out\n" + stages % ("2e-3", 5)), dict(marker.inputs)) == [
        "lr was 0.001, now 0.002"
    ]
    assert differences(marker, old, {"dataset d": "1", "dataset e": "3"}) == ["dataset e changed"]
    assert differences(marker, old, {"dataset d": "1"}) == ["dataset e is gone"]
    assert differences(marker, old, {"dataset e": "2", "dataset d": "1"}) == ["the order of the datasets changed"]
    assert differences(marker, old, {"dataset moved": "1", "dataset e": "2"}) == []
    other_layout = old | {"processes": 4, "plugin": "zero2"}
    assert differences(marker, other_layout, marker.inputs) == [
        "processes was 2, now 4",
        "plugin was gemini, now zero2",
    ]
    assert differences(Marker("run", False, old, marker.inputs), other_layout, marker.inputs) == []
    without = Marker("run", True, {key: value for key, value in old.items() if key != "use_neft"}, marker.inputs)
    assert differences(without, old, marker.inputs) == []


def test_markers_read_back_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    assert read_marker(tmp_path) is None
    marker = Marker("run", False, {"lr": 1.0}, {"dataset d": "1"})
    write_marker(marker, tmp_path / "new")
    assert read_marker(tmp_path / "new") == marker
    (tmp_path / "new" / "stage.json").write_text("{")
    with pytest.raises(UserError, match=r"stage\.json: not valid JSON"):
        read_marker(tmp_path / "new")


def test_summaries_come_from_the_metrics(tmp_path: Path) -> None:
    (tmp_path / "one" / "logs").mkdir(parents=True)
    entries = [{"step": n, "loss": 5.0 - n, "tokens": 64, "seconds": 0.5} for n in (1, 2, 3)]
    entries.append({"step": 3, "eval_loss": 1.0})
    (tmp_path / "one" / "logs" / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    summary = summarise("one", tmp_path / "one")
    assert (summary.steps, summary.tokens, summary.seconds, summary.last_loss) == (3, 192, 1.5, 2.0)
    assert summary.line == "one: 3 steps, 192 tokens, 1.5 seconds, last loss 2.0000"
    write_summaries([summary, summarise("two", tmp_path / "two")], tmp_path)
    assert len(json.loads((tmp_path / "stages.json").read_text())["stages"]) == 2
    assert (
        f"| one | 3 | 192 | 1.5 | 2.0000 | `{tmp_path / 'one' / 'modeling'}` |" in (tmp_path / "stages.md").read_text()
    )
