"""The conversations of a web page's visitors, one per browser tab, all with one model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Event, Lock

from colossal_llama.chat.session import ChatSession

KEPT_CACHES = 4
"""Conversations that keep their cache; with Llama 2 7B a full one takes 2 GiB."""


class Room:
    """A tab's conversation, and its question from when it is sent until it is answered; there is one at a time.

    Args:
        session: the conversation.
    """

    def __init__(self, session: ChatSession) -> None:
        self.session = session
        self._number = 0
        self._stop: Event | None = None
        self._begun = False
        self._lock = Lock()

    def send(self) -> int:
        """Number of a new question, which waits until :meth:`begin`; 0, for none, while there is another one."""
        with self._lock:
            if self._stop is not None:
                return 0
            self._number += 1
            self._stop, self._begun = Event(), False
            return self._number

    def begin(self, number: int) -> Event | None:
        """What ends the answer to a question once it is set; None where the question was stopped while it waited."""
        with self._lock:
            if number != self._number or self._stop is None:
                return None
            self._begun = True
            return self._stop

    def end(self, number: int) -> None:
        """The question is answered."""
        with self._lock:
            if number == self._number:
                self._stop = None

    def stop(self) -> None:
        """End the answer that is being written behind its current token, or forget the question that waits."""
        with self._lock:
            if self._stop is not None:
                self._stop.set()
            if not self._begun:
                self._stop = None

    @property
    def busy(self) -> bool:
        """Whether a question waits or is being answered."""
        return self._stop is not None


class Rooms:
    """Makes a room for each key and keeps the caches of those used last.

    Args:
        new_session: makes an empty conversation.
    """

    def __init__(self, new_session: Callable[[], ChatSession]) -> None:
        self._new_session = new_session
        self._rooms: OrderedDict[str, Room] = OrderedDict()
        self._lock = Lock()

    def enter(self, key: str) -> Room:
        """The room of ``key``; a new one for a new key."""
        with self._lock:
            room = self._rooms.pop(key, None) or Room(self._new_session())
            self._rooms[key] = room
            return room

    def free_caches(self) -> None:
        """Free the caches of all conversations but the last used; to be called while no answer is being written."""
        with self._lock:
            for room in list(self._rooms.values())[:-KEPT_CACHES]:
                room.session.forget_cache()

    def leave(self, key: str) -> None:
        """End what is being written for ``key`` and forget its conversation."""
        with self._lock:
            room = self._rooms.pop(key, None)
        if room is not None:
            room.stop()

    def close(self) -> None:
        """Forget all conversations."""
        for key in list(self._rooms):
            self.leave(key)
