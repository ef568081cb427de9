"""Texts that are not worth learning."""

import pickle
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama.data.quality import (
    GOPHER,
    QualityFilter,
    QualitySettings,
    UnitNgrams,
    duplicate_fractions,
    letter_fraction,
)
from tests.helpers.assets import sanguo_text

ENGLISH = (
    "The committee met on Tuesday to look at the plans for a new bridge. Several residents had written letters, "
    "and most of them asked about noise. An engineer explained how long building would take and what it costs."
)
CHINESE = "却说曹操自破袁绍之后，威震河北。一日与众谋士商议南征之事，荀彧以为不可轻动，宜先安抚百姓，再图荆州。"


def reason(text: str, **settings: float) -> str | None:
    return QualityFilter(QualitySettings(**settings)).reason(text)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", [ENGLISH, CHINESE, sanguo_text()[:5000], sanguo_text()[:200_000]])
def test_prose_passes_the_limits_of_the_paper(text: str) -> None:
    assert QualityFilter(GOPHER).reason(text) is None


@pytest.mark.parametrize("text", ["", "buy now " * 50, "哈" * 100, "a\na\na"])
def test_everything_is_off_by_default(text: str) -> None:
    assert reason(text) is None
    zeros = dict.fromkeys(vars(QualitySettings()), 0)
    assert reason(text, **zeros) is None


def test_lengths() -> None:
    assert reason("四个字符", min_characters=5) == "too few characters"
    assert reason("五个字符呀", min_characters=5, max_characters=5) is None
    assert reason("六个字符了呀", max_characters=5) == "too many characters"


def test_letters() -> None:
    assert letter_fraction("a1 你。") == 0.5
    assert letter_fraction(" \n") == 0
    assert reason("12 34 56 | 78 90 ab", min_letter_fraction=0.5) == "too few letters"
    assert reason(CHINESE, min_letter_fraction=0.8) is None


def test_duplicate_fractions_by_hand() -> None:
    assert duplicate_fractions([" ab", "ab ", "", "cdef", "ab"]) == (1 - 2 / 4, 1 - 6 / 10)
    assert duplicate_fractions(["", " "]) == (0, 0)
    assert duplicate_fractions([]) == (0, 0)


@pytest.mark.parametrize("base", [ENGLISH, CHINESE])
def test_repeated_lines_and_paragraphs(base: str) -> None:
    menu = "\n".join(["Home", "About", base, "Home", "About"])
    assert reason(menu, max_duplicate_line_fraction=0.3) == "repeated lines"
    assert reason(menu, max_duplicate_line_fraction=0.4) is None
    assert reason(menu, max_duplicate_line_character_fraction=0.2) is None
    paragraphs = f"{base}\nend\n\nother\n \n{base}\nend"
    assert reason(paragraphs, max_duplicate_paragraph_fraction=0.3) == "repeated paragraphs"
    assert reason(paragraphs, max_duplicate_paragraph_character_fraction=0.4) == "repeated paragraphs"
    assert reason(paragraphs, max_duplicate_paragraph_fraction=0.34) is None


def test_the_most_frequent_ngram_by_hand() -> None:
    # "aa bb" three times: 3 * 4 of 20 letters; as a 3-gram "aa bb cc" only once.
    ngrams = UnitNgrams("aa bb cc, aa bb dd. aa bb ee-ff")
    assert ngrams.top_fraction(2) == 12 / 20
    assert ngrams.top_fraction(3) == 0
    assert UnitNgrams("one two three").top_fraction(2) == 0
    assert UnitNgrams("").top_fraction(2) == 0
    # Without spaces a 2-gram is one of four characters.
    assert UnitNgrams("买一送一快买一送一吧").top_fraction(2) == 8 / 10
    assert UnitNgrams("哈" * 50).top_fraction(2) == 1


def test_repeated_ngrams_by_hand() -> None:
    text = "a b c d e x a b c d e f y b c d e f"
    # The second "a b c d e f" holds two repeats of five words: "a b c d e" again, then "b c d e f" once more.
    assert UnitNgrams(text).duplicate_fraction(5) == 10 / 18
    assert UnitNgrams(text).duplicate_fraction(6) == 0
    assert UnitNgrams("a b c").duplicate_fraction(5) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ENGLISH + " Click here." * 30, "frequent 2-gram"),
        (CHINESE + "点击这里。" * 30, "frequent 2-gram"),
    ],
)
def test_frequent_ngrams_are_named(text: str, expected: str) -> None:
    assert QualityFilter(GOPHER).reason(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        CHINESE + "点击这里查看全文内容并分享给好友。" * 2,
        ENGLISH + " Please subscribe to our free weekly newsletter about bridges." * 2,
    ],
)
def test_repeated_ngrams_are_named(text: str) -> None:
    assert reason(text, max_duplicate_ngram_fraction=0.15) == "repeated 5-grams"
    assert reason(text, max_duplicate_ngram_fraction=0.3) is None


UNITS = st.lists(st.sampled_from(["a", "bb", "ccc", "d"]), max_size=40)


@given(UNITS, st.integers(2, 6))
def test_fractions_agree_with_plain_counting(units: list[str], n: int) -> None:
    ngrams = UnitNgrams(" ".join(units))
    grams = [tuple(units[start : start + n]) for start in range(len(units) - n + 1)]
    total = sum(map(len, units))
    counts = Counter(grams)
    most = max(counts.values(), default=0)
    longest = max((len("".join(gram)) for gram, count in counts.items() if count == most), default=0)
    assert ngrams.top_fraction(n) == (min(1, most * longest / total) if most > 1 else 0)
    covered = {index + k for index, gram in enumerate(grams) if gram in grams[:index] for k in range(n)}
    assert ngrams.duplicate_fraction(n) == (sum(len(units[place]) for place in covered) / total if covered else 0)


@given(UNITS)
def test_longer_ngrams_repeat_no_more_than_shorter_ones(units: list[str]) -> None:
    ngrams = UnitNgrams(" ".join(units))
    fractions = [ngrams.duplicate_fraction(n) for n in range(2, 9)]
    assert fractions == sorted(fractions, reverse=True)


@given(st.text())
def test_any_text_gets_an_answer(text: str) -> None:
    answer = QualityFilter(replace(GOPHER, min_letter_fraction=0.5)).reason(text)
    assert answer is None or not any(character in answer for character in "0.%")


@pytest.mark.parametrize(
    "wrong", [{"min_characters": -1}, {"max_top_ngram_fraction": 1.5}, {"min_characters": 9, "max_characters": 8}]
)
def test_limits_that_mean_nothing_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        QualitySettings(**wrong)


def test_filter_can_be_sent_to_another_process() -> None:
    again = pickle.loads(pickle.dumps(QualityFilter(GOPHER)))
    assert again.reason("哈" * 100) == "frequent 2-gram"
