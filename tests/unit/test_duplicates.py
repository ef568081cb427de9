"""Exact duplicates, and the table that they are remembered in."""

import unicodedata

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama.data.duplicates import ExactDuplicateIndex, KeySet, exact_key


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
