"""Runs trainings in processes forked from one that has imported everything already.

Importing torch, transformers and colossalai takes each process ten times as long as training a tiny model, and the
distributed tests start hundreds of processes. Every training still runs in fresh processes of its own: the server
itself imports only, and never launches, patches or seeds anything. The programs' real launchers (torchrun and
``colossalai run``) are covered by the end-to-end tests.

Protocol: one JSON request a line on stdin (arguments, processes, environment, stdout, stderr, timeout, kill), one JSON
answer a line on stdout (returncode). ``kill`` is None or ``{"file": PATH, "seconds": S}``: all ranks get SIGKILL that
many seconds after the file was written to for the first time since the start.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from colossal_llama.stages.launcher import free_port

ROOT = Path(__file__).resolve().parents[2]
POLL_SECONDS = 0.02
PACKAGES = ("checkpoint", "data", "distributed", "metrics", "model", "optim", "plugins", "tokenizer")


def import_everything() -> None:
    """Import what a training imports; the project's own modules import the heavy ones inside functions."""
    for name in ("torch", "torch.distributed", "transformers", "datasets", "tensorboard", "peft"):
        importlib.import_module(name)
    for name in ("colossalai", "colossalai.booster.plugin", "colossalai.nn.optimizer", "transformers.models.llama"):
        importlib.import_module(name)
    importlib.import_module("transformers.models.llama.modeling_llama")
    for package in PACKAGES:
        module = importlib.import_module(f"colossal_llama.{package}")
        for entry in pkgutil.iter_modules(module.__path__):
            importlib.import_module(f"{module.__name__}.{entry.name}")
    importlib.import_module("tests.helpers.train_worker")


def run_rank(request: dict[str, Any], rank: int, port: int) -> NoReturn:
    """Be one rank of a training; never returns."""
    code = 1
    try:
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            file = os.open(request[name], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.dup2(file, descriptor)
        size = str(request["processes"])
        os.environ |= request["environment"] | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": size,
            "LOCAL_WORLD_SIZE": size,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        from tests.helpers import train_worker

        sys.argv = ["train_worker.py", *request["arguments"]]
        train_worker.install_hooks()
        code = train_worker.command.main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def run(request: dict[str, Any]) -> int:
    """Fork the ranks and wait; when one fails the others are stopped, as torchrun does."""
    port = free_port()
    waiting = set()
    for rank in range(request["processes"]):
        pid = os.fork()
        if pid == 0:
            run_rank(request, rank, port)
        waiting.add(pid)
    deadline = time.monotonic() + request["timeout"]
    kill = KillOrder(**request["kill"]) if request["kill"] else None
    failed = 0
    while waiting:
        for pid in list(waiting):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                waiting.remove(pid)
                failed = failed or os.waitstatus_to_exitcode(status)
        if kill is not None and kill.is_due():
            _kill(waiting)
            return -signal.SIGKILL
        if failed or time.monotonic() > deadline:
            failed = failed or 1
            _stop(waiting)
            break
        time.sleep(POLL_SECONDS)
    return failed


class KillOrder:
    """When to kill a training: ``seconds`` after ``file`` was first written to."""

    def __init__(self, file: str, seconds: float) -> None:
        self._file = Path(file)
        self._seconds = seconds
        self._before = self._modified()
        self._moment: float | None = None

    def _modified(self) -> int:
        return self._file.stat().st_mtime_ns if self._file.exists() else 0

    def is_due(self) -> bool:
        """Whether the moment has come."""
        if self._moment is None and self._modified() != self._before:
            self._moment = time.monotonic() + self._seconds
        return self._moment is not None and time.monotonic() >= self._moment


def _stop(pids: set[int]) -> None:
    # The others may be about to report the same error themselves.
    time.sleep(0.5)
    _kill(pids)


def _kill(pids: set[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for pid in pids:
        os.waitpid(pid, 0)


def main() -> None:
    """Answer requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print while they are imported is no answer
    os.chdir(ROOT)
    import_everything()
    for line in sys.stdin:
        returncode = run(json.loads(line))
        answers.write(json.dumps({"returncode": returncode}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
