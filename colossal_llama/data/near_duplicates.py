"""Texts that are nearly equal to an earlier one: MinHash signatures find candidates, their n-grams decide.

Signatures and shingles (hashes of n-grams) depend on nothing but the text and the settings, so worker processes can
make them; the index is asked in the order of the input, by one process, and the first of several similar texts stays.
So the result does not depend on the number of workers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from colossal_llama.data.duplicates import exact_key
from colossal_llama.data.text_units import ngram_hashes, normalized_units
from colossal_llama.errors import UserError

CANDIDATE_RECALL = 0.98
"""Chance that a text whose similarity to an earlier one is just the threshold becomes a candidate."""

MOST_IN_A_BAND = 64
"""Texts that are remembered by the same band: templates with thousands of different fillings would all be candidates
for each other."""

MOST_COMPARED = 16
"""Candidates whose n-grams are compared with those of a text, the most similar by their signatures first."""

_SEED = 1
_SCHEME = "affine32"
_SHINGLES_AT_ONCE = 2048  # times 128 permutations of 4 bytes: stays in the processor's cache
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_BYTE_MULTIPLIER = np.uint32(0x9E3779B1)
_FULL = 0.7
_GROWTH = 1.5
_ENTRIES_AT_ONCE = 1 << 20
_WINDOW = np.arange(16)
"""Neighbouring places of the table that are looked at together."""


@dataclass(frozen=True)
class NearDuplicateSettings:
    """What counts as nearly the same.

    Attributes:
        threshold: Jaccard similarity of the texts' sets of n-grams from which on a text is a near duplicate, above 0
            and at most 1.
        permutations: length of a signature; with more of them fewer near duplicates are missed, and it takes longer.
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

    def shingles(self, text: str) -> np.ndarray:
        """Hashes of the text's n-grams, each once, in ascending order: uint32 ``[n-grams]``.

        Units are compared in lower case and NFKC form, without punctuation. A text of fewer units than an
        n-gram counts as one n-gram; one without any unit is like its exact copies only.
        """
        units = normalized_units(text)
        if len(units):
            hashes = ngram_hashes(units.hashes, min(self._ngram, len(units)))
        else:
            hashes = np.frombuffer(exact_key(text)[:8], dtype="<u8")
        return np.unique((hashes >> np.uint64(32)).astype(np.uint32))

    def signature(self, shingles: np.ndarray) -> np.ndarray:
        """The MinHash signature (Broder 1997) of a set of n-grams, 8 bits of each value: uint8 ``[permutations]``.

        The share of equal bytes of two signatures estimates the sets' Jaccard similarity J: it is J + (1 - J) / 256
        (b-bit minwise hashing, Li and Koenig 2010).
        """
        from datasketch import MinHash

        count = self._permutations.shape[1]
        minhash = MinHash(count, seed=_SEED, hashfunc=int, permutations=self._permutations, scheme=_SCHEME)
        for start in range(0, len(shingles), _SHINGLES_AT_ONCE):
            minhash.update_batch(shingles[start : start + _SHINGLES_AT_ONCE].tolist())
        # Smallest values have zeros in front; the product's first byte depends on all bits.
        return ((minhash.hashvalues.astype(np.uint32) * _BYTE_MULTIPLIER) >> np.uint32(24)).astype(np.uint8)


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Jaccard similarity of two arrays of shingles."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


def choose_rows(threshold: float, permutations: int) -> int:
    """Height of the bands: the largest with which texts of that similarity become candidates often enough."""
    heights = range(permutations, 0, -1)
    return next((rows for rows in heights if _chance(threshold, rows, permutations // rows) >= CANDIDATE_RECALL), 1)


def _chance(similarity: float, rows: int, bands: int) -> float:
    return 1 - (1 - similarity**rows) ** bands


class NearDuplicateIndex:
    """Locality-sensitive hashing over signatures, and a comparison of the n-grams of what it finds.

    A text that shares a whole band of its signature with an earlier one is a candidate (Leskovec, Rajaraman, Ullman,
    "Mining of Massive Datasets", chapter 3); bands are low enough that hardly a similar text is missed, and candidates
    that are not similar are told by their n-grams. An open-addressing table holds 4 bytes per band and text and no
    keys: whether an entry is the one that was looked for is seen in the signatures.

    Args:
        settings: what counts as similar.
        shingles_of: the shingles of a text by its number; asked for the text at hand and for its candidates.
    """

    def __init__(self, settings: NearDuplicateSettings, shingles_of: Callable[[int], np.ndarray]) -> None:
        self._threshold, self._shingles_of = settings.threshold, shingles_of
        self.rows = choose_rows(settings.threshold, settings.permutations)
        self.bands = settings.permutations // self.rows
        # Four standard deviations of the estimate below the threshold.
        spread = math.sqrt(settings.threshold * (1 - settings.threshold) / settings.permutations)
        self._least = settings.threshold - 4 * spread
        self._signatures = np.empty((256, settings.permutations), dtype=np.uint8)
        self._numbers = np.empty(256, dtype=np.int64)
        self._texts = 0
        self._columns = np.arange(self.bands * self.rows).reshape(self.bands, self.rows)
        self._weights = np.random.default_rng(_SEED).integers(1 << 63, size=self.rows, dtype=np.uint64) * 2 + 1
        self._table = np.zeros(1 << 12, dtype=np.uint32)
        self._used = 0

    def chance(self, similarity: float) -> float:
        """Chance that a text of this Jaccard similarity to an earlier one is found; 0 below the threshold."""
        return _chance(similarity, self.rows, self.bands) if similarity >= self._threshold else 0.0

    def memory_bytes(self) -> int:
        """Memory of the index."""
        return self._table.nbytes + self._signatures.nbytes + self._numbers.nbytes

    def is_duplicate(self, number: int, signature: np.ndarray) -> bool:
        """Whether a text like this one came before; remembers it if not.

        Args:
            number: of the text, for ``shingles_of``.
            signature: of :meth:`NearDuplicateSigner.signature` with the same settings.

        Raises:
            ValueError: the signature has another length.
        """
        if signature.shape != self._signatures.shape[1:]:
            raise ValueError(f"a signature of shape {signature.shape}, expected ({self._signatures.shape[1]},)")
        candidates, free, is_open = self._look_up(signature)
        if len(candidates) and self._is_confirmed(number, signature, candidates):
            return True
        self._keep(number, signature, free, is_open)
        return False

    def _look_up(self, signature: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Texts that share a band with ``signature``; for each band a free place, and whether it has room for more."""
        table, own = self._table, signature[self._columns]
        bands = np.arange(self.bands)
        places = self._keys(own, bands) % len(table)
        room = np.full(self.bands, MOST_IN_A_BAND)
        found = []
        while len(bands):
            entries = table[(places[bands, None] + _WINDOW) % len(table)].astype(np.int64)
            taken = np.logical_and.accumulate(entries > 0, axis=1)
            row, column = np.nonzero(taken & ((entries - 1) % self.bands == bands[:, None]))
            texts, owners = (entries[row, column] - 1) // self.bands, bands[row]
            same = (self._signatures[texts[:, None], self._columns[owners]] == own[owners]).all(axis=1)
            found.append(texts[same])
            room -= np.bincount(owners[same], minlength=self.bands)
            lengths = taken.sum(axis=1)
            places[bands] = (places[bands] + lengths) % len(table)
            bands = bands[(lengths == len(_WINDOW)) & (room[bands] > 0)]
        return np.unique(np.concatenate(found)), places, room > 0

    def _is_confirmed(self, number: int, signature: np.ndarray, candidates: np.ndarray) -> bool:
        equal = (self._signatures[candidates] == signature).mean(axis=1)
        estimates = (equal - 1 / 256) / (1 - 1 / 256)
        best = np.argsort(-estimates, kind="stable")[:MOST_COMPARED]
        likely = candidates[best[estimates[best] >= self._least]]
        if not len(likely):
            return False
        own = self._shingles_of(number)
        return any(
            jaccard(own, self._shingles_of(other)) >= self._threshold for other in self._numbers[likely].tolist()
        )

    def _keep(self, number: int, signature: np.ndarray, places: np.ndarray, is_open: np.ndarray) -> None:
        if self._texts == len(self._numbers):
            length = int(self._texts * _GROWTH)
            self._signatures = _longer(self._signatures, length)
            self._numbers = _longer(self._numbers, length)
        text = self._texts
        self._signatures[text], self._numbers[text] = signature, number
        self._texts += 1
        bands = np.flatnonzero(is_open)
        self._used += len(bands)
        entries = text * self.bands + bands + 1
        if self._used > _FULL * len(self._table) or entries[-1:].max(initial=0) > np.iinfo(self._table.dtype).max:
            self._grow()
            places = self._keys(signature[self._columns], np.arange(self.bands)) % len(self._table)
        self._insert(entries, places[bands])

    def _insert(self, entries: np.ndarray, places: np.ndarray) -> None:
        """Put each entry at the first free place from its own on; of several for one place the first one gets it."""
        table = self._table
        while len(entries):
            wins = np.zeros(len(entries), dtype=bool)
            wins[np.unique(places, return_index=True)[1]] = True
            wins &= table[places] == 0
            table[places[wins]] = entries[wins]
            entries, places = entries[~wins], (places[~wins] + 1) % len(table)

    def _grow(self) -> None:
        old = self._table[self._table > 0].astype(np.int64)
        largest = int(len(self._numbers) * self.bands * _GROWTH)
        dtype = np.uint32 if largest < 1 << 32 else np.uint64
        self._table = np.zeros(int(len(self._table) * _GROWTH), dtype=dtype)
        for start in range(0, len(old), _ENTRIES_AT_ONCE):
            entries = old[start : start + _ENTRIES_AT_ONCE]
            texts, bands = (entries - 1) // self.bands, (entries - 1) % self.bands
            keys = self._keys(self._signatures[texts[:, None], self._columns[bands]], bands)
            self._insert(entries, keys % len(self._table))

    def _keys(self, rows: np.ndarray, bands: np.ndarray) -> np.ndarray:
        """Hashes of bands: int64 ``[entries]``, not negative, of their bytes ``[entries, rows]`` and numbers."""
        keys = (rows.astype(np.uint64) * self._weights).sum(axis=1, dtype=np.uint64) + bands.astype(np.uint64)
        keys *= _MULTIPLIER
        keys ^= keys >> np.uint64(32)
        keys *= _MULTIPLIER
        return (keys >> np.uint64(1)).astype(np.int64)


def _longer(array: np.ndarray, length: int) -> np.ndarray:
    """A copy with room for ``length`` entries."""
    result = np.empty((length, *array.shape[1:]), dtype=array.dtype)
    result[: len(array)] = array
    return result
