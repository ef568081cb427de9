"""Runs commands in processes forked from one that has imported everything, each in a state of its own.

A command is called as ``main(arguments)`` in a fresh child, with its output in pipes. A child may be denied what root
is allowed (so that files without permissions cannot be read, whoever runs the tests) and the writing of long files
(which is how a full disk looks to a program).
"""

from __future__ import annotations

import ctypes
import importlib
import os
import pkgutil
import resource
import selectors
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from colossal_llama.stages.launcher import free_port

TIMEOUT_SECONDS = 120
HUNG = "still running after the time limit"
PACKAGES = (
    "chat", "checkpoint", "commands", "comparison", "config", "data", "distributed", "evaluation", "generation",
    "metrics", "model", "optim", "planning", "plugins", "stages", "tokenizer",
)  # fmt: skip
LIBRARIES = (
    "torch", "torch.distributed", "transformers", "transformers.models.llama.modeling_llama", "datasets", "tensorboard",
    "peft", "colossalai", "colossalai.booster.plugin", "colossalai.nn.optimizer", "lm_eval.models.huggingface",
    "matplotlib.figure", "sentencepiece", "pyarrow.parquet",
)  # fmt: skip
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
}
"""Of one process without a launcher: training commands find themselves alone."""


@dataclass(frozen=True)
class Run:
    """One call of a command.

    Attributes:
        main: what is called; returns the exit code.
        arguments: that it is called with.
        folder: to run in.
        stdin: what it reads from the terminal.
        file_limit: no file may become longer than this, in bytes; None: no limit.
        as_plain_user: permissions hold for root too.
        opened_below: report which files below this folder Python opens; None: do not.
    """

    main: Callable[[list[str]], int]
    arguments: tuple[str, ...]
    folder: Path
    stdin: str = ""
    file_limit: int | None = None
    as_plain_user: bool = False
    opened_below: Path | None = None


@dataclass
class Done:
    """How a run ended: exit code (negative: the signal), what it printed, its seconds, and the files it opened."""

    code: int = 0
    stdout: str = ""
    stderr: str = ""
    seconds: float = 0.0
    opened: list[str] = field(default_factory=list)


def import_everything() -> None:
    """Import what the commands import, the project's own modules too: they import the heavy ones inside functions."""
    os.environ |= ENVIRONMENT
    for name in LIBRARIES:
        importlib.import_module(name)
    for package in PACKAGES:
        module = importlib.import_module(f"colossal_llama.{package}")
        for entry in pkgutil.iter_modules(module.__path__):
            importlib.import_module(f"{module.__name__}.{entry.name}")


def run_all(runs: Iterable[Run], jobs: int) -> Iterator[tuple[int, Done]]:
    """Run everything, ``jobs`` at a time; yields number and outcome of each as it ends."""
    waiting = iter(enumerate(runs))
    active: dict[int, _Child] = {}
    with selectors.DefaultSelector() as selector:
        while True:
            while len(active) < jobs and (following := next(waiting, None)) is not None:
                number, run = following
                active[number] = _Child(number, run, selector)
            if not active:
                return
            for key, _ in selector.select(timeout=1.0):
                child, name = key.data
                child.read(name)
            for number, child in list(active.items()):
                if child.has_ended():
                    del active[number]
                    yield number, child.finish()


class _Child:
    """A forked process and the pipes that it writes to."""

    def __init__(self, number: int, run: Run, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._started = time.monotonic()
        self._texts: dict[str, list[bytes]] = {"stdout": [], "stderr": [], "opened": []}
        self._hung = False
        pipes = {name: os.pipe() for name in self._texts}
        self._pid = os.fork()
        if self._pid == 0:
            _be_child(run, {name: ends[1] for name, ends in pipes.items()})
        self._open = {}
        for name, (reading, writing) in pipes.items():
            os.close(writing)
            self._open[name] = reading
            selector.register(reading, selectors.EVENT_READ, (self, name))

    def read(self, name: str) -> None:
        """Take what is in a pipe, or close it at its end."""
        block = os.read(self._open[name], 65_536)
        if block:
            self._texts[name].append(block)
            return
        self._selector.unregister(self._open[name])
        os.close(self._open.pop(name))

    def has_ended(self) -> bool:
        """Whether all pipes are closed, which a process that lives on does not do."""
        if time.monotonic() - self._started > TIMEOUT_SECONDS and not self._hung:
            self._hung = True
            os.killpg(self._pid, signal.SIGKILL)
        return not self._open

    def finish(self) -> Done:
        """Wait for the process and say how it ended."""
        _, status = os.waitpid(self._pid, 0)
        text = {name: b"".join(blocks).decode("utf-8", "replace") for name, blocks in self._texts.items()}
        stderr = text["stderr"] + (HUNG if self._hung else "")
        seconds = time.monotonic() - self._started
        return Done(os.waitstatus_to_exitcode(status), text["stdout"], stderr, seconds, text["opened"].splitlines())


def _be_child(run: Run, pipes: dict[str, int]) -> NoReturn:
    code = 1
    try:
        os.setpgid(0, 0)
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(pipes[name], descriptor)
        # The parent's streams have buffers and places of their own.
        sys.stdout, sys.stderr = open(1, "w", encoding="utf-8"), open(2, "w", encoding="utf-8")  # noqa: SIM115
        _give_stdin(run.stdin)
        os.chdir(run.folder)
        os.environ["MASTER_PORT"] = str(free_port())
        opened = _watch_opening(run.opened_below) if run.opened_below else set()
        if run.as_plain_user:
            give_up_rights()
        if run.file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (run.file_limit, run.file_limit))
        sys.argv = ["command", *run.arguments]
        code = run.main(list(run.arguments))
        os.write(pipes["opened"], "".join(f"{name}\n" for name in sorted(opened)).encode())
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                code = code or 1
        os._exit(code)


def _give_stdin(text: str) -> None:
    reading, writing = os.pipe()
    os.write(writing, text.encode())
    os.close(writing)
    os.dup2(reading, 0)
    os.close(reading)
    sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115


def _watch_opening(folder: Path) -> set[str]:
    """The files below ``folder`` that Python opens from now on, by their paths below it."""
    opened: set[str] = set()
    start = f"{folder}{os.sep}"

    def hook(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            path = os.path.abspath(os.fsdecode(arguments[0]))
            if path.startswith(start) and os.path.isfile(path):
                opened.add(path[len(start) :])

    sys.addaudithook(hook)
    return opened


CAPABILITY_VERSION = 0x20080522
READ_AND_WRITE_ANYTHING = (1 << 1) | (1 << 2)
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH of capabilities(7)."""


def give_up_rights() -> None:
    """Have permissions of files hold for this process, though it may be root's (capset(2); Linux)."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    for place in range(3):
        sets[place] &= ~READ_AND_WRITE_ANYTHING
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")
