"""Texts that occurred before: exact ones by a hash, near ones by MinHash signatures and locality-sensitive hashing.

Keys and signatures depend on nothing but the text and the settings, so worker processes can make them; the
indices are asked in the order of the input, by one process, and the first of several equal texts stays. So the
result does not depend on the number of workers.
"""

import unicodedata
from dataclasses import dataclass

import numpy as np
import xxhash

from colossal_llama.data.text_units import ngram_hashes, normalized_units
from colossal_llama.errors import UserError

KEY_BYTES = 16
"""Bytes of an exact key: with a billion texts the chance of one wrong match is 1e-21."""

BAND_BYTES = 8
"""Bytes of a band's key: with a billion texts of ten bands a new text meets a wrong one with chance 1e-8."""

_SEED = 1
_SCHEME = "affine32"
_SHINGLES_AT_ONCE = 2048  # times 128 permutations of 4 bytes: stays in the processor's cache


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


@dataclass(frozen=True)
class NearDuplicateSettings:
    """What counts as nearly the same.

    Attributes:
        threshold: Jaccard similarity of the texts' sets of n-grams from which on a text should be found,
            between 0 and 1; found texts scatter around it (see :meth:`NearDuplicateIndex.probability`).
        permutations: length of a signature; more of them scatter less and take longer.
        ngram: units in an n-gram: words, or characters of scripts without spaces.
    """

    threshold: float = 0.8
    permutations: int = 128
    ngram: int = 5

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing.

        Raises:
            ValueError: a threshold outside of 0 to 1, fewer than 2 permutations, or no unit in an n-gram.
        """
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold must be above 0 and at most 1, not {self.threshold}")
        if self.permutations < 2:
            raise ValueError(f"permutations must be at least 2, not {self.permutations}")
        if self.ngram < 1:
            raise ValueError(f"ngram must be at least 1, not {self.ngram}")


def require_datasketch(flag: str) -> None:
    """Refuse to look for near duplicates without the library that does it.

    Raises:
        UserError: datasketch is not installed; the message names ``flag``.
    """
    try:
        import datasketch  # noqa: F401
    except ImportError as error:
        raise UserError(f"{flag}: needs the package datasketch; pip install 'datasketch>=2,<3'") from error


class NearDuplicateSigner:
    """Makes MinHash signatures. Can be pickled; every process makes the same ones."""

    def __init__(self, settings: NearDuplicateSettings) -> None:
        from datasketch import MinHash

        self._ngram = settings.ngram
        # The permutations follow from a fixed seed, and making them costs more than a short text's signature.
        self._permutations = MinHash(settings.permutations, seed=_SEED, scheme=_SCHEME).permutations

    def signature(self, text: str) -> np.ndarray:
        """The MinHash signature (Broder 1997) of the text's set of n-grams, uint32 [permutations].

        Units are compared in lower case and NFKC form, without punctuation. A text of fewer units than an
        n-gram counts as one n-gram; one without any unit is like its exact copies only.
        """
        from datasketch import MinHash

        units = normalized_units(text)
        if len(units):
            hashes = ngram_hashes(units.hashes, min(self._ngram, len(units)))
        else:
            hashes = np.frombuffer(exact_key(text)[:8], dtype="<u8")
        shingles = np.unique((hashes >> np.uint64(32)).astype(np.uint32))
        count = self._permutations.shape[1]
        minhash = MinHash(count, seed=_SEED, hashfunc=int, permutations=self._permutations, scheme=_SCHEME)
        for start in range(0, len(shingles), _SHINGLES_AT_ONCE):
            minhash.update_batch(shingles[start : start + _SHINGLES_AT_ONCE].tolist())
        return minhash.hashvalues


class NearDuplicateIndex:
    """Locality-sensitive hashing: a text that shares a whole band of its signature with an earlier one is near it.

    The method is that of Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", chapter 3. Number and height
    of the bands are those that datasketch computes for the threshold. Its own index is not used, because it keeps
    a Python set per band and text; this one keeps 8 bytes per band in a :class:`KeySet`. With the default settings
    (9 bands) a text takes 97 to 144 bytes (121 measured), against 3,100 in datasketch.
    """

    def __init__(self, settings: NearDuplicateSettings) -> None:
        from datasketch import MinHashLSH

        optimum = MinHashLSH(threshold=settings.threshold, num_perm=settings.permutations)
        self.bands: int = optimum.b
        self.rows: int = optimum.r
        self._permutations = settings.permutations
        # One set for all bands: the band's number is part of the key.
        self._keys = KeySet(BAND_BYTES)

    def probability(self, similarity: float) -> float:
        """Chance that a text of this Jaccard similarity to an earlier one is found."""
        return 1 - (1 - similarity**self.rows) ** self.bands

    def memory_bytes(self) -> int:
        """Memory of the index."""
        return self._keys.table_bytes()

    def is_duplicate(self, signature: np.ndarray) -> bool:
        """Whether a text like this one came before; remembers it if not.

        Args:
            signature: of :meth:`NearDuplicateSigner.signature` with the same settings.

        Raises:
            ValueError: the signature has another length.
        """
        if signature.shape != (self._permutations,):
            raise ValueError(f"a signature of shape {signature.shape}, expected ({self._permutations},)")
        keys = [self._band_key(signature, band) for band in range(self.bands)]
        if any(key in self._keys for key in keys):
            return True
        for key in keys:
            self._keys.add(key)
        return False

    def _band_key(self, signature: np.ndarray, band: int) -> bytes:
        content = signature[band * self.rows : (band + 1) * self.rows].astype("<u4", copy=False).tobytes()
        return xxhash.xxh3_64_digest(content, seed=band)
