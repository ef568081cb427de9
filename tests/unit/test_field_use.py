"""Fields that a format does not read are refused or counted by name, and system texts are found wherever they stand."""

from collections import Counter
from typing import Any

import pytest

from colossal_llama.data.formats import FORMATS
from colossal_llama.data.formats.conversations import parse_dialogue
from colossal_llama.data.formats.field_use import (
    MOST_NAMES,
    NOT_SUPPORTED,
    OTHER_NAMES,
    REFUSABLE,
    count_names,
)
from colossal_llama.data.formats.parsed import NO_OPTIONS, Conversation, FormatOptions, Parsed
from colossal_llama.data.readers import Record
from colossal_llama.errors import RecordError
from tests.unit.test_formats import API_ACTION, EXAMPLES, MOSS_TURN

MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
TURNS = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]

CONVERSATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "messages": ("messages", {"messages": MESSAGES}),
    "sharegpt": ("sharegpt", {"conversations": TURNS}),
    "alpaca": ("alpaca", {"instruction": "q", "output": "a"}),
    "belle": ("belle", {"instruction": "Human: q\nAssistant:", "output": "a"}),
    "moss chat": ("moss", {"chat": {"turn_1": MOSS_TURN}}),
    "moss pairs": ("moss", {"conversation": [{"human": "q", "assistant": "a"}]}),
    "moss text": ("moss", {"plain_text": "[Human]: q<eoh> [MOSS]: a<eoa>"}),
    "leetcode": ("leetcode", {"code_with_problem": "q", "code_only": "a", "explanation_only": "b"}),
    "gdgpt instruct": ("gdgpt", {"type": "instruct", "instruct": "q", "output": "a"}),
    "gdgpt rounds": ("gdgpt", {"type": "conversation", "rounds": [["ask", "q"], ["ans", "a"]]}),
}


def parse(name: str, fields: dict[str, Any], ignored: str = "") -> tuple[Parsed, Counter[str]]:
    found: Counter[str] = Counter()
    options = FormatOptions(ignored=frozenset({ignored} - {""}))
    parsed = FORMATS.get(name).parse(Record("f.jsonl", 7, fields), options, lambda names: count_names(found, names))
    return parsed, found


def refusal(name: str, fields: dict[str, Any]) -> str:
    with pytest.raises(RecordError) as caught:
        parse(name, fields)
    assert str(caught.value).startswith("f.jsonl:7: ")
    return f"{caught.value.reason}: {caught.value}"


@pytest.mark.parametrize("case", CONVERSATIONS)
@pytest.mark.parametrize("field", ["system", "system_prompt"])
def test_a_system_text_beside_the_turns_is_the_system_turn(case: str, field: str) -> None:
    name, fields = CONVERSATIONS[case]
    parsed, unread = parse(name, {**fields, field: "Be brief."})
    assert isinstance(parsed, Conversation)
    assert parsed.system == "Be brief."
    assert not unread
    for nothing in ("", " ", None):
        parsed, unread = parse(name, {**fields, field: nothing})
        assert isinstance(parsed, Conversation)
        assert parsed.system is None
    assert f"'{field}' must be a string" in refusal(name, {**fields, field: 3})
    other = "system" if field == "system_prompt" else "system_prompt"
    assert "different system texts" in refusal(name, {**fields, field: "A", other: "B"})
    assert parse(name, {**fields, field: "A", other: "A"})[0].system == "A"  # type: ignore[union-attr]


def test_two_system_texts_must_agree() -> None:
    turn = {"from": "system", "value": "S"}
    fields = {"conversations": [turn, *TURNS]}
    assert parse("sharegpt", {**fields, "system": "S\n"})[0].system == "S"  # type: ignore[union-attr]
    message = refusal("sharegpt", {**fields, "system": "T"})
    assert "'system' and the system message hold different system texts; keep one of them" in message
    developer = {"messages": [{"role": "developer", "content": "S"}, *MESSAGES]}
    assert parse("messages", developer)[0].system == "S"  # type: ignore[union-attr]
    assert "different system texts" in refusal("moss", {**CONVERSATIONS["moss chat"][1], "prefix": "P", "system": "S"})
    reference = {"type": "ref_qa", "reference": "R", "rounds": [["ask", "q"], ["ans", "a"]], "system": "S"}
    assert "different system texts" in refusal("gdgpt", reference)


def test_prompts_and_saved_chats_have_the_same_system_text() -> None:
    record = Record("f.jsonl", 1, {"messages": MESSAGES[:1], "system": "S"})
    assert parse_dialogue(record)[0] == "S"
    with pytest.raises(RecordError, match="'tools'"):
        parse_dialogue(Record("f.jsonl", 1, {"messages": MESSAGES[:1], "tools": ["t"]}))


@pytest.mark.parametrize("case", CONVERSATIONS)
@pytest.mark.parametrize("field", ["tools", "functions", "tool_calls", "images", "videos", "audio"])
def test_what_changes_an_answer_is_refused_or_left_out_by_name(case: str, field: str) -> None:
    name, fields = CONVERSATIONS[case]
    given = {**fields, field: [{"name": "search"}]}
    message = refusal(name, given)
    assert message.startswith(f"{NOT_SUPPORTED}: ")
    assert f"'{field}': " in message
    assert f"--ignore_fields {field} leaves it out" in message
    assert parse(name, given, ignored=field) == (parse(name, fields)[0], {field: 1})
    for nothing in (None, [], "", "[]", {}):
        assert parse(name, {**fields, field: nothing}) == parse(name, fields)


@pytest.mark.parametrize("case", ["messages", "sharegpt", "moss pairs", "moss text", "belle", "gdgpt rounds"])
def test_earlier_turns_elsewhere_are_refused(case: str) -> None:
    name, fields = CONVERSATIONS[case]
    assert "'history'" in refusal(name, {**fields, "history": [["a", "b"]]})


@pytest.mark.parametrize("case", CONVERSATIONS)
@pytest.mark.parametrize("field", ["label", "kto_tag"])
def test_answers_that_are_marked_as_bad_are_not_learned(case: str, field: str) -> None:
    name, fields = CONVERSATIONS[case]
    assert "preference data" in refusal(name, {**fields, field: False})
    assert parse(name, {**fields, field: True})[1] == {field: 1}
    assert parse(name, {**fields, field: "medicine"})[1] == {field: 1}


TURN_FIELDS = (
    "tool_calls",
    "function_call",
    "reasoning_content",
    "reasoning",
    "thinking",
    "refusal",
    "images",
    "train_detail",
    "loss_mask",
    "mask",
)


@pytest.mark.parametrize("field", TURN_FIELDS)
def test_what_changes_a_turn_is_refused(field: str) -> None:
    extra = {field: [{"x": 1}]}
    cases = [
        ("messages", {"messages": [MESSAGES[0], MESSAGES[1] | extra]}, f"messages 2: '{field}'"),
        ("sharegpt", {"conversations": [TURNS[0], TURNS[1] | extra]}, f"conversations 2: '{field}'"),
        ("moss", {"chat": {"turn_1": MOSS_TURN | extra}}, f"chat: turn_1: '{field}'"),
        ("moss", {"conversation": [{"human": "q", "assistant": "a"} | extra]}, f"conversation 1: '{field}'"),
    ]
    for name, fields, place in cases:
        assert f"f.jsonl:7: {place}: " in refusal(name, fields)
        _, unread = parse(name, fields, ignored=field)
        assert list(unread) == [f"{next(iter(fields))}.{field}"]
    assert field in REFUSABLE


@pytest.mark.parametrize("role", ["tool", "function", "observation", "function_call", "ipython"])
def test_roles_of_tools_are_refused_with_the_reason(role: str) -> None:
    for name, turns, key in (("messages", MESSAGES, "content"), ("sharegpt", TURNS, "value")):
        of = "role" if key == "content" else "from"
        field = "messages" if key == "content" else "conversations"
        message = refusal(name, {field: [*turns, {of: role, key: "42"}]})
        assert f"message 3 is from '{role}'" in message
        assert "no chat template here shows calls of tools" in message


def test_a_second_role_or_text_in_a_message_must_agree() -> None:
    def sharegpt(**more: Any) -> dict[str, Any]:
        return {"conversations": [TURNS[0] | more, TURNS[1]]}

    assert "'from' and 'role' differ" in refusal("sharegpt", sharegpt(role="assistant"))
    assert "'value' and 'content' differ" in refusal("sharegpt", sharegpt(content="another text"))
    assert parse("sharegpt", sharegpt(role="user", content="q")) == parse("sharegpt", sharegpt())


COUNTED: list[tuple[str, dict[str, Any], list[str]]] = [
    ("colossal", {"target": "t", "id": 1, "messages": MESSAGES, "url": None}, ["id", "messages"]),
    ("text", {"text": "t", "title": "T", "meta": {"pile_set_name": "x", "url": "u"}}, ["meta.url", "title"]),
    ("wudao", {"title": "T", "content": "c", "id": 0, "dataType": "d", "category": "c"}, ["category", "id"]),
    (
        "messages",
        {"messages": [MESSAGES[0] | {"name": "Ann"}, MESSAGES[1]], "prompt": "q"},
        ["messages.name", "prompt"],
    ),
    (
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q", "annotations": [1]}]}, MESSAGES[1]]},
        ["messages.content.annotations"],
    ),
    (
        "sharegpt",
        {"conversations": TURNS, "chosen": "x", "rejected": "y", "source": "z"},
        ["chosen", "rejected", "source"],
    ),
    ("alpaca", {"instruction": "i", "output": "o", "text": "all of it"}, ["text"]),
    ("belle", {"instruction": "Human: q", "output": "o", "id": 1}, ["id"]),
    ("moss", {"chat": {"turn_1": MOSS_TURN | {"Plugin": "p"}}, "num_turns": 1}, ["chat.Plugin", "num_turns"]),
    ("moss", {"conversation": [{"human": "q", "assistant": "a", "lang": "x"}]}, ["conversation.lang"]),
    ("leetcode", {**CONVERSATIONS["leetcode"][1], "code_with_data": "d"}, ["code_with_data"]),
    ("gdgpt", {"type": "pretrain", "text": "t", "title": "T"}, ["title"]),
    ("gdgpt", {**CONVERSATIONS["gdgpt rounds"][1], "reference": "R"}, ["reference"]),
    (
        "gdgpt",
        {
            "type": "conver_has_api",
            "api_desc": "d",
            "rounds": [["ask", "q"], ["ans-api", {"actions": [API_ACTION | {"time": 3}], "ans": "a", "more": 1}]],
        },
        ["rounds.actions.time", "rounds.more"],
    ),
]


@pytest.mark.parametrize(("name", "fields", "expected"), COUNTED)
def test_other_fields_are_counted_by_name(name: str, fields: dict[str, Any], expected: list[str]) -> None:
    assert sorted(parse(name, fields)[1]) == expected


def test_every_format_counts_some_case() -> None:
    assert {name for name, _, _ in COUNTED} == set(FORMATS)


class _Watched(dict[str, Any]):
    """Notes which keys are asked for."""

    def __init__(self, content: dict[str, Any]) -> None:
        super().__init__(content)
        self.asked: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)


@pytest.mark.parametrize(("name", "fields", "expected"), EXAMPLES)
def test_the_declared_fields_are_those_that_the_parser_looks_at(
    name: str, fields: dict[str, Any], expected: Parsed
) -> None:
    """A field that is declared as read but never asked for would be lost without a word."""
    one, watched = FORMATS.get(name), _Watched(fields)
    assert one.parser(Record("f.jsonl", 1, watched), NO_OPTIONS) == expected
    declared = one.fields(fields, NO_OPTIONS).read
    assert watched.asked & fields.keys() <= declared, "asked for without being declared"
    assert declared & fields.keys() <= watched.asked, "declared without being asked for"


def test_names_that_are_data_do_not_fill_the_memory() -> None:
    counter: Counter[str] = Counter()
    for number in range(3 * MOST_NAMES):
        count_names(counter, [f"user_{number}"])
    assert len(counter) == MOST_NAMES + 1
    assert counter[OTHER_NAMES] == 2 * MOST_NAMES
    both: Counter[str] = Counter({"a": 2})
    count_names(both, Counter({"a": 3, "b": 1}))
    assert both == {"a": 5, "b": 1}
