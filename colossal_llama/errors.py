"""Ends of a command that are no fault of the program, and how it reports them: one line, an exit code, no traceback."""

import os
import sys
import time
from collections.abc import Callable

USER_ERROR_EXIT_CODE = 2
PREEMPTED_EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: nothing is wrong, run the same command again."""


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


def run_command(body: Callable[[], None]) -> int:
    """Run a command's body and turn a :class:`UserError` into one line on stderr.

    Every rank of a distributed run meets the same bad flag; rank 0 reports it. The others wait a moment,
    in which the launcher normally ends them, and speak up only if rank 0 did not fail.

    Returns:
        The process's exit code: 0, 2 after a :class:`UserError`, or 75 after :class:`PreemptedError`.
    """
    if getattr(sys.stdout, "errors", None) == "strict":
        # A terminal that is not UTF-8 would end the command at the first character that it does not have.
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        body()
    except PreemptedError as stop:
        if os.environ.get("RANK", "0") == "0":
            print(stop, file=sys.stderr, flush=True)
        return PREEMPTED_EXIT_CODE
    except UserError as error:
        rank = int(os.environ.get("RANK", "0"))
        if rank != 0:
            time.sleep(3)
        prefix = "" if rank == 0 else f"[rank {rank}] "
        print(f"{prefix}error: {error}", file=sys.stderr, flush=True)
        return USER_ERROR_EXIT_CODE
    return 0
