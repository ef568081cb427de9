"""Ends of a command that are no fault of the program, and how it reports them: one line, an exit code, no traceback."""

import errno
import os
import re
import select
import sys
import time
from collections.abc import Callable
from typing import TextIO

USER_ERROR_EXIT_CODE = 2
PREEMPTED_EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: nothing is wrong, run the same command again."""
OUT_OF_MEMORY_EXIT_CODE = 1
UNREAD_EXIT_CODE = 141
"""What a shell reports of a program that SIGPIPE ended."""

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")


class UserError(Exception):
    """Bad input. The message names the file, line or flag, what was expected, and what to do."""


class PreemptedError(Exception):
    """A signal asked a run to stop, and it has saved what it needs to go on."""


class RecordError(UserError):
    """One bad record of many; a caller may count it under ``reason`` and go on.

    Attributes:
        reason: a short category to count by, such as "not valid JSON"; the message has the particulars.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type["RecordError"], tuple[str, str]]:
        # Worker processes send it home; the default would call the class with the message alone.
        return type(self), (self.reason, str(self))


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk, a quota or a limit that is full."""

_OF_FILES = (
    *FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOENT, errno.EISDIR, errno.ENOTDIR,
    errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE, errno.ETXTBSY, errno.ENODEV,
)  # fmt: skip


def explain_os_error(error: OSError) -> str:
    """Why the system refused a file, and what to do where that is known; without the file's name."""
    reason = error.strerror or str(error)
    if error.errno in FULL:
        return f"{reason}: make room, or write to another disk"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{reason}: check the permissions"
    return reason


def system_error(error: BaseException) -> OSError | None:
    """The error of the system that ``error`` is, or that a library written in Rust speaks of; None for others."""
    if isinstance(error, OSError):
        return error
    number = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None


def _file_error(error: OSError) -> str | None:
    """The line for an error of the file system; None for other errors, which are for the program to explain."""
    if error.errno not in _OF_FILES:
        return None
    if error.filename is None:
        return f"a file cannot be written ({explain_os_error(error)})" if error.errno in FULL else None
    return f"{os.fsdecode(error.filename)}: {explain_os_error(error)}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python or torch means that there is no memory left, of the machine or of a GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY)


def run_command(body: Callable[[], None], memory_advice: str | None = None) -> int:
    """Run a command's body and turn a :class:`UserError`, or what the file system refuses, into one line on stderr.

    Every rank of a distributed run meets the same bad flag; rank 0 reports it. The others wait a moment,
    in which the launcher normally ends them, and speak up only if rank 0 did not fail.

    A reader that closes the standard output early, as ``| head -1`` does, ends the command quietly.

    Args:
        body: does the work.
        memory_advice: what to do when memory is exhausted; None leaves such an error as it is.

    Returns:
        The process's exit code: 0, 2 after a :class:`UserError` or an error of the file system, 75 after
        :class:`PreemptedError`, 1 when memory is exhausted, or 141 when nobody reads the output any more.
    """
    if getattr(sys.stdout, "errors", None) == "strict":
        # A terminal that is not UTF-8 would end the command at the first character that it does not have.
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    code = 0
    try:
        try:
            code = _run(body, memory_advice)
        finally:
            # Also behind --help, which exits: a failure at the interpreter's end could not be caught.
            _flush(sys.stdout)
    except BrokenPipeError:
        if not _silence_unread():
            raise
        return UNREAD_EXIT_CODE
    except OSError as error:
        if error.errno not in FULL or sys.stdout is None:
            raise
        _send_nowhere(sys.stdout)
        if code == 0:  # otherwise the reason was said when the work met it
            _report(f"the standard output cannot be written ({explain_os_error(error)})")
        return USER_ERROR_EXIT_CODE
    return code


def _run(body: Callable[[], None], memory_advice: str | None) -> int:
    try:
        body()
    except PreemptedError as stop:
        if os.environ.get("RANK", "0") == "0":
            print(stop, file=sys.stderr, flush=True)
        return PREEMPTED_EXIT_CODE
    except UserError as error:
        if isinstance(error.__cause__, BrokenPipeError):
            raise error.__cause__ from None
        _report(str(error))
        return USER_ERROR_EXIT_CODE
    except (MemoryError, RuntimeError) as error:
        if memory_advice is None or not is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split(". ")[0].split())[:200] or "no memory left"
        _report(f"out of memory ({reason}); {memory_advice}")
        return OUT_OF_MEMORY_EXIT_CODE
    except OSError as error:
        line = _file_error(error)
        if line is None:
            raise
        _report(line)
        return USER_ERROR_EXIT_CODE
    return 0


def _report(message: str) -> None:
    rank = int(os.environ.get("RANK", "0"))
    if rank != 0:
        time.sleep(3)
    prefix = "" if rank == 0 else f"[rank {rank}] "
    print(f"{prefix}error: {message}", file=sys.stderr, flush=True)


def _flush(stream: TextIO | None) -> None:
    if stream is not None and not stream.closed:
        stream.flush()


def _silence_unread() -> bool:
    """Send the standard streams that nobody reads any more to nowhere, so that Python's end is quiet.

    Returns:
        Whether there was one; otherwise another pipe broke.
    """
    unread = [stream for stream in (sys.stdout, sys.stderr) if stream is not None and _is_unread(stream)]
    for stream in unread:
        _send_nowhere(stream)
    return bool(unread)


def _send_nowhere(stream: TextIO) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _is_unread(stream: TextIO) -> bool:
    poll = select.poll()
    try:
        poll.register(stream.fileno(), select.POLLOUT)
    except (OSError, ValueError):  # no file behind it, as in tests
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
