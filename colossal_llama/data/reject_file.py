"""The list of rejected records, written as they are met: memory holds none of them."""

import json
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TextIO

from colossal_llama.data.readers import Reject


class RejectFile:
    """Writes rejected records, one JSON object a line: where, reason, detail, raw. Without any, no file.

    Args:
        path: the file; one of a killed run is replaced.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None
        path.unlink(missing_ok=True)

    def __enter__(self) -> "RejectFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, reject: Reject) -> None:
        """Add a record."""
        self._open().write(json.dumps(asdict(reject), ensure_ascii=False) + "\n")

    def append(self, path: Path) -> None:
        """Add the records of another such file, if there is one."""
        if path.exists():
            with path.open(encoding="utf-8") as file:
                self._open().writelines(file)

    def _open(self) -> TextIO:
        if self._file is None:
            # The name of a file need not be UTF-8; what of it is not becomes an escape of JSON.
            self._file = self._path.open("w", encoding="utf-8", errors="backslashreplace")
        return self._file
