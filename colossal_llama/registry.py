"""A table of named implementations: the one place where a plugin, template or optimizer is added."""

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from colossal_llama.errors import UserError

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps names to implementations; refuses duplicates and lists what it knows when a name is unknown."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> T:
        """Add ``entry`` under ``name``.

        Raises:
            ValueError: the name is taken.
        """
        if name in self._entries:
            raise ValueError(f"{self._kind} {name!r} is registered twice")
        self._entries[name] = entry
        return entry

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator form of :meth:`add`."""
        return lambda entry: self.add(name, entry)

    def get(self, name: str) -> T:
        """The entry called ``name``.

        Raises:
            UserError: no such entry; the message lists the known names.
        """
        if name not in self._entries:
            raise UserError(f"unknown {self._kind} {name!r}; known: {', '.join(self._entries)}")
        return self._entries[name]

    def names(self) -> list[str]:
        """All names, in order of registration."""
        return list(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)
