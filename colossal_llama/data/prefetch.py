"""Loading the next steps while the device computes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")

PREFETCHED_STEPS = 2
"""Steps that lie ready at most: one is enough to hide loading, the second evens out a slow read."""

_END = object()


class Prefetched(Generic[Item]):
    """The items of an iterator, in the same order, taken from it by a thread that keeps a little ahead.

    Rows come from memory-mapped files and through NumPy, which let other threads run meanwhile; so a thread is enough,
    and nothing is copied between processes.

    Attributes:
        wait_seconds: how long the last item was waited for.
    """

    def __init__(self, items: Iterator[Item]) -> None:
        self.wait_seconds = 0.0
        self._items = items
        self._ready: queue.Queue[object] = queue.Queue(PREFETCHED_STEPS)
        self._stopped = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._fill, name="prefetch", daemon=True)

    def __iter__(self) -> Iterator[Item]:
        """Yield the items; may be used once.

        Raises:
            Exception: whatever the iterator raised, after the items before it.
        """
        self._thread.start()
        try:
            while True:
                started = time.perf_counter()
                item = self._ready.get()
                self.wait_seconds = time.perf_counter() - started
                if item is _END:
                    break
                yield item  # type: ignore[misc]
            if self._error is not None:
                raise self._error
        finally:
            self._stop()

    def _fill(self) -> None:
        try:
            for item in self._items:
                if not self._put(item):
                    return
        except BaseException as error:
            self._error = error
        self._put(_END)

    def _put(self, item: object) -> bool:
        while not self._stopped.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def _stop(self) -> None:
        self._stopped.set()
        self._thread.join()
