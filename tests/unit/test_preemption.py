"""Signals that announce the end of a job, and how ranks fail together."""

import errno
import os
import signal

import pytest

from colossal_llama.distributed.agreement import describe_failure, is_write_failure
from colossal_llama.distributed.preemption import SIGNALS, SignalWatch
from colossal_llama.errors import PreemptedError, run_command


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_the_process_lives(number: signal.Signals) -> None:
    before = [signal.getsignal(one) for one in SIGNALS]
    with SignalWatch() as watch:
        assert watch.received is None
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
        assert watch.received == number.name
    assert [signal.getsignal(one) for one in SIGNALS] == before


def test_a_preempted_run_has_an_exit_code_of_its_own(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def body() -> None:
        raise PreemptedError("stopped by SIGTERM")

    monkeypatch.delenv("RANK", raising=False)
    assert run_command(body) == os.EX_TEMPFAIL == 75
    assert capsys.readouterr().err == "stopped by SIGTERM\n"
    monkeypatch.setenv("RANK", "1")
    assert run_command(body) == 75
    assert capsys.readouterr().err == ""


def test_failed_writes_are_told_from_faults_of_the_program() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "some/file")
    assert is_write_failure(full)
    assert describe_failure(full) == "some/file: No space left on device"
    assert is_write_failure(Exception("No space left on device (os error 28)"))  # of tokenizers
    rust = Exception('I/O error: IoError(Os { code: 28, kind: StorageFull, message: "No space left on device" })')
    assert is_write_failure(rust)
    assert not is_write_failure(KeyError("code"))
    assert describe_failure(KeyError("code")) == "KeyError: 'code'"
