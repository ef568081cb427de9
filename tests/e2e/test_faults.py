"""Damaged inputs and full disks through every command: one error line that names the file, and nothing left behind.

What is damaged, how, and what must come of it stands in tests/helpers/fault_table.py. Here a part of that table runs:
all faults of outputs, a fifth of those of whole files, a few of those of fields; another part for each file, so that
no file and no fault is left out. ``python -m tests.helpers.fault_table`` runs all of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.fault_commands import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("faults") / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.fault_table", "--sample", "--jobs", "2", "--report", str(file)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert file.is_file(), done.stdout[-6000:]
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", COMMANDS)
def test_faults_are_one_line_and_leave_nothing(name: str, report: dict[str, Any]) -> None:
    assert not report["broken"][name], "\n".join(report["broken"][name])
    assert report["kept"][name]


def test_the_table_knows_every_file_that_is_opened(report: dict[str, Any]) -> None:
    assert {name: problems for name, problems in report["whole"].items() if problems} == {}


def test_no_exception_is_out_of_date(report: dict[str, Any]) -> None:
    assert report["unused"] == []


def test_every_script_is_in_the_table() -> None:
    scripts = {path.stem for path in (ROOT / "scripts").glob("*.py")} | {"inference"}
    assert {command.module for command in COMMANDS.values()} == scripts


def test_the_page_shows_the_table(report: dict[str, Any]) -> None:
    assert "\n".join(report["product"]) in PAGE.read_text(encoding="utf-8")
