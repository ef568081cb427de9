"""Words and characters as units of n-grams."""

import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama.data.text_units import find_units, ngram_hashes, normalized_units


def words(text: str) -> list[str]:
    units = find_units(text)
    return [units.ngram_text(index, 1) for index in range(len(units))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" ,.!\n\t——“”", []),
        ("Hello, wörld_again! 3.14", ["Hello", "wörld", "again", "3", "14"]),
        ("你好，world世界x1", ["你", "好", "world", "世", "界", "x1"]),
        ("カタカナとGPT", ["カ", "タ", "カ", "ナ", "と", "GPT"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("กิน", ["กิ", "น"]),
        ("cafe\u0301 x", ["cafe\u0301", "x"]),
        ("𠮷野家", ["𠮷", "野", "家"]),
    ],
)
def test_units(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_script_of_a_text() -> None:
    assert find_units("他说 hello 了").mostly_unspaced()
    assert not find_units("he said 你好").mostly_unspaced()
    assert not find_units("").mostly_unspaced()


def test_readable_ngrams_and_normal_form() -> None:
    units = normalized_units("Ｔｈｅ model，你好！它是ＧＰＴ")
    assert units.ngram_text(0, len(units)) == "the model 你好它是 gpt"


@given(st.lists(st.sampled_from(["a", "b", "abc", "漢", "é", "x" * 300, "x" * 301]), max_size=30))
def test_hashes_are_equal_where_units_are(parts: list[str]) -> None:
    units = find_units(" ".join(parts))
    assert len(units) == len(parts)
    for n in (1, 2, 3):
        hashes = ngram_hashes(units.hashes, n).tolist()
        grams = [tuple(parts[start : start + n]) for start in range(len(parts) - n + 1)]
        assert len(hashes) == len(grams)
        assert len(set(hashes)) == len(set(grams))
        assert len(set(zip(hashes, grams, strict=True))) == len(set(grams))


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_units_are_pieces_of_the_text(text: str) -> None:
    units = find_units(text)
    assert (units.lengths > 0).all()
    assert (np.diff(units.starts) >= units.lengths[:-1]).all()
    kept = "".join(words(text))
    assert re.sub(r"[\W_]", "", kept) == re.sub(r"[\W_]", "", text)


def test_hashes_do_not_depend_on_the_process_or_the_encoding() -> None:
    code = "from colossal_llama.data.text_units import find_units; print(find_units('word 你').hashes.tolist())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(find_units("word 你").hashes.tolist())
    assert find_units("word").hashes[0] == find_units("你word").hashes[1]
