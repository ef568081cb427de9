"""Errors that are the input's fault, and how a command reports them: one line, exit code 2, no traceback."""

import os
import sys
import time
from collections.abc import Callable

USER_ERROR_EXIT_CODE = 2


class UserError(Exception):
    """Bad input. The message names the file, line or flag, what was expected, and what to do."""


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
        The process's exit code: 0, or 2 after a :class:`UserError`.
    """
    try:
        body()
    except UserError as error:
        rank = int(os.environ.get("RANK", "0"))
        if rank != 0:
            time.sleep(3)
        prefix = "" if rank == 0 else f"[rank {rank}] "
        print(f"{prefix}error: {error}", file=sys.stderr, flush=True)
        return USER_ERROR_EXIT_CODE
    return 0
