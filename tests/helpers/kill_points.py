"""Killing a process before the N-th change that it makes to files below a folder.

A change is everything that Python does to a file system: opening a file for writing, each write, flush, truncation and
closing of it, renaming and deleting, making and removing folders. Between two changes nothing changes, so a process
killed before each of them in turn has been killed in every state that its files were ever in. What libraries write
without Python (safetensors' Rust code, torch's C++ code) is not seen; it goes into folders that are renamed when whole.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

PATH_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")
FILE_METHODS = ("write", "writelines", "flush", "truncate", "close", "__exit__")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class KillPoint:
    """Kills this process before its ``number``-th change below ``folder``.

    Args:
        number: counted from 1.
        folder: whose changes count.
    """

    def __init__(self, number: int, folder: Path) -> None:
        self._number = number
        self._folder = str(folder.resolve())
        self._seen = 0

    def install(self) -> None:
        """Watch this process and all threads that it starts from now on."""
        sys.addaudithook(self._audit)
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)

    def _count(self) -> None:
        self._seen += 1
        if self._seen == self._number:
            os.kill(os.getpid(), signal.SIGKILL)

    def _is_below(self, path: Any) -> bool:
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        return isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(self._folder + os.sep)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in PATH_EVENTS or not any(self._is_below(one) for one in arguments[:2]):
            return
        if event != "open" or _opens_for_writing(*arguments[1:]):
            self._count()

    def _profile(self, frame: Any, event: str, function: Any) -> None:
        if event != "c_call" or getattr(function, "__name__", "") not in FILE_METHODS:
            return
        owner = getattr(function, "__self__", None)
        is_written = isinstance(owner, io.IOBase) and not owner.closed and owner.writable()
        if is_written and self._is_below(getattr(owner, "name", None)):
            self._count()


def _opens_for_writing(mode: Any, flags: Any) -> bool:
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & WRITING)
