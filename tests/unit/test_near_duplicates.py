"""Near duplicates: what becomes a candidate, and that n-grams decide."""

import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import colossal_llama.data.near_duplicates as near_duplicates
from colossal_llama.data.near_duplicates import (
    MOST_IN_A_BAND,
    NearDuplicateIndex,
    NearDuplicateSettings,
    NearDuplicateSigner,
    choose_rows,
    jaccard,
    require_datasketch,
)
from colossal_llama.errors import UserError
from tests.helpers.assets import english_text, sanguo_text

SETTINGS = NearDuplicateSettings()
SIGNER = NearDuplicateSigner(SETTINGS)


class Texts:
    """An index that is given texts."""

    def __init__(self, signer: NearDuplicateSigner = SIGNER, settings: NearDuplicateSettings = SETTINGS) -> None:
        self._signer = signer
        self.shingles: list[np.ndarray] = []
        self.index = NearDuplicateIndex(settings, lambda number: self.shingles[number])

    def is_duplicate(self, text: str) -> bool:
        return self.add(self._signer.shingles(text))

    def add(self, shingles: np.ndarray) -> bool:
        self.shingles.append(shingles)
        return self.index.is_duplicate(len(self.shingles) - 1, self._signer.signature(shingles))


@pytest.mark.parametrize("text", [sanguo_text(), english_text()], ids=["chinese", "english"])
def test_near_duplicates_are_found_and_others_kept(text: str) -> None:
    texts = Texts()
    pieces = [text[start : start + 2000] for start in range(0, 200_000, 4000)]
    documents = [piece for piece in pieces if not texts.is_duplicate(piece)]
    assert len(documents) >= len(pieces) - 1  # Python explains some statements twice, nearly alike
    changed = [document[:1000] + " 修改 edited " + document[1000:] for document in documents]
    assert all(texts.is_duplicate(document) for document in changed)
    half = [document[:1000] + text[-1000 * n - 1000 : -1000 * n] for n, document in enumerate(documents, start=1)]
    assert not any(texts.is_duplicate(document) for document in half)


def random_set(draw: random.Random, size: int) -> set[int]:
    return {draw.randrange(1 << 32) for _ in range(size)}


def edited(draw: random.Random, original: set[int], share: float) -> set[int]:
    """A set that has this share of the original's elements, and as many others instead."""
    kept = set(draw.sample(sorted(original), round(share * len(original))))
    return kept | random_set(draw, len(original) - len(kept))


def as_shingles(elements: set[int]) -> np.ndarray:
    return np.array(sorted(elements), dtype=np.uint32)


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.9])
def test_hardly_any_is_missed_at_the_threshold_and_nothing_else_is_found(threshold: float) -> None:
    draw = random.Random(0)
    texts = Texts(settings=NearDuplicateSettings(threshold=threshold))
    originals = [random_set(draw, 200) for _ in range(400)]
    assert not any(texts.add(as_shingles(original)) for original in originals)
    # Similarity s needs a share of 2 s / (1 + s).
    above = [edited(draw, original, 2 * (threshold + 0.01) / (1.01 + threshold)) for original in originals]
    below = [edited(draw, original, 2 * (threshold - 0.02) / (0.98 + threshold)) for original in originals]
    assert not any(texts.add(as_shingles(one)) for one in below)
    found = sum(texts.add(as_shingles(one)) for one in above)
    assert found >= 0.95 * len(above)


elements = st.lists(st.integers(0, 40), max_size=12)


@settings(max_examples=200, deadline=None)
@given(st.lists(elements, min_size=1, max_size=25), st.sampled_from([0.3, 0.5, 0.8, 1.0]))
def test_what_is_found_is_similar_and_copies_are_always_found(sets: list[list[int]], threshold: float) -> None:
    texts = Texts(settings=NearDuplicateSettings(threshold=threshold))
    kept: list[set[int]] = []
    for numbers in sets:
        # Spread over the range of hashes.
        one = {(number * 0x9E3779B1 + 1) % (1 << 32) for number in [*numbers, 99]}
        best = max((len(one & other) / len(one | other) for other in kept), default=0.0)
        if texts.add(as_shingles(one)):
            assert best >= threshold
        else:
            assert best < 1
            kept.append(one)


def test_the_table_grows_without_losing_anyone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "_ENTRIES_AT_ONCE", 700)
    draw = random.Random(1)
    texts = Texts()
    originals = [as_shingles(random_set(draw, 30)) for _ in range(3000)]
    assert not any(texts.add(original) for original in originals)
    assert all(texts.add(original) for original in originals)


def test_templates_with_many_fillings_do_not_fill_the_bands() -> None:
    draw = random.Random(2)
    texts = Texts()
    template = random_set(draw, 210)
    fillings = [as_shingles(template | random_set(draw, 70)) for _ in range(300)]  # 0.6 similar to each other
    assert not any(texts.add(filling) for filling in fillings)
    counts = np.unique(texts.index._table[texts.index._table > 0], return_counts=True)[1]
    assert counts.max() == 1
    assert len(counts) < 300 * texts.index.bands
    assert len(counts) >= MOST_IN_A_BAND
    assert sum(texts.add(filling) for filling in fillings) >= 290


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 0.97, 1.0])
def test_bands_are_as_high_as_recall_allows(threshold: float) -> None:
    index = NearDuplicateIndex(NearDuplicateSettings(threshold=threshold), lambda number: np.zeros(0))
    assert index.chance(threshold) >= 0.98
    assert index.chance(threshold - 0.01) == 0
    assert index.bands * index.rows <= 128
    higher = index.rows + 1
    assert index.rows == 128 or 1 - (1 - threshold**higher) ** (128 // higher) < 0.98
    assert choose_rows(0.01, 128) == 1


def test_signature_estimates_jaccard_similarity() -> None:
    words = [f"w{number}" for number in range(3000)]
    settings = NearDuplicateSettings(permutations=1024, ngram=1)
    signer = NearDuplicateSigner(settings)
    shingles = [signer.shingles(" ".join(part)) for part in (words[:2000], words[500:], words[2000:])]
    one, two, other = map(signer.signature, shingles)
    assert one.dtype == np.uint8
    assert one.shape == (1024,)
    # 1500 words in common of 3000; the estimate's standard deviation is 0.016.
    assert float((one == two).mean()) == pytest.approx(0.5, abs=0.07)
    assert jaccard(shingles[0], shingles[1]) == 0.5
    # Different values share a byte in one of 256 cases.
    assert float((one == other).mean()) < 0.02


def test_signature_ignores_case_punctuation_and_width() -> None:
    plain = SIGNER.shingles("the bridge was built in 1932 by the town").tolist()
    assert SIGNER.shingles("The Bridge, was built in １９３２ — by the town!").tolist() == plain
    assert SIGNER.shingles("the bridge was built in 1933 by the town").tolist() != plain


@pytest.mark.parametrize("text", ["", "!!!", "short", "很短"])
def test_short_texts_equal_their_copies_only(text: str) -> None:
    texts = Texts()
    assert not texts.is_duplicate(text)
    assert texts.is_duplicate(text)
    assert not texts.is_duplicate(text + "?!" if not text.strip("!") else text + " more")


def test_signatures_are_the_same_in_another_process() -> None:
    text = "one 你好 two three four five"
    code = (
        "import pickle, sys\n"
        "signer = pickle.load(sys.stdin.buffer)\n"
        f"print(signer.signature(signer.shingles({text!r})).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(SIGNER), capture_output=True, check=True)
    assert done.stdout.decode().strip() == str(SIGNER.signature(SIGNER.shingles(text)).tolist())


def test_memory_of_the_index() -> None:
    index = NearDuplicateIndex(SETTINGS, lambda number: np.zeros(0))
    random = np.random.default_rng(0)
    for number, signature in enumerate(random.integers(0, 256, (5000, 128), dtype=np.uint8)):
        assert not index.is_duplicate(number, signature)
        assert number < 1000 or index.memory_bytes() <= (number + 1) * 360


def test_signature_of_other_settings_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(128,\)"):
        NearDuplicateIndex(SETTINGS, lambda number: np.zeros(0)).is_duplicate(0, np.zeros(64, dtype=np.uint8))


@pytest.mark.parametrize("wrong", [{"threshold": 0}, {"threshold": 1.5}, {"permutations": 1}, {"ngram": 0}])
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        NearDuplicateSettings(**wrong)


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require_datasketch("--flag")
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(UserError, match=r"--flag: needs the package datasketch; pip install 'datasketch>=2,<3'"):
        require_datasketch("--flag")
