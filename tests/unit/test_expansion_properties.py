"""Properties of every expansion, on any text: old text keeps its ids, other text has old tokens joined."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from colossal_llama.tokenizer.bytelevel import spell
from colossal_llama.tokenizer.expansion import expand_tokenizer
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.tokenizer.text_changes import TextComparer
from tests.helpers.sentencepiece_models import train_model, write_dir

PIECES = [
    "孔明曰之",
    "孔明曰",
    "曹操曰",
    "三十九",
    "十九",
    "饕餮",
    "▁却说",
    "oft",
    "hello",
    "哈哈哈",
    "的的",
    "привет",
    "ив",
]

# Letters of the pieces among others, so that pieces, parts of pieces and neither of the two all come up.
LETTERS = st.sampled_from("孔明曰之曹操三十九饕餮却说 哈的oftenhlприветё,。\n\u00e9a")
ANY_TEXT = st.one_of(
    st.lists(st.one_of(LETTERS, st.sampled_from([piece.replace("▁", " ") for piece in PIECES])), max_size=30).map(
        "".join
    ),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=40),
)
SETTINGS = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@pytest.fixture(scope="module", params=["bpe", "bpe-not-legacy", "unigram", "byte-level"])
def comparer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextComparer:
    folder: Path = tmp_path_factory.mktemp(request.param)
    if request.param == "unigram":
        source = write_dir(folder / "source", train_model("unigram"))
    elif request.param == "byte-level":
        source = request.getfixturevalue("smollm2_tokenizer_dir")
    else:
        model = request.getfixturevalue("sentencepiece_dir") / "tokenizer.model"
        source = write_dir(folder / "source", model.read_bytes(), legacy=request.param == "bpe")
    expand_tokenizer(source, PIECES, folder / "target")
    old, new = load_tokenizer(source, "--t"), load_tokenizer(folder / "target", "--t")
    if request.param == "byte-level":
        return TextComparer(old, new)
    slow = [AutoTokenizer.from_pretrained(str(path), use_fast=False) for path in (source, folder / "target")]
    scores = [slow[1].sp_model.get_score(at) for at in range(len(new))] if request.param == "unigram" else None
    return TextComparer(old, new, slow[0], slow[1], scores)


def holds_new_token(comparer: TextComparer, text: str) -> bool:
    spelled = spell(text) if not comparer.new_slow else "▁" + text.replace(" ", "▁")
    return any(token in spelled for at, token in comparer.spelling.items() if at not in comparer.old_ids)


@SETTINGS
@given(text=ANY_TEXT)
def test_text_without_a_new_token_keeps_its_ids(comparer: TextComparer, text: str) -> None:
    if not holds_new_token(comparer, text):
        assert comparer.compare("x", [text]).changed == 0


@SETTINGS
@given(text=ANY_TEXT)
def test_other_text_has_old_tokens_joined(comparer: TextComparer, text: str) -> None:
    result = comparer.compare("x", [text])
    assert result.changed_without_new == 0
    if comparer.scores is None:  # a unigram model weighs, so it may choose other old tokens beside a new one
        assert (result.cut, result.moved) == (0, 0)


@SETTINGS
@given(text=ANY_TEXT)
def test_slow_and_fast_agree_where_they_did(comparer: TextComparer, text: str) -> None:
    assert comparer.compare("x", [text]).slow_unexplained == 0
