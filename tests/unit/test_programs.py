"""Running a program that a model wrote: its end is all that counts, and it cannot last or write without bounds."""

import time

import pytest

from colossal_llama.evaluation.programs import FILE_BYTES, process_results, runs_without_error

PROBLEM = {
    "prompt": "def plus(number):\n",
    "test": "def check(candidate):\n    assert candidate(1) == 3\n",
    "entry_point": "plus",
}


@pytest.mark.parametrize(
    ("completion", "score"),
    [("    return number + 2\n", 1.0), ("    return number\n", 0.0), ("    return (", 0.0), ("    exit(0)", 0.0)],
)
def test_a_completion_passes_when_the_checks_do(completion: str, score: float) -> None:
    assert process_results(PROBLEM, [completion]) == {"pass@1": score}


def test_a_program_that_does_not_end_is_ended_with_its_children() -> None:
    program = (
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "time.sleep(600)\n"
    )
    assert not runs_without_error(program, seconds=1.0)
    import psutil

    deadline = time.monotonic() + 20
    while any("time.sleep(600)" in " ".join(one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"])):
        assert time.monotonic() < deadline, "the program's child is still there"
        time.sleep(0.05)


def test_a_program_cannot_fill_the_disk() -> None:
    program = "with open('a', 'wb') as file:\n    file.write(bytes({}))\n"
    assert runs_without_error(program.format(FILE_BYTES))
    assert not runs_without_error(program.format(FILE_BYTES + 1))


def test_a_program_sees_nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_TEST", "1")
    assert runs_without_error("import os\nassert 'SECRET_OF_THE_TEST' not in os.environ")
