"""What counts as a record, what is dropped with a reason, and what is refused."""

from typing import Any

import pytest

from colossal_llama.data.formats import (
    EMPTY_ASSISTANT,
    EMPTY_TARGET,
    NO_ASSISTANT,
    NO_MESSAGES,
    Conversation,
    Dropped,
    Message,
    Sample,
    parse_conversation,
    parse_pretrain,
)
from colossal_llama.data.readers import Record
from colossal_llama.errors import UserError


def record(value: dict[str, Any]) -> Record:
    return Record("f.jsonl", 7, value)


def human(content: Any = "问") -> dict[str, Any]:
    return {"from": "human", "content": content}


def assistant(content: Any = "答") -> dict[str, Any]:
    return {"from": "assistant", "content": content}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"source": "", "target": "t", "category": "zh"}, Sample("", "t", "zh")),
        ({"source": "s", "target": "t", "category": "zh"}, Sample("s", "t", "zh")),
        ({"target": "t"}, Sample("", "t", "")),
        ({"source": None, "target": "t", "category": None}, Sample("", "t", "")),
        ({"target": " t\n", "extra": {"x": [1]}}, Sample("", " t\n", "")),
        ({"target": ""}, Dropped(EMPTY_TARGET)),
        ({"source": "prompt", "target": " \t\n"}, Dropped(EMPTY_TARGET)),
    ],
)
def test_pretraining_records(fields: dict[str, Any], expected: object) -> None:
    assert parse_pretrain(record(fields)) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "s"}, "the field 'target' is missing"),
        ({"target": None}, "'target' must be a string, found null"),
        ({"target": 12345}, "'target' must be a string, found a number"),
        ({"target": ["a"]}, "'target' must be a string, found an array"),
        ({"target": {"a": 1}}, "'target' must be a string, found an object"),
        ({"target": True}, "'target' must be a string, found a boolean"),
        ({"target": "t", "source": 1}, "'source' must be a string, found a number"),
        ({"target": "t", "category": ["x"]}, "'category' must be a string, found an array"),
        ({"messages": [human(), assistant()]}, "use prepare_sft_dataset.py"),
    ],
)
def test_wrong_pretraining_records(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_pretrain(record(fields))
    assert str(caught.value).startswith("f.jsonl:7: ")
    assert message in str(caught.value)


def test_conversations() -> None:
    turns = (Message("human", "问"), Message("assistant", "答"))
    assert parse_conversation(record({"messages": [human(), assistant()]})) == Conversation(None, turns, "")
    with_system = {"messages": [{"from": "system", "content": "S"}, human(), assistant()], "category": "c"}
    assert parse_conversation(record(with_system)) == Conversation("S", turns, "c")
    unanswered = parse_conversation(record({"messages": [human(), assistant(), human("再问")]}))
    assert unanswered == Conversation(None, turns, "", trailing_human=True)
    no_question = parse_conversation(record({"messages": [human(""), assistant()]}))
    assert isinstance(no_question, Conversation)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], NO_MESSAGES),
        ([{"from": "system", "content": "S"}], NO_MESSAGES),
        ([human()], NO_ASSISTANT),
        ([human(), assistant("")], EMPTY_ASSISTANT),
        ([human(), assistant(), human(), assistant(" \n")], EMPTY_ASSISTANT),
    ],
)
def test_conversations_without_anything_to_learn(messages: list[Any], reason: str) -> None:
    assert parse_conversation(record({"messages": messages})) == Dropped(reason)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "the field 'messages' is missing"),
        ({"target": "t"}, "use prepare_pretrain_dataset.py"),
        ({"messages": None}, "'messages' must be an array of messages, found null"),
        ({"messages": "human: hi"}, "'messages' must be an array of messages, found a string"),
        ({"messages": {"from": "human"}}, "found an object"),
        ({"messages": ["hi", "hello"]}, "message 1 must be an object"),
        ({"messages": [{"from": "human"}]}, "message 1 has no 'content'"),
        ({"messages": [{"content": "hi"}]}, "message 1 has no 'from'"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "rename it to 'from'"),
        ({"messages": [human(5), assistant()]}, "message 1: 'content' must be a string, found a number"),
        ({"messages": [human(), assistant(None)]}, "message 2: 'content' must be a string, found null"),
        ({"messages": [human(), {"from": "gpt", "content": "x"}]}, "message 2 is from 'gpt'"),
        ({"messages": [{"from": 1, "content": "x"}]}, "message 1: 'from' must be a string"),
        ({"messages": [assistant(), human()]}, "message 1 is from 'assistant', expected 'human'"),
        ({"messages": [human(), human(), assistant()]}, "message 2 is from 'human', expected 'assistant'"),
        (
            {"messages": [human(), assistant(), assistant()]},
            "message 3 is from 'assistant', expected 'human'",
        ),
        ({"messages": [{"from": "system", "content": ""}, assistant()]}, "message 2 is from 'assistant'"),
        ({"messages": [human(), {"from": "system", "content": ""}]}, "message 2 is from 'system'"),
    ],
)
def test_wrong_conversations(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_conversation(record(fields))
    assert str(caught.value).startswith("f.jsonl:7: ")
    assert message in str(caught.value)
