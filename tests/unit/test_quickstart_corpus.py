"""What the quickstart learns from and what it is measured on."""

import pytest

from colossal_llama.quickstart.corpus import build_corpus, passages

DOCUMENTS = [f"document {number:03d}. " * 40 for number in range(60)]


def document_numbers(texts: list[str]) -> set[str]:
    return {text.split("document ")[1][:3] for text in texts}


def test_no_text_is_learned_and_measured() -> None:
    splits = {split: build_corpus(DOCUMENTS, DOCUMENTS, (300, 300), (10**6, 10**6), split) for split in SPLITS}
    for language in ("chinese", "english"):
        learned = [document_numbers(getattr(corpus, language)) for corpus in splits.values()]
        measured = [document_numbers(corpus.measured[language]) for corpus in splits.values()]
        assert learned[0] == learned[1]
        assert not measured[0] & measured[1]
        assert learned[0] | measured[0] | measured[1] == {f"{number:03d}" for number in range(60)}
        assert not learned[0] & (measured[0] | measured[1])
        assert all(measured)


SPLITS = ("held_out", "validation")


def test_measured_texts_are_spread_over_their_documents() -> None:
    corpus = build_corpus(DOCUMENTS, DOCUMENTS, (100, 100), (600, 900))
    for language, wanted in (("chinese", 600), ("english", 900)):
        texts = corpus.measured[language]
        assert wanted <= sum(map(len, texts)) < wanted + 100
    assert len(document_numbers(corpus.measured["english"])) > 3


@pytest.mark.parametrize("size", [1, 7, 100])
def test_passages_lose_nothing(size: int) -> None:
    text = "一二三四五六七八九十\n" * 5 + "末行"
    parts = passages(text, size)
    assert all(len(part) <= size for part in parts)
    assert "".join(parts).replace("\n", "") == text.replace("\n", "")
