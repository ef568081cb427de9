"""Exact and near duplicates."""

import pickle
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama.data.duplicates import (
    ExactDuplicateIndex,
    KeySet,
    NearDuplicateIndex,
    NearDuplicateSettings,
    NearDuplicateSigner,
    exact_key,
    require_datasketch,
)
from colossal_llama.errors import UserError
from tests.helpers.assets import english_text, sanguo_text

SETTINGS = NearDuplicateSettings()
SIGNER = NearDuplicateSigner(SETTINGS)


def test_exact_key_ignores_white_space_and_composition_only() -> None:
    key = exact_key("Café au  lait\n你好")
    assert len(key) == 16
    assert exact_key("  Cafe\u0301 au lait\r\n\u3000你好 ") == key
    for other in ("café au lait 你好", "Café au lait 你好。", "Caféau lait 你好", ""):
        assert exact_key(other) != key


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])), st.sampled_from([" ", "\n\n", "\u3000"]))
def test_exact_key_of_any_text(text: str, space: str) -> None:
    assert exact_key(f"{space}{text}{space}") == exact_key(unicodedata.normalize("NFD", text))


def test_first_of_several_equal_texts_stays() -> None:
    index = ExactDuplicateIndex()
    answers = [index.is_duplicate(exact_key(text)) for text in ("a b", "c", "a  b", "c ", "d")]
    assert answers == [False, False, True, True, False]


# Few first bytes: many keys want the same slot.
KEYS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=100)


@given(KEYS, st.sampled_from([8, 16]))
def test_key_set_is_a_set(numbers: list[tuple[int, int]], width: int) -> None:
    keys = KeySet(width)
    expected: set[bytes] = set()
    for first, last in numbers:
        key = bytes([first]) + bytes(width - 2) + bytes([last])
        if key == bytes(width):
            key = b"\x01" + key[1:]  # the two share a place
        assert (key in keys) == (key in expected)
        assert keys.add(key) == (key not in expected)
        expected.add(key)
    assert len(keys) == len(expected)


def test_key_set_keeps_every_key_while_it_grows() -> None:
    random = np.random.default_rng(0)
    numbers = [random.bytes(16) for _ in range(20_000)]
    keys = KeySet(16)
    assert all(keys.add(key) for key in numbers)
    assert all(key in keys for key in numbers)
    assert not any(random.bytes(16) in keys for _ in range(1000))
    assert keys.table_bytes() <= 32 * len(numbers)
    assert keys.add(bytes(16))
    assert not keys.add(bytes(16))


@pytest.mark.parametrize("text", [sanguo_text(), english_text()], ids=["chinese", "english"])
def test_near_duplicates_are_found_and_others_kept(text: str) -> None:
    index = NearDuplicateIndex(SETTINGS)
    documents = [text[start : start + 2000] for start in range(0, 200_000, 4000)]
    assert not any(index.is_duplicate(SIGNER.signature(document)) for document in documents)
    changed = [document[:1000] + " 修改 edited " + document[1000:] for document in documents]
    assert all(index.is_duplicate(SIGNER.signature(document)) for document in changed)
    half = [document[:1000] + text[-1000 * n - 1000 : -1000 * n] for n, document in enumerate(documents, start=1)]
    assert sum(index.is_duplicate(SIGNER.signature(document)) for document in half) <= 1


def test_signature_estimates_jaccard_similarity() -> None:
    words = [f"w{number}" for number in range(3000)]
    settings = NearDuplicateSettings(permutations=1024, ngram=1)
    signer = NearDuplicateSigner(settings)
    one, two = signer.signature(" ".join(words[:2000])), signer.signature(" ".join(words[500:]))
    assert one.dtype == np.uint32
    assert one.shape == (1024,)
    # 1500 words in common of 3000; the estimate's standard deviation is 0.016.
    assert float((one == two).mean()) == pytest.approx(0.5, abs=0.07)


def test_signature_ignores_case_punctuation_and_width() -> None:
    plain = SIGNER.signature("the bridge was built in 1932 by the town")
    assert (SIGNER.signature("The Bridge, was built in １９３２ — by the town!") == plain).all()
    assert (SIGNER.signature("the bridge was built in 1933 by the town") != plain).any()


@pytest.mark.parametrize("text", ["", "!!!", "short", "很短"])
def test_short_texts_equal_their_copies_only(text: str) -> None:
    index = NearDuplicateIndex(SETTINGS)
    assert not index.is_duplicate(SIGNER.signature(text))
    assert index.is_duplicate(SIGNER.signature(text))
    assert not index.is_duplicate(SIGNER.signature(text + "?!" if not text.strip("!") else text + " more"))


def test_signatures_are_the_same_in_another_process() -> None:
    code = (
        "import pickle, sys\n"
        "signer = pickle.load(sys.stdin.buffer)\n"
        "print(signer.signature('one 你好 two three four five').tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(SIGNER), capture_output=True, check=True)
    assert done.stdout.decode().strip() == str(SIGNER.signature("one 你好 two three four five").tolist())


def test_chance_of_being_found_grows_with_similarity() -> None:
    index = NearDuplicateIndex(SETTINGS)
    chances = [index.probability(similarity) for similarity in (0, 0.5, 0.7, 0.9, 1)]
    assert chances[0] == 0
    assert chances[-1] == 1
    assert chances == sorted(chances)
    assert chances[1] < 0.01
    assert chances[3] > 0.9


def test_memory_of_the_near_index() -> None:
    index = NearDuplicateIndex(SETTINGS)
    random = np.random.default_rng(0)
    for signature in random.integers(0, 2**32, (3000, 128), dtype=np.uint32):
        assert not index.is_duplicate(signature)
    assert index.memory_bytes() <= 3000 * 144


def test_signature_of_other_settings_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(128,\)"):
        NearDuplicateIndex(SETTINGS).is_duplicate(np.zeros(64, dtype=np.uint32))


@pytest.mark.parametrize("wrong", [{"threshold": 0}, {"threshold": 1.5}, {"permutations": 1}, {"ngram": 0}])
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        NearDuplicateSettings(**wrong)


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require_datasketch("--flag")
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(UserError, match=r"--flag: needs the package datasketch; pip install 'datasketch>=2,<3'"):
        require_datasketch("--flag")
