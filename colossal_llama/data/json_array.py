"""Cutting a JSON array into its elements as a stream, so that a file need not fit into memory.

The scanner knows strings and brackets only; whether an element is a valid object is for the one who parses it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

_STRUCTURE = re.compile(rb'["\[\]{},]')
_NESTED_STRUCTURE = re.compile(rb'["\[\]{}]')
_STRING_END = re.compile(rb'["\\]')
_BLANK = b" \t\r\n"
_OPENING = {ord("}"): ord("{"), ord("]"): ord("[")}


class ArrayError(ValueError):
    """The bytes are not one JSON array; the message says where."""


@dataclass(slots=True)
class _Scanner:
    """The state between two blocks. ``open`` is the stack of open brackets."""

    begin: int
    offset: int = 0
    line: int = 1
    open: bytearray = field(default_factory=bytearray)
    in_string: bool = False
    escaped: bool = False
    closed: bool = False

    def fail(self, reason: str, block: bytes = b"", position: int = 0) -> ArrayError:
        line = self.line + block.count(b"\n", 0, position)
        return ArrayError(f"not valid JSON at line {line} (byte {self.offset + position + 1}): {reason}")

    def feed(self, block: bytes) -> Iterator[tuple[int, int]]:
        """Yield the offsets (start, end) of the elements that end in this block."""
        position = 0
        while position < len(block):
            if self.in_string:
                position = self._string(block, position)
                continue
            if self.closed:
                self._nothing_left(block, position)
                break
            pattern = _STRUCTURE if len(self.open) <= 1 else _NESTED_STRUCTURE
            found = pattern.search(block, position)
            if found is None:
                break
            position = found.end()
            yield from self._structure(block, found.start())
        self.line += block.count(b"\n")
        self.offset += len(block)

    def _string(self, block: bytes, position: int) -> int:
        if self.escaped:
            self.escaped = False
            return position + 1
        found = _STRING_END.search(block, position)
        if found is None:
            return len(block)
        if found.group() == b'"':
            self.in_string = False
        else:
            self.escaped = True
        return found.end()

    def _structure(self, block: bytes, position: int) -> Iterator[tuple[int, int]]:
        character = block[position]
        if character == ord('"'):
            self.in_string = True
        elif character in b"[{":
            self.open.append(character)
            if len(self.open) == 1:
                self.begin = self.offset + position + 1
        elif character == ord(","):
            yield self._element(position)
        else:
            if not self.open or self.open[-1] != _OPENING[character]:
                raise self.fail(f"{chr(character)!r} closes nothing", block, position)
            self.open.pop()
            if not self.open:
                self.closed = True
                yield self._element(position)

    def _element(self, position: int) -> tuple[int, int]:
        start, end = self.begin, self.offset + position
        self.begin = end + 1
        return start, end

    def _nothing_left(self, block: bytes, position: int) -> None:
        rest = block[position:].lstrip(_BLANK)
        if rest:
            raise self.fail("more text after the end of the array", block, len(block) - len(rest))

    def finish(self) -> None:
        if not self.closed:
            inside = "inside a string" if self.in_string else "before the array's last ']'"
            raise self.fail(f"the file ends {inside}; is it cut off?")


def scan_array(file: BinaryIO, start: int, block_bytes: int) -> Iterator[tuple[int, int]]:
    """The elements of the array that begins at byte ``start``, which must be ``[``.

    Args:
        file: seekable, opened in binary mode.
        start: offset of the opening bracket.
        block_bytes: how much is read at a time.

    Returns:
        Offsets of start and end of each element, white space around it included. An empty array has one
        element, which is blank.

    Raises:
        ArrayError: brackets do not match, the file is cut off, or text follows the array.
    """
    file.seek(0)
    lines = file.read(start).count(b"\n")
    scanner = _Scanner(begin=start, offset=start, line=1 + lines)
    while block := file.read(block_bytes):
        yield from scanner.feed(block)
    scanner.finish()
