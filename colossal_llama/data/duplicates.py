"""Texts that equal an earlier one, told by a hash."""

import unicodedata

import xxhash

KEY_BYTES = 16
"""Bytes of an exact key: with a billion texts the chance of one wrong match is 1e-21."""


def exact_key(text: str) -> bytes:
    """128-bit hash of the text's NFC form with white space at the ends cut and runs of it collapsed.

    Raises:
        UnicodeEncodeError: the text holds half of a surrogate pair.
    """
    collapsed = " ".join(unicodedata.normalize("NFC", text).split())
    return xxhash.xxh3_128_digest(collapsed.encode("utf-8"))


class KeySet:
    """A set of keys of one size, in an open-addressing hash table without an object per key.

    A key of k bytes takes 1.3 k to 2 k bytes and, while the table grows, 1.3 k more; in a Python set a key of 16
    bytes takes more than 100. Keys must be hashes: their first 8 bytes say where they go.
    """

    _FULL = 0.75
    _GROWTH = 1.5

    def __init__(self, key_bytes: int) -> None:
        self._width = key_bytes
        self._empty = bytes(key_bytes)
        self._slots = 1 << 10
        self._table = bytearray(self._slots * key_bytes)
        self._used = 0

    def __len__(self) -> int:
        return self._used

    def __contains__(self, key: bytes) -> bool:
        return self._find(self._storable(key))[1]

    def table_bytes(self) -> int:
        """Memory of the table."""
        return len(self._table)

    def add(self, key: bytes) -> bool:
        """Add a key; False if it was there already."""
        key = self._storable(key)
        place, found = self._find(key)
        if found:
            return False
        self._table[place : place + self._width] = key
        self._used += 1
        if self._used > self._slots * self._FULL:
            self._grow()
        return True

    def _storable(self, key: bytes) -> bytes:
        # Zeros mark a free slot; the one key that looks like it shares the place of another.
        return key if key != self._empty else b"\x01" + key[1:]

    def _find(self, key: bytes) -> tuple[int, bool]:
        """Offset of the key, or of the free slot where it belongs, and whether it is there."""
        width, table = self._width, self._table
        place = int.from_bytes(key[:8], "little") % self._slots * width
        while (entry := table[place : place + width]) != key:
            if entry == self._empty:
                return place, False
            place = (place + width) % len(table)
        return place, True

    def _grow(self) -> None:
        old = self._table
        self._slots = int(self._slots * self._GROWTH)
        self._table = bytearray(self._slots * self._width)
        for start in range(0, len(old), self._width):
            key = bytes(old[start : start + self._width])
            if key != self._empty:
                place, _ = self._find(key)
                self._table[place : place + self._width] = key


class ExactDuplicateIndex:
    """Remembers the keys of the texts seen so far: 21 to 32 bytes per text, and as much again while it grows."""

    def __init__(self) -> None:
        self._keys = KeySet(KEY_BYTES)

    def is_duplicate(self, key: bytes) -> bool:
        """Whether the :func:`exact_key` came before; remembers it if not."""
        return not self._keys.add(key)
