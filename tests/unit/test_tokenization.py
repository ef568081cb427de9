"""Documents and long conversations to ids and labels."""

import functools
from pathlib import Path
from typing import Any

import pytest

from colossal_llama.data.chat_templates import CHAT_TEMPLATES
from colossal_llama.data.formats.parsed import Conversation, Message, Sample
from colossal_llama.data.tokenization import (
    ConversationTokenizer,
    DocumentTokenizer,
    TextEncoder,
    encoder_spec,
    require_end_token,
)
from colossal_llama.errors import UserError
from tests.helpers.assets import sanguo_text


@pytest.fixture(scope="session", params=["sentencepiece_dir", "smollm2_tokenizer_dir"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(request.getfixturevalue(request.param)))


def documents(tokenizer: Any) -> DocumentTokenizer:
    return DocumentTokenizer(make_encoder(tokenizer, tokenizer.bos_token, tokenizer.eos_token))


@functools.cache
def make_encoder(tokenizer: Any, bos: str | None, eos: str | None) -> TextEncoder:
    """One encoder per tokenizer and setting of its markers: it costs half a second."""
    return TextEncoder(encoder_spec(tokenizer, "--tokenizer_dir"))


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_text_without_source_is_learned_whole(tokenizer: Any) -> None:
    texts = [sanguo_text()[:3000], "The quick  brown fox.\n\n\tIndented.", "a"]
    results = documents(tokenizer).tokenize([Sample("", text, "c") for text in texts])
    for text, result in zip(texts, results, strict=True):
        ids = [tokenizer.bos_token_id, *plain_ids(tokenizer, text), tokenizer.eos_token_id]
        assert result.input_ids.tolist() == ids
        assert result.labels.tolist() == ids
        assert result.input_ids.dtype == result.labels.dtype == "int32"
        assert result.category == "c"


@pytest.mark.parametrize("add_bos", [True, False])
def test_markers_are_added_once_whatever_the_tokenizer_would_do(sentencepiece_dir: Path, add_bos: bool) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(sentencepiece_dir), add_bos_token=add_bos, add_eos_token=add_bos)
    [result] = documents(tokenizer).tokenize([Sample("", "text", "")])
    ids = result.input_ids.tolist()
    assert ids.count(tokenizer.bos_token_id) == ids.count(tokenizer.eos_token_id) == 1
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("Question: 2+2?\n\n->\n\n", "It is 4."),
        ("床前明月光，", "疑是地上霜。"),
        ("The ", "fox"),
        ("un", "able"),
    ],
)
def test_only_the_target_is_learned(tokenizer: Any, source: str, target: str) -> None:
    [result] = documents(tokenizer).tokenize([Sample(source, target, "")])
    ids, labels = result.input_ids.tolist(), result.labels.tolist()
    assert ids[1:-1] == plain_ids(tokenizer, source + target), "one encoding of the whole text"
    first = next(position for position, label in enumerate(labels) if label >= 0)
    assert labels[first:] == ids[first:]
    learned, before = tokenizer.decode(ids[first:-1]), tokenizer.decode(ids[1:first])
    # The token across the boundary belongs to the target; nothing of the target is left out.
    assert learned.strip().endswith(target)
    assert source.startswith(before.strip())
    assert labels[-1] == tokenizer.eos_token_id


def test_special_looking_text_stays_text(tokenizer: Any) -> None:
    texts = [
        "<s> 开头 </s> 结尾 <unk> <pad>",
        "</s></s></s>",
        "[INST] <|im_start|> <|im_end|> <|endoftext|>",
        "<0x0A>",
    ]
    results = documents(tokenizer).tokenize([Sample("", text, "") for text in texts])
    for text, result in zip(texts, results, strict=True):
        inner = result.input_ids.tolist()[1:-1]
        assert not set(inner) & set(tokenizer.all_special_ids)
        assert tokenizer.decode(inner).strip() == text


def test_no_bos_is_left_out_and_no_eos_is_refused(smollm2_tokenizer_dir: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(smollm2_tokenizer_dir))
    tokenizer.bos_token = None
    [result] = documents(tokenizer).tokenize([Sample("", "hello world", "")])
    assert result.input_ids.tolist() == [*plain_ids(tokenizer, "hello world"), tokenizer.eos_token_id]
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="--tokenizer_dir: the tokenizer has no eos_token"):
        require_end_token(tokenizer, "--tokenizer_dir")


def conversations(tokenizer: Any, max_length: int) -> ConversationTokenizer:
    template = CHAT_TEMPLATES.get("colossal_llama_3").bind(tokenizer, "colossal_llama_3", "--tokenizer_dir")
    encoder = make_encoder(tokenizer, tokenizer.bos_token, tokenizer.eos_token)
    return ConversationTokenizer(encoder, template, max_length)


def chat(pairs: list[tuple[str, str]]) -> Conversation:
    messages = [message for q, a in pairs for message in (Message("human", q), Message("assistant", a))]
    return Conversation(None, tuple(messages), "")


def test_long_conversation_continues_in_further_pieces(tokenizer: Any) -> None:
    pairs = [(f"第{n}个问题是什么？", f"这是第{n}个问题的回答。") for n in range(100)]
    [result] = conversations(tokenizer, 300).tokenize([chat(pairs)])
    assert len(result.pieces) > 5
    assert result.dropped_turns == 0
    taken = 0
    for piece in result.pieces:
        assert len(piece.input_ids) <= 300
        turns = int((piece.labels == tokenizer.eos_token_id).sum())
        [alone] = conversations(tokenizer, 4096).tokenize([chat(pairs[taken : taken + turns])])
        assert alone.pieces[0].input_ids.tolist() == piece.input_ids.tolist(), "each piece is a conversation"
        assert alone.pieces[0].labels.tolist() == piece.labels.tolist()
        taken += turns
    assert taken == 100


def test_turn_longer_than_a_row_is_dropped_and_counted(tokenizer: Any) -> None:
    long = sanguo_text()[:2000]
    pairs = [("q1", "a1"), (long, "a2"), ("q3", "a3")]
    [result] = conversations(tokenizer, 200).tokenize([chat(pairs)])
    assert len(result.pieces) == 2
    assert result.dropped_turns == 1
    assert result.dropped_tokens > 500
    [first_too_long] = conversations(tokenizer, 200).tokenize([chat(pairs[1:])])
    assert len(first_too_long.pieces) == 1
    [nothing] = conversations(tokenizer, 200).tokenize([chat(pairs[1:2])])
    assert nothing.pieces == []
