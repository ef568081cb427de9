"""How many near duplicates are found, how many of those found are none, and what the index costs.

    python benchmarks/near_duplicates.py [--texts 20000] [--threshold 0.8]

Texts of 100 to 1,000 random words are indexed; then a copy of each with some of its words replaced is asked for. The
true similarity is that of the two sets of 5-grams.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator

import numpy as np

from colossal_llama.data.near_duplicates import NearDuplicateIndex, NearDuplicateSettings, NearDuplicateSigner, jaccard

VOCABULARY = 50_000
BIN_WIDTH = 0.025


def pairs(count: int) -> Iterator[tuple[str, str]]:
    """Texts and edited copies; word frequencies follow Zipf's law, so that texts share some 5-grams by chance."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        words = (rng.zipf(1.3, rng.integers(100, 1001)) % VOCABULARY).astype(np.int64)
        edited = words.copy()
        places = rng.random(len(words)) < rng.uniform(0, 0.09)
        edited[places] = rng.integers(VOCABULARY, size=int(places.sum()))
        yield tuple(" ".join(f"w{word}" for word in text) for text in (words, edited))  # type: ignore[misc]


def main() -> None:
    """Measure, print a table and the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--threshold", type=float, default=NearDuplicateSettings.threshold)
    options = parser.parse_args()
    settings = NearDuplicateSettings(threshold=options.threshold)
    signer = NearDuplicateSigner(settings)
    shingles = [[signer.shingles(text) for text in pair] for pair in pairs(options.texts)]
    signatures = [[signer.signature(one) for one in pair] for pair in shingles]
    index = NearDuplicateIndex(settings, lambda number: shingles[number // 2][number % 2])
    started = time.perf_counter()
    wrong = sum(index.is_duplicate(2 * number, pair[0]) for number, pair in enumerate(signatures))
    seconds = time.perf_counter() - started
    similarities = np.array([jaccard(*pair) for pair in shingles])
    memory = index.memory_bytes() / options.texts
    # A copy that is not found is remembered; being random, it is like no other text.
    found = np.array([index.is_duplicate(2 * number + 1, pair[1]) for number, pair in enumerate(signatures)])
    microseconds = round(1e6 * seconds / options.texts)
    print(f"{index.bands} bands of {index.rows} rows, {memory:.0f} bytes and {microseconds} us a text")
    print("similarity      pairs  found  expected")
    for low in np.arange(0.5, 1.0, BIN_WIDTH):
        inside = (similarities >= low) & (similarities < low + BIN_WIDTH)
        if inside.any():
            expected = np.mean([index.chance(value) for value in similarities[inside].tolist()])
            print(f"{low:.3f} to {low + BIN_WIDTH:.3f} {inside.sum():6d}  {found[inside].mean():.3f}  {expected:.3f}")
    similar = similarities >= options.threshold
    figures = {
        "recall": float(found[similar].mean()),
        "precision": float(similar[found].mean()),
        "unrelated_found": int(wrong),
        "bytes_per_text": round(memory),
        "microseconds_per_text": microseconds,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
