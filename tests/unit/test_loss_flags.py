"""Flags that take the loss from turns: honoured by every format that has turns, refused where they are unclear."""

from typing import Any

import pytest

from colossal_llama.data.formats import FORMATS
from colossal_llama.data.formats.conversations import EMPTY_ASSISTANT, NO_LOSS
from colossal_llama.data.formats.loss_flags import LOSS_FLAGS
from colossal_llama.data.formats.parsed import NO_OPTIONS, Conversation, Dropped, Parsed
from colossal_llama.data.readers import Record
from colossal_llama.errors import RecordError


def parse(name: str, fields: dict[str, Any]) -> Parsed:
    return FORMATS.get(name).parse(Record("f.jsonl", 7, fields), NO_OPTIONS)


def two_turns(name: str, first: dict[str, Any], second: dict[str, Any] | None = None) -> dict[str, Any]:
    """A conversation of two turns whose answers have these further fields."""
    second = second or {}
    if name == "messages":
        ask, answer = ({"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "a")))
        return {"messages": [ask, answer | first, ask, answer | second]}
    if name == "sharegpt":
        ask, answer = ({"from": role, "value": text} for role, text in (("human", "q"), ("gpt", "a")))
        return {"conversations": [ask, answer | first, ask, answer | second]}
    if name == "moss pairs":
        return {"conversation": [{"human": "q", "assistant": "a"} | first, {"human": "q", "assistant": "a"} | second]}
    return {"chat": {"turn_1": {"Human": "q", "MOSS": "a"} | first, "turn_2": {"Human": "q", "MOSS": "a"} | second}}


KINDS = ("messages", "sharegpt", "moss pairs", "moss chat")


def answers_with_loss(parsed: Parsed) -> list[bool]:
    assert isinstance(parsed, Conversation)
    return [message.has_loss for message in parsed.messages[1::2]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flag", sorted(LOSS_FLAGS))
def test_flags_of_answers_are_honoured(kind: str, flag: str) -> None:
    name = kind.split()[0]
    for value in (0, 1, 0.0, 1.0, True, False):
        learn = bool(value) != (flag == "masked")
        parsed = parse(name, two_turns(kind, {flag: value}))
        assert answers_with_loss(parsed) == [learn, True]
        assert isinstance(parsed, Conversation)
        assert [message.content for message in parsed.messages] == ["q", "a", "q", "a"]
    assert parse(name, two_turns(kind, {flag: None})) == parse(name, two_turns(kind, {}))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.5, 2, -1, "0", "false", [], {}])
def test_other_values_are_refused(kind: str, value: Any) -> None:
    with pytest.raises(RecordError, match=r"f\.jsonl:7: .*'weight' must be 0 or 1 \(or a boolean\), found") as caught:
        parse(kind.split()[0], two_turns(kind, {"weight": value}))
    assert caught.value.reason == "unknown loss flag"


def test_flags_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(RecordError, match="'loss' and 'weight' contradict each other"):
        parse("messages", two_turns("messages", {"weight": 0, "loss": True}))
    with pytest.raises(RecordError, match="'masked' and 'weight' contradict"):
        parse("messages", two_turns("messages", {"weight": 1, "masked": True}))
    assert answers_with_loss(parse("messages", two_turns("messages", {"weight": 0, "masked": True}))) == [False, True]


def test_questions_cannot_be_learned() -> None:
    fields = two_turns("messages", {})
    fields["messages"][0] = fields["messages"][0] | {"weight": 0, "train": False}
    assert answers_with_loss(parse("messages", fields)) == [True, True]
    fields["messages"][0] = {"role": "user", "content": "q", "train": True}
    with pytest.raises(RecordError, match="message 1: 'train' asks to learn it, but only answers can be learned"):
        parse("messages", fields)


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_without_loss_is_dropped_and_counted(kind: str) -> None:
    assert parse(kind.split()[0], two_turns(kind, {"weight": 0}, {"weight": 0})) == Dropped(NO_LOSS)


def test_an_empty_answer_without_loss_does_no_harm() -> None:
    fields = two_turns("messages", {"weight": 0, "content": ""})
    assert answers_with_loss(parse("messages", fields)) == [False, True]


def test_a_result_of_a_tool_is_no_answer_without_loss() -> None:
    """An answer of which nothing is left to learn is as empty as before, whatever the flags of other turns."""
    turn = {"Human": "q", "Tool Responses": "42", "MOSS": ""}
    fields = {"chat": {"turn_1": turn, "turn_2": {"Human": "q", "MOSS": "a", "weight": 0}}}
    assert parse("moss", fields) == Dropped(EMPTY_ASSISTANT)


MASKED: list[tuple[str, dict[str, Any]]] = [
    ("messages", two_turns("messages", {})),
    ("sharegpt", two_turns("sharegpt", {})),
    ("moss", two_turns("moss chat", {})),
    ("alpaca", {"instruction": "q", "output": "a", "history": [["q", "a"]]}),
    ("belle", {"instruction": "Human: q\nAssistant: a\nHuman: q\nAssistant:", "output": "a"}),
    ("gdgpt", {"type": "conversation", "rounds": [["ask", "q"], ["ans", "a"], ["ask", "q"], ["ans", "a"]]}),
]


@pytest.mark.parametrize(("name", "fields"), MASKED)
def test_a_mask_beside_the_turns_is_honoured(name: str, fields: dict[str, Any]) -> None:
    for mask in ([0, 0, 0, 1], [1, 0, 1, True], [False, False, False, True]):
        assert answers_with_loss(parse(name, {**fields, "loss_mask": mask})) == [False, True]
    assert parse(name, {**fields, "loss_mask": [1, 0, 1, 0]}) == Dropped(NO_LOSS)
    for wrong in ([0, 1], "0001", {"a": 1}, [0, 0, 0, 0, 1]):
        with pytest.raises(RecordError, match="'loss_mask' must be an array of 0 and 1, one for each"):
            parse(name, {**fields, "loss_mask": wrong})
    with pytest.raises(RecordError, match="'loss_mask' must be 0 or 1"):
        parse(name, {**fields, "loss_mask": [0, 0, 0, 0.3]})


def test_a_mask_may_count_the_system_message() -> None:
    fields = two_turns("messages", {})
    fields["messages"].insert(0, {"role": "system", "content": "S"})
    for mask in ([0, 0, 0, 1], [0, 0, 0, 0, 1]):
        assert answers_with_loss(parse("messages", {**fields, "loss_mask": mask})) == [False, True]
