"""Starting ``colossalai run``, passing signals on to it, and keeping what it prints."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
TRAIN_SCRIPT = ROOT / "scripts" / "train.py"

HOST_ALLOCATOR = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
}
"""Settings of glibc's malloc that keep freed memory and use huge pages. Without them every step on a CPU returns the
gradients' memory to the kernel and faults it in again: 110,000 page faults a step of SmolLM2-135M, none with them,
and the backward pass took 3.4 instead of 2.9 seconds. Other C libraries ignore them."""

PORTS = (15_000, 32_000)
"""Below Linux's default ip_local_port_range, and above what services are usually given."""

SECONDS_TO_END = 60.0
"""What a training gets after a signal: torchrun waits 30 seconds for its processes, then kills them."""

POLL_SECONDS = 0.1
LOG_TAIL_BYTES = 65_536


@dataclass(frozen=True)
class Launcher:
    """What ``colossalai run`` is started with.

    Attributes:
        nproc_per_node: processes on each host.
        num_nodes: hosts.
        hostfile: file of host names, or None.
        host: host names with commas between them, or None.
        master_addr: address of the first host, or None for its name.
        master_port: port on it; 0 for one that is free on this machine.
        ssh_port: of the other hosts, or None for ssh's own.
    """

    nproc_per_node: int
    num_nodes: int = 1
    hostfile: str | None = None
    host: str | None = None
    master_addr: str | None = None
    master_port: int = 0
    ssh_port: int | None = None

    @property
    def processes(self) -> int:
        """Processes on all hosts together."""
        return self.nproc_per_node * self.num_nodes

    def command(self, script: str, arguments: Sequence[str]) -> list[str]:
        """The program and arguments that start ``script`` on all hosts.

        ``colossalai run`` joins the script and its arguments with spaces and hands them to a shell, so they are quoted
        for that shell here.
        """
        program = str(Path(sys.executable).with_name("colossalai"))
        command = [program, "run", "--nproc_per_node", str(self.nproc_per_node)]
        if self.hostfile is not None:
            command += ["--hostfile", self.hostfile, "--num_nodes", str(self.num_nodes)]
        if self.host is not None:
            command += ["--host", self.host]
        if self.master_addr is not None:
            command += ["--master_addr", self.master_addr]
        if self.ssh_port is not None and self.num_nodes > 1:
            command += ["--ssh-port", str(self.ssh_port)]
        command += ["--master_port", str(self.master_port or free_port())]
        return [*command, script, *(shlex.quote(argument) for argument in arguments)]


def free_port() -> int:
    """A port that nothing on this machine listens on.

    Not one of those that the kernel hands out: an outgoing connection could get it before the rendezvous listens there.
    """
    while True:
        port = random.SystemRandom().randrange(*PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def training_environment(processes: int) -> dict[str, str]:
    """Environment variables for ``processes`` trainings on this machine, without those that are set already."""
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    wanted = HOST_ALLOCATOR | {"OMP_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}
    return {name: value for name, value in wanted.items() if name not in os.environ}


def command_environment(extra: dict[str, str]) -> dict[str, str]:
    """This process's environment with ``extra``, and this Python's programs first in the PATH (torchrun is one)."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return os.environ | {"PATH": path} | extra


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: its exit code; negative if a signal ended it.
        signal: the signal that this process got and passed on, or None.
    """

    code: int
    signal: int | None


def run_logged(command: Sequence[str], log: Path, environment: dict[str, str], keep_open: Sequence[int] = ()) -> Ended:
    """Run a command, show what it prints and append it to ``log``; SIGINT and SIGTERM are passed on to it.

    The command and all it started on this machine have ended when this returns. After a signal they get
    :data:`SECONDS_TO_END` for that, unless a second signal comes.

    Args:
        command: program and arguments.
        log: file that the output is appended to.
        environment: of the command.
        keep_open: file descriptors that the command inherits.
    """
    with log.open("ab") as file:
        with _SignalRelay() as relay:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=keep_open,
                start_new_session=True,  # a terminal's Ctrl-C reaches this process alone, which passes it on once
            )
            relay.watch(process)
            pump = threading.Thread(target=_copy_output, args=(process.stdout, file), daemon=True)
            pump.start()
            code = relay.wait()
        pump.join(5.0)
    return Ended(code, relay.signal)


def _copy_output(source: IO[bytes], log: IO[bytes]) -> None:
    while chunk := source.read1():  # type: ignore[attr-defined]
        log.write(chunk)
        log.flush()
        with contextlib.suppress(OSError):  # whoever read it has gone; the training goes on and the log has it all
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()


class _SignalRelay:
    """Passes SIGINT and SIGTERM on to a process and everything below it, while it is entered.

    torchrun starts its processes in sessions of their own and ends them itself when it gets a signal; the launcher
    above it does not wait for that, so its descendants are remembered when the signal comes and waited for here.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._family: list[psutil.Process] = []
        self._old: dict[int, Any] = {}
        self.signal: int | None = None

    def __enter__(self) -> _SignalRelay:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._old[number] = signal.signal(number, self._pass_on)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            self._kill_family()
            return
        self.signal = number
        if self._process is not None:
            self._tell(self._process, number)

    def watch(self, process: subprocess.Popen[bytes]) -> None:
        """Pass signals on to ``process`` from now on, and one that came while it was being started."""
        self._process = process
        if self.signal is not None:
            self._tell(process, self.signal)

    def _tell(self, process: subprocess.Popen[bytes], number: int) -> None:
        try:
            own = psutil.Process(process.pid)
            self._family = [own, *own.children(recursive=True)]
            os.killpg(process.pid, number)
        except (psutil.NoSuchProcess, ProcessLookupError):
            pass  # it has ended by itself

    def wait(self) -> int:
        """Wait for the process, and after a signal for all it had started; what is left after a while is killed.

        Returns:
            The process's exit code.
        """
        assert self._process is not None
        deadline = None
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=POLL_SECONDS)
            if self.signal is not None:
                deadline = deadline or time.monotonic() + SECONDS_TO_END
                if time.monotonic() > deadline:
                    self._kill_family()
            if self._process.returncode is not None and not any(_lives(member) for member in self._family):
                return self._process.returncode
            if self._process.returncode is not None:
                time.sleep(POLL_SECONDS)

    def _kill_family(self) -> None:
        for member in self._family:
            if _lives(member):
                member.kill()


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def training_exit_code(log: Path, start: int) -> int | None:
    """The exit code of the first training process that failed, as torchrun reports it in the log's end, or None.

    ``colossalai run`` itself gives 1 whatever the training's exit code is.

    Args:
        log: file that the run's output was appended to.
        start: its size before.
    """
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - LOG_TAIL_BYTES))
        tail = file.read().decode("utf-8", errors="replace")
    found = re.findall(r"exitcode\s*:\s*(-?\d+)", tail)
    return int(found[-1]) if found else None
