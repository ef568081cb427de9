"""Evaluation questions in training texts."""

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama.data.decontamination import EvaluationNgrams
from colossal_llama.errors import UserError
from tests.helpers.assets import sanguo_text

ENGLISH = "Which of the following planets is the largest one in our solar system by its mass?"
CHINESE = "下列哪一项是中华人民共和国的首都所在的城市？"


def test_hits_are_named() -> None:
    ngrams = EvaluationNgrams([ENGLISH, CHINESE, "too short"])
    assert (ngrams.texts, ngrams.too_short) == (2, 1)
    assert len(ngrams) == 4 + 9
    text = "Some quiz: WHICH of the following planets\nis the “largest” one -- in our solar system, by weight?"
    assert ngrams.hit(text) == "which of the following planets is the largest one in our solar system"
    assert ngrams.hit("题目，哪一项是中华人民共和国的 首都（单选）") == "哪一项是中华人民共和国的首"
    assert ngrams.hit(ENGLISH.replace("planets", "moons").replace("solar", "star")) is None
    assert ngrams.hit("首都所在的城市") is None
    assert ngrams.hit("") is None
    assert ngrams.hit(sanguo_text()[:50_000]) is None


def test_mixed_scripts_and_full_width_letters() -> None:
    ngrams = EvaluationNgrams(["在 Python 3 中，如何把 list 转换成 tuple 类型"], n=8)
    assert ngrams.hit("请问ｐｙｔｈｏｎ３中如何把LIST转换") is None  # "python3" is one word
    assert ngrams.hit("请问：Ｐｙｔｈｏｎ　３中如何把LIST转换") == "python 3 中如何把 list 转"


WORDS = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=20)


@given(st.lists(WORDS, min_size=1, max_size=5), WORDS, st.integers(1, 6))
def test_hits_agree_with_plain_comparison(questions: list[list[str]], text: list[str], n: int) -> None:
    ngrams = EvaluationNgrams([" ".join(question) for question in questions], n)
    known = {tuple(q[start : start + n]) for q in questions for start in range(len(q) - n + 1)}
    found = [gram for start in range(len(text) - n + 1) if (gram := tuple(text[start : start + n])) in known]
    assert len(ngrams) == len(known)
    assert ngrams.hit(" ".join(text)) == (" ".join(found[0]) if found else None)


def test_files(tmp_path: Path) -> None:
    questions = tmp_path / "mmlu.jsonl"
    record = {"id": 7, "question": ENGLISH, "more": {"choices": ["short", CHINESE, None, ""]}}
    questions.write_bytes(b"\xef\xbb\xbf" + json.dumps(record, ensure_ascii=False).encode() + b"\r\n\n")
    lines = tmp_path / "questions.txt"
    lines.write_text("How many times does the clock strike on one day if it strikes every hour\n", encoding="utf-8")
    ngrams = EvaluationNgrams.from_files([questions, str(lines)])
    assert (ngrams.texts, ngrams.too_short) == (3, 1)
    for text in (ENGLISH, CHINESE, lines.read_text(encoding="utf-8")):
        assert ngrams.hit(f"... {text} ...") is not None
        assert pickle.loads(pickle.dumps(ngrams)).hit(text) == ngrams.hit(text)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"q": "x"}\n{"q": \n', r"a\.jsonl:2: not valid JSON"),
        ("a.txt", b"fine\n\xff\xfe\n", r"a\.txt:2: not UTF-8"),
        ("a.txt", b"too short\n", r"--flag .*a\.txt: none of its 1 texts has 13 words"),
        ("a.txt", b"", "none of its 0 texts"),
        ("a.txt", None, r"--flag .*a\.txt: cannot be read"),
    ],
)
def test_unusable_files_are_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        EvaluationNgrams.from_files([tmp_path / name], flag="--flag")


def test_n_must_be_positive() -> None:
    with pytest.raises(ValueError, match="n must be at least 1"):
        EvaluationNgrams(["a"], 0)


def test_saved_ngrams_find_the_same(tmp_path: Path) -> None:
    ngrams = EvaluationNgrams([ENGLISH, CHINESE, "too short"])
    ngrams.save(tmp_path / "a.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]
    loaded = EvaluationNgrams.load(tmp_path / "a.npy")
    assert len(loaded) == len(ngrams)
    for text in (ENGLISH, CHINESE, f"before {ENGLISH} after", CHINESE[3:], "nothing of it " * 9):
        assert loaded.hit(text) == ngrams.hit(text)
    assert loaded.hit(ENGLISH) is not None
    EvaluationNgrams([]).save(tmp_path / "a.npy")
    assert EvaluationNgrams.load(tmp_path / "a.npy").hit(ENGLISH) is None
