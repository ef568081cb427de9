"""The conversations of a web page's visitors, one per browser tab, all with one model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

from colossal_llama.chat.session import ChatSession

KEPT_CACHES = 4
"""Conversations that keep their cache; with Llama 2 7B a full one takes 2 GiB."""


class Rooms:
    """Makes a conversation for each key and keeps the caches of those used last.

    Args:
        new_session: makes an empty conversation.
    """

    def __init__(self, new_session: Callable[[], ChatSession]) -> None:
        self._new_session = new_session
        self._sessions: OrderedDict[str, ChatSession] = OrderedDict()
        self._lock = Lock()

    def enter(self, key: str) -> ChatSession:
        """The conversation of ``key``; a new one for a new key."""
        with self._lock:
            session = self._sessions.pop(key, None) or self._new_session()
            self._sessions[key] = session
            return session

    def free_caches(self) -> None:
        """Free the caches of all conversations but the last used; to be called while no answer is being written."""
        with self._lock:
            for session in list(self._sessions.values())[:-KEPT_CACHES]:
                session.forget_cache()

    def leave(self, key: str) -> None:
        """End what is being written for ``key`` and forget its conversation."""
        with self._lock:
            session = self._sessions.pop(key, None)
        if session is not None:
            session.stop()

    def close(self) -> None:
        """Forget all conversations."""
        for key in list(self._sessions):
            self.leave(key)
