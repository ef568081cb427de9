"""What counts as a record, what is dropped with a reason, and what is refused."""

from typing import Any

import pytest

from colossal_llama.data.formats import FORMATS, detect_format, require_sample
from colossal_llama.data.formats.conversations import EMPTY_ASSISTANT, NO_ASSISTANT, NO_MESSAGES, parse_conversation
from colossal_llama.data.formats.parsed import Conversation, Dropped, FormatOptions, Message, Parsed, Sample
from colossal_llama.data.formats.plain_text import EMPTY_TARGET, parse_pretrain
from colossal_llama.data.readers import Record
from colossal_llama.errors import RecordError, UserError


def record(value: dict[str, Any]) -> Record:
    return Record("f.jsonl", 7, value)


def human(content: Any = "问") -> dict[str, Any]:
    return {"from": "human", "content": content}


def assistant_of(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


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
    with pytest.raises(RecordError) as caught:
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
        ({"messages": [{"role": "human", "content": "hi"}]}, "message 1 is from 'human'; expected 'user' or"),
        ({"messages": [{"role": "tool", "content": "hi"}]}, "message 1 is from 'tool'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "a part of type 'image_url'"),
        ({"messages": [{"role": "user", "content": ["hi"]}]}, "a part of type 'a string'"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "'content' holds a part"),
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
    with pytest.raises(RecordError) as caught:
        parse_conversation(record(fields))
    assert str(caught.value).startswith("f.jsonl:7: ")
    assert message in str(caught.value)


def test_openai_messages() -> None:
    parts = [{"type": "text", "text": "第一"}, {"type": "text", "text": "部分"}]
    messages = [
        {"role": "system", "content": "S", "name": None},
        {"role": "user", "content": parts, "from": None},
        {"role": "assistant", "content": "答"},
    ]
    expected = Conversation("S", (Message("human", "第一部分"), Message("assistant", "答")), "")
    assert parse_conversation(record({"messages": messages})) == expected


def turns(*texts: str, system: str | None = None, category: str = "") -> Conversation:
    roles = ("human", "assistant")
    messages = tuple(Message(roles[number % 2], text) for number, text in enumerate(texts))
    return Conversation(system, messages, category)


API_ACTION = {
    "inner_thought": "look it up",
    "api_name": "search",
    "api_param": {"query": "雨"},
    "api_res": '{"found": 3}',
}
API_CALL = Message.of_segments(
    [
        ('Thought: look it up\nAPI: search\nParameters: {"query": "雨"}\n', True),
        ('Result: {"found": 3}\n', False),
        ("Three.", True),
    ]
)
MOSS_TURN = {
    "Human": "<|Human|>: 问<eoh>\n",
    "Inner Thoughts": "<|Inner Thoughts|>: None<eot>\n",
    "Commands": "<|Commands|>: None<eoc>\n",
    "Tool Responses": "<|Results|>: None<eor>\n",
    "MOSS": "<|MOSS|>: 答<|x|>\n<eom>\n",
}
MOSS_CALL = {**MOSS_TURN, "Commands": '<|Commands|>: Search("x")<eoc>\n', "Tool Responses": "<|Results|>: found<eor>\n"}

EXAMPLES: list[tuple[str, dict[str, Any], Parsed]] = [
    ("colossal", {"source": "s", "target": "t", "category": "c"}, Sample("s", "t", "c")),
    ("text", {"text": "t", "meta": {"pile_set_name": "Github"}}, Sample("", "t", "Github")),
    ("text", {"text": "t", "meta": None, "id": 3}, Sample("", "t", "")),
    ("text", {"text": "t", "category": "c"}, Sample("", "t", "c")),
    ("text", {"text": " "}, Dropped(EMPTY_TARGET)),
    ("wudao", {"id": 1, "dataType": "百科", "title": "题", "content": "文"}, Sample("", "题\n文", "百科")),
    ("wudao", {"title": "", "content": "文"}, Sample("", "文", "")),
    ("wudao", {"title": "题", "content": ""}, Dropped(EMPTY_TARGET)),
    ("messages", {"messages": [human(), assistant()]}, turns("问", "答")),
    (
        "sharegpt",
        {"id": "x_0", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        turns("q", "a"),
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "system", "value": "S"}, {"role": "user", "content": "q"}, assistant_of("a")]},
        turns("q", "a", system="S"),
    ),
    (
        "leetcode",
        {
            "id": 1,
            "code_with_problem": "# Two Sum\n\nFind two numbers.\n\n```python\ndef f(): ...\n```\n",
            "code_only": "```python\ndef f(): ...\n```",
            "explanation_only": "A map is kept.",
        },
        turns("# Two Sum\n\nFind two numbers.", "```python\ndef f(): ...\n```\nA map is kept."),
    ),
    ("alpaca", {"instruction": "i", "input": "", "output": "o"}, turns("i", "o")),
    ("alpaca", {"instruction": "i", "input": "x", "output": "o", "text": "all"}, turns("i\nx", "o")),
    (
        "alpaca",
        {"instruction": "i", "input": None, "output": "o", "history": [["q", "a"]], "system": "S"},
        turns("q", "a", "i", "o", system="S"),
    ),
    ("alpaca", {"instruction": "i", "output": ""}, Dropped(EMPTY_ASSISTANT)),
    (
        "belle",
        {
            "instruction": "Human:你好\nAssistant: 您好！\nsay Human: too\n Human：再见\nAssistant:\n",
            "output": "再见。",
        },
        turns("你好", "您好！\nsay Human: too", "再见", "再见。"),
    ),
    ("belle", {"instruction": "Human: q", "input": "", "output": "a"}, turns("q", "a")),
    (
        "moss",
        {"meta_instruction": "You are.\n", "num_turns": 1, "chat": {"turn_1": MOSS_TURN}, "category": "Code"},
        turns("问", "答<|x|>", system="You are.", category="Code"),
    ),
    (
        "moss",
        {
            "chat": {
                "turn_10": {"Human": "q10", "MOSS": "a10"},
                "turn_2": {"Human": "q2", "MOSS": "a2"},
                "turn_11": None,
            }
        },
        turns("q2", "a2", "q10", "a10"),
    ),
    (
        "moss",
        {"chat": {"turn_1": MOSS_CALL}},
        Conversation(
            None,
            (
                Message("human", "问"),
                Message(
                    "assistant",
                    'Search("x")\nfound\n答<|x|>',
                    (('Search("x")\n', True), ("found\n", False), ("答<|x|>", True)),
                ),
            ),
            "",
        ),
    ),
    (
        "moss",
        {"conversation": [{"human": "q", "assistant": "a"}, {"human": "r", "assistant": "b"}]},
        turns("q", "a", "r", "b"),
    ),
    (
        "moss",
        {"plain_text": "[Human]: q<eoh> [MOSS]: a\nb<eoa> [Human]: r<eoh> [MOSS]: c<eoa>", "prefix": "P"},
        turns("q", "a\nb", "r", "c", system="P"),
    ),
    ("gdgpt", {"type": "pretrain", "text": "t"}, Sample("", "t", "")),
    ("gdgpt", {"type": "instruct", "instruct": "i", "input": "x", "output": "o"}, turns("i\nx", "o")),
    ("gdgpt", {"type": "instruct", "instruct": "i", "output": "o"}, turns("i", "o")),
    (
        "gdgpt",
        {"type": "conversation", "rounds": [["ask", "q"], ["ans", "a"], ["ask", "r"], ["ask", "s"], ["ans", "b"]]},
        turns("q", "a", "r\ns", "b"),
    ),
    (
        "gdgpt",
        {"type": "ref_qa", "reference": "R", "rounds": [["ask", "q"], ["ans", "a"]]},
        turns("q", "a", system="Answer from this reference:\nR"),
    ),
    (
        "gdgpt",
        {
            "type": "conver_has_api",
            "api_desc": "search: finds",
            "rounds": [
                ["ask", "q"],
                ["ans-api", {"actions": [API_ACTION], "ans": "Three."}],
                ["ask", "r"],
                ["ans", "b"],
            ],
        },
        Conversation(
            "You can call these APIs:\nsearch: finds",
            (Message("human", "q"), API_CALL, Message("human", "r"), Message("assistant", "b")),
            "",
        ),
    ),
]


@pytest.mark.parametrize(("name", "fields", "expected"), EXAMPLES)
def test_every_format_is_detected_and_parsed(name: str, fields: dict[str, Any], expected: Parsed) -> None:
    found = detect_format([record(fields)], "f.jsonl")
    assert found.name == name
    assert found.parse(record(fields), FormatOptions()) == expected


def test_every_format_has_an_example() -> None:
    assert {name for name, _, _ in EXAMPLES} == set(FORMATS)


def test_types_of_gdgpt_and_single_turns_of_belle_may_mix() -> None:
    mixed = [record(fields) for name, fields, _ in EXAMPLES if name == "gdgpt"]
    assert detect_format(mixed, "f.json").name == "gdgpt"
    singles_and_marked = [record(fields) for name, fields, _ in EXAMPLES if name in ("alpaca", "belle")]
    found = detect_format(singles_and_marked, "f.json")
    assert found.name == "belle"
    parsed = [found.parse(one, FormatOptions()) for one in singles_and_marked]
    assert parsed == [expected for name, _, expected in EXAMPLES if name in ("alpaca", "belle")]


def test_detection_says_what_it_found() -> None:
    good, strange = {"target": "t"}, {"body": "x", "url": "y"}
    # The parser says of the strange one which field is missing.
    assert detect_format([record(good), Record("f.jsonl", 9, strange), record(good)], "f.jsonl").name == "colossal"
    with pytest.raises(UserError) as caught:
        detect_format([record(good), Record("f.jsonl", 9, strange)], "f.jsonl")
    message = str(caught.value)
    assert message.startswith("f.jsonl: no known format: 1 of the first 2 records are of the format colossal, ")
    assert "f.jsonl:9 has the fields 'body', 'url'; give --data_format" in message
    assert all(name in message for name in FORMATS)
    with pytest.raises(UserError, match=r"f\.jsonl: no known format: f.jsonl:7 has the fields 'body', 'url'; give"):
        detect_format([record(strange)], "f.jsonl")
    with pytest.raises(UserError, match="unknown data format 'x'; known: gdgpt, messages"):
        FORMATS.get("x")


def test_the_text_field_wins() -> None:
    options = FormatOptions(text_field="body")
    fields = {"body": "b", "text": "t", "target": "x", "messages": []}
    found = detect_format([record(fields)], "f.jsonl", options)
    assert found.parse(record(fields), options) == Sample("", "b", "")
    with pytest.raises(RecordError, match=r"f\.jsonl:7: the field 'body' is missing"):
        found.parse(record({"text": "t"}), options)


@pytest.mark.parametrize(
    ("name", "fields", "reason", "message"),
    [
        ("text", {"text": 1}, "wrong type", "'text' must be a string, found a number"),
        ("text", {"text": b"x"}, "wrong type", "'text' must be a string, found a value of type bytes"),
        ("wudao", {"title": "t"}, "missing field", "the field 'content' is missing"),
        ("sharegpt", {"conversations": [{"from": "human", "value": None}]}, "wrong type", "message 1: 'value' must"),
        ("sharegpt", {"conversations": [{"from": "bing", "value": ""}]}, "unknown role", "message 1 is from 'bing'"),
        ("sharegpt", {"conversations": [{"from": "gpt", "value": "a"}]}, "roles do not alternate", "message 1 is from"),
        ("alpaca", {"instruction": "i"}, "missing field", "the field 'output' is missing"),
        ("alpaca", {"instruction": "i", "output": "o", "history": [["q"]]}, "wrong type", "entry 1 of 'history'"),
        (
            "belle",
            {"instruction": "Human: a\nHuman: b", "output": "o"},
            "roles do not alternate",
            "message 2 is from 'human'",
        ),
        (
            "leetcode",
            {"code_with_problem": "```python", "code_only": "c", "explanation_only": "e"},
            "missing field",
            "'code_with_problem' has no text before its code",
        ),
        ("leetcode", {"code_with_problem": "p", "code_only": 1}, "wrong type", "'code_only' must be a string"),
        ("moss", {"chat": [1]}, "wrong type", "'chat' must be an object of turns, found an array"),
        ("moss", {"chat": {"first": {}}}, "unknown type", "'chat' holds 'first'"),
        ("moss", {"chat": {"turn_1": {"Human": "q"}}}, "missing field", "turn_1 has no 'MOSS'"),
        ("moss", {"conversation": [{"human": "q", "assistant": 1}]}, "wrong type", "turn 1: 'assistant' must be"),
        ("moss", {"plain_text": "[Human]: q<eoh> what"}, "turns not marked", "'plain_text' has 'what' behind turn 1"),
        ("gdgpt", {"type": "poem"}, "unknown type", "'type' is 'poem'; expected one of pretrain, instruct, "),
        ("gdgpt", {"type": "conversation", "rounds": [["ask"]]}, "wrong type", "round 1 must be an array like"),
        ("gdgpt", {"type": "conversation", "rounds": [["say", "x"]]}, "unknown role", "round 1 is of kind 'say'"),
        ("gdgpt", {"type": "conversation", "rounds": [["ans-api", {}]]}, "unknown role", "expected 'ask' or 'ans'"),
        ("gdgpt", {"type": "conversation", "rounds": [["ask", 1]]}, "wrong type", "round 1: the text must be a string"),
        ("gdgpt", {"type": "conver_has_api", "rounds": []}, "missing field", "'api_desc' is missing"),
        ("gdgpt", {"type": "ref_qa", "rounds": []}, "missing field", "'reference' is missing"),
        (
            "gdgpt",
            {"type": "conver_has_api", "rounds": [["ans-api", {"ans": "x"}]]},
            "wrong type",
            "round 1: 'actions' must be an array of calls, found null",
        ),
        (
            "gdgpt",
            {"type": "conver_has_api", "rounds": [["ans-api", {"ans": "x", "actions": [{}]}]]},
            "missing field",
            "round 1: action 1 has no 'api_name'",
        ),
    ],
)
def test_wrong_records_of_other_formats(name: str, fields: dict[str, Any], reason: str, message: str) -> None:
    with pytest.raises(RecordError) as caught:
        FORMATS.get(name).parse(record(fields), FormatOptions())
    assert str(caught.value).startswith("f.jsonl:7: ")
    assert message in str(caught.value)
    assert caught.value.reason == reason


def test_conversations_are_not_taken_for_texts() -> None:
    sample, conversation, dropped = Sample("", "t", ""), turns("q", "a"), Dropped(EMPTY_TARGET)
    assert require_sample(record({}), sample) == sample
    assert require_sample(record({}), dropped) == dropped
    with pytest.raises(RecordError, match=r"f\.jsonl:7: .* use prepare_sft_dataset.py"):
        require_sample(record({}), conversation)


def test_answer_without_anything_learned_is_dropped() -> None:
    message = Message.of_segments([("result", False), ("", True)])
    assert message == Message("assistant", "result", (("result", False),))
    assert message.learned_text == ""
    assert Message.of_segments([("a", True), ("b", True)]) == Message("assistant", "ab")
