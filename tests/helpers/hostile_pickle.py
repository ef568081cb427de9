"""An object whose pickle runs code when it is read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


class RunsCode:
    """Makes a file when it is unpickled the usual way.

    Args:
        mark: the file.
    """

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._mark),)
