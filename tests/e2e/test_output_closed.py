"""Commands whose output nobody reads to its end: they stop quietly, with the exit code that shells know."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.tiny import save_tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]


def run_unread(*command: str, errors_too: bool = False) -> tuple[int, str]:
    """Run a program whose standard output is a pipe that was closed at its other end; exit code and errors."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, *command],
            stdout=writing,
            stderr=writing if errors_too else subprocess.PIPE,
            env=environment,
            text=True,
            cwd=ROOT,
        )
    finally:
        os.close(writing)
    return done.returncode, done.stderr or ""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("unread")
    (root / "tokenizer").mkdir()
    save_tiny_tokenizer(root / "tokenizer")
    (root / "a.jsonl").write_text('{"source": "", "target": "some text", "category": "a"}\n' * 20)
    return root


PROGRAMS = sorted(f"scripts/{file.name}" for file in (ROOT / "scripts").glob("*.py"))


@pytest.mark.parametrize("program", [*PROGRAMS, "inference_example.py"])
def test_help(program: str) -> None:
    code, errors = run_unread(program, "--help")
    # Newer versions of argparse pass over a long text that cannot be written.
    assert code in (0, 141)
    assert errors == ""


def test_results(places: Path) -> None:
    assert run_unread("scripts/plan.py") == (141, "")
    report = ("--tokenizers", str(places / "tokenizer"), "--text_files", str(places / "a.jsonl"))
    assert run_unread("scripts/tokenizer_report.py", *report) == (141, "")
    prepare = ("--data_input_dirs", str(places / "a.jsonl"), "--tokenizer_dir", str(places / "tokenizer"))
    output = ("--data_output_dirs", str(places / "out"), "--num_workers", "1", "--num_spliced_dataset_bins", "1")
    assert run_unread("scripts/prepare_pretrain_dataset.py", *prepare, *output) == (141, "")


def test_errors_that_nobody_reads() -> None:
    assert run_unread("scripts/plan.py", "--nonsense", errors_too=True) == (141, "")
    # The one line about a bad flag goes to the other stream, which is read.
    code, errors = run_unread("scripts/plan.py", "--nonsense")
    assert code == 2
    assert errors.startswith("error: ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
def test_a_full_disk_under_the_output_is_one_line(places: Path) -> None:
    report = ("--tokenizers", str(places / "tokenizer"), "--text_files", str(places / "a.jsonl"))
    for command in (("scripts/plan.py",), ("scripts/tokenizer_report.py", *report)):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [sys.executable, *command],
                stdout=full,
                stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                text=True,
                cwd=ROOT,
            )
        assert done.returncode == 2
        [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert "No space left on device" in line
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr
