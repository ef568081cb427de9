"""Random records of every format, each with what must become of it: hypothesis strategies.

A record starts as a conversation (or a text), is written down in a format by a function of its own, and what must be
learned follows from the conversation: the program's parsers are not asked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st

from tests.helpers.plain_rendering import CHATML, LLAMA3, Turn

NO_MESSAGES, NO_ASSISTANT = "no messages", "no assistant message"
EMPTY_ASSISTANT, NO_LOSS, EMPTY_TARGET = "empty assistant content", "no answer is to be learned", "empty target"


@dataclass(frozen=True)
class Text:
    """A pretraining text."""

    source: str
    target: str
    category: str

    def dropped(self) -> str | None:
        """Why nothing of it is learned."""
        return None if self.target.strip() else EMPTY_TARGET


@dataclass(frozen=True)
class Dialogue:
    """A conversation; ``trailing`` is a last question without an answer."""

    system: str | None
    turns: tuple[Turn, ...]
    category: str
    trailing: str | None = None

    def dropped(self) -> str | None:
        """Why nothing of it is learned."""
        if not self.turns:
            return NO_MESSAGES if self.trailing is None else NO_ASSISTANT
        if any(turn.has_loss and not turn.learned.strip() for turn in self.turns):
            return EMPTY_ASSISTANT
        return None if any(turn.has_loss for turn in self.turns) else NO_LOSS


@dataclass(frozen=True)
class Case:
    """A record, what it means, and the names of its fields that nothing reads."""

    record: dict[str, Any]
    meaning: Text | Dialogue
    unread: frozenset[str] = frozenset()


Clean = Callable[[str], str]
Draw = Callable[[st.SearchStrategy[Any]], Any]

ATOMS = [
    *("</s>", "<s>", "<|endoftext|>", "[INST]", "user:", "system:", "Human: ", "Assistant: ", *CHATML, *LLAMA3),
    *("\n", "\n\n", " ", "  ", "\t", "\r\n", "\u3000", "\u2028", "\x00", "\x1b[31m", "\u200b", "\ufeff", "▁", "<0x0A>"),
    *(
        "床前明月光",
        "The quick brown fox",
        "é e\u0301 ﬁ",
        "👨‍👩‍👧 🇨🇳",
        "𠀀𠮷",
        "don't",
        "```python\n",
        "{{ x }}",
        '"quoted" \\n',
    ),
    *(
        "ÿ",
        "\u0600ع",
        "1234567",
        "   indented",
        "Human:",
        "<eoh>",
        "<|Human|>:",
        "[MOSS]:",
        "<unk>",
        "<pad>",
        "[]",
        "null",
    ),
]
LETTERS = st.text(st.characters(exclude_categories=("Cs",)), max_size=6)


def contents(clean: Clean, min_size: int = 0) -> st.SearchStrategy[str]:
    """Any text, often with what could be mistaken for structure."""
    parts = st.lists(st.sampled_from(ATOMS) | LETTERS, min_size=min_size, max_size=6)
    return parts.map("".join).map(clean)


@st.composite
def dialogues(draw: Draw, clean: Clean, flags: bool = True) -> Dialogue:
    """A conversation whose answers are learned whole or not at all."""
    text = contents(clean)
    turns = [
        Turn(draw(text), ((draw(contents(clean, 1)), True),), not flags or draw(st.integers(0, 3)) > 0)
        for _ in range(draw(st.integers(0 if draw(st.integers(0, 9)) == 0 else 1, 4)))
    ]
    system = draw(st.none() | text)
    return Dialogue(system, tuple(turns), draw(st.sampled_from(["", "c", "类"])), None)


def _rest(draw: Draw, record: dict[str, Any], meaning: Text | Dialogue, names: list[str]) -> Case:
    """The record with a category, further fields and empty ones, its fields in any order."""
    record = dict(record)
    if meaning.category or draw(st.booleans()):
        record.setdefault("category", meaning.category)
    unread = draw(st.sets(st.sampled_from(names), max_size=2))
    record |= {name: draw(st.sampled_from([1, "x", ["y"], {"z": None}, True, 0.5])) for name in sorted(unread)}
    for name in draw(st.sets(st.sampled_from(["tools", "images", "functions", "note", "video"]), max_size=2)):
        record[name] = draw(st.sampled_from([None, "", [], {}, "[]"]))
    order = draw(st.permutations(sorted(record)))
    return Case({name: record[name] for name in order}, meaning, frozenset(unread))


METADATA = ["id", "url", "lang", "score", "元", "num_turns"]


def _system_beside(draw: Draw, record: dict[str, Any], dialogue: Dialogue, names: list[str]) -> Dialogue:
    """Put the system text into a field; blank ones count as none."""
    if dialogue.system is None:
        return dialogue
    record[draw(st.sampled_from(names))] = dialogue.system
    return replace(dialogue, system=dialogue.system if dialogue.system.strip() else None)


FLAGS = ("weight", "loss", "train", "training", "loss_scale", "masked")


def _flag(draw: Draw, has_loss: bool) -> dict[str, Any]:
    """Fields that say whether an answer is learned; none at all say that it is."""
    if has_loss and draw(st.booleans()):
        return draw(st.sampled_from([{}, {"weight": None}]))
    name = draw(st.sampled_from(FLAGS))
    value = has_loss != (name == "masked")
    return {name: draw(st.sampled_from([value, int(value), float(value)]))}


def _trailing(draw: Draw, dialogue: Dialogue, clean: Clean) -> Dialogue:
    return replace(dialogue, trailing=draw(contents(clean))) if draw(st.integers(0, 4)) == 0 else dialogue


def _mask(draw: Draw, record: dict[str, Any], dialogue: Dialogue, with_system: bool = False) -> dict[str, Any]:
    """Take the loss from answers by a list beside the turns; returns what the answers then need no flag for."""
    flags = [0] * with_system
    for turn in dialogue.turns:
        flags += [draw(st.integers(0, 1)), draw(st.sampled_from([int(turn.has_loss), turn.has_loss]))]
    record["loss_mask"] = flags + [draw(st.integers(0, 1))] * (dialogue.trailing is not None)
    return record


@st.composite
def _messages(draw: Draw, clean: Clean, sharegpt: bool) -> Case:
    dialogue = _trailing(draw, draw(dialogues(clean)), clean)
    openai = draw(st.booleans())
    role, content = ("role", "content") if openai else ("from", "value" if sharegpt else "content")
    human = "user" if openai or (sharegpt and draw(st.booleans())) else "human"
    assistant = "assistant" if openai or not sharegpt or draw(st.booleans()) else "gpt"
    list_name = "conversations" if sharegpt else "messages"
    unread: set[str] = set()

    def message(name: str, text: str, more: dict[str, Any] | None = None) -> dict[str, Any]:
        entry: dict[str, Any] = {role: name, content: text}
        if draw(st.integers(0, 5)) == 0:
            cut = draw(st.integers(0, len(text)))
            entry[content] = [{"type": "text", "text": part} for part in (text[:cut], text[cut:])]
        if draw(st.integers(0, 5)) == 0:
            entry["name"] = "Ann"
            unread.add(f"{list_name}.name")
        if draw(st.integers(0, 5)) == 0:
            entry |= {"tool_calls": draw(st.sampled_from([None, []])), "from" if openai else "role": None}
        return entry | (more or {})

    entries = []
    record: dict[str, Any] = {}
    in_turn = dialogue.system is not None and draw(st.booleans())
    if in_turn:
        name = draw(st.sampled_from(["system", "developer"])) if openai else "system"
        entries.append(message(name, str(dialogue.system)))
        if draw(st.integers(0, 3)) == 0:
            record["system"] = dialogue.system  # said twice
    else:
        dialogue = _system_beside(draw, record, dialogue, ["system", "system_prompt"])
    by_mask = draw(st.integers(0, 4)) == 0 and bool(dialogue.turns)
    for turn in dialogue.turns:
        entries.append(message(human, turn.question))
        entries.append(message(assistant, turn.answer[0][0], {} if by_mask else _flag(draw, turn.has_loss)))
    if dialogue.trailing is not None:
        entries.append(message(human, dialogue.trailing))
    if by_mask:
        _mask(draw, record, dialogue, in_turn and draw(st.booleans()))
    case = _rest(draw, {list_name: entries, **record}, dialogue, [*METADATA, "prompt", "source", "chosen"])
    return replace(case, unread=case.unread | unread)


@st.composite
def _alpaca(draw: Draw, clean: Clean) -> Case:
    dialogue = draw(dialogues(clean).filter(lambda one: bool(one.turns)))
    # A question that begins like BELLE's is BELLE's.
    turns = [replace(turn, question=turn.question.replace(":", ";").replace("：", ";")) for turn in dialogue.turns]
    last = turns[-1]
    record: dict[str, Any] = {"instruction": last.question, "output": last.answer[0][0]}
    given = draw(st.sampled_from(["", " \n", None]) | contents(clean))
    if given is not None or draw(st.booleans()):
        record["input"] = given
    lines = [text for text in (last.question, given or "") if text.strip()]
    turns[-1] = replace(last, question="\n".join(lines))
    if len(turns) > 1 or draw(st.booleans()):
        record["history"] = [[turn.question, turn.answer[0][0]] for turn in turns[:-1]]
    dialogue = _system_beside(draw, record, replace(dialogue, turns=tuple(turns)), ["system", "system_prompt"])
    if not all(turn.has_loss for turn in turns):
        _mask(draw, record, dialogue)
    return _rest(draw, record, dialogue, [*METADATA, "text", "prompt"])


def _edited(turns: tuple[Turn, ...], edit: Clean) -> tuple[Turn, ...]:
    return tuple(
        Turn(edit(turn.question), tuple((edit(text), learn) for text, learn in turn.answer), turn.has_loss)
        for turn in turns
    )


@st.composite
def _belle(draw: Draw, clean: Clean) -> Case:
    dialogue = draw(dialogues(clean).filter(lambda one: bool(one.turns)))
    colon = draw(st.sampled_from([":", "：", " :", ": "]))
    # The marks of turns are text here, so the contents hold none; white space around contents does not count.
    turns = _edited(dialogue.turns, lambda text: text.replace(":", ";").replace("：", ";").strip())
    lines = []
    for turn in turns:
        lines += [f"Human{colon}{turn.question}\n", f"Assistant{colon}{turn.answer[0][0]}\n"]
    lines[-1] = draw(st.sampled_from([f"Assistant{colon}", f"Assistant{colon}\n", ""]))
    # An answer without text inside of the instruction is one that is not there.
    record: dict[str, Any] = {"instruction": "".join(lines), "output": turns[-1].answer[0][0]}
    dialogue = _system_beside(draw, record, replace(dialogue, turns=turns), ["system", "system_prompt"])
    if not all(turn.has_loss for turn in turns):
        _mask(draw, record, dialogue)
    return _rest(draw, record, dialogue, METADATA)


@st.composite
def _moss(draw: Draw, clean: Clean) -> Case:
    shape = draw(st.sampled_from(["chat", "pairs", "text"]))
    # Marks are text here too.
    plain = lambda text: re.sub(r"[<\[]", "(", text).strip()  # noqa: E731
    dialogue = draw(dialogues(clean, flags=True).filter(lambda one: bool(one.turns)))
    turns = _edited(dialogue.turns, plain)
    if dialogue.system is not None:
        dialogue = replace(dialogue, system=dialogue.system.strip() or None)
    record: dict[str, Any] = {}
    names = ["meta_instruction", "prefix", "system"]
    if shape == "text":
        old = draw(st.booleans())
        human, moss = ("[Human]: ", "[MOSS]: ") if old else ("<|Human|>: ", "<|MOSS|>: ")
        end = "<eoa>" if old else "<eom>"
        record["plain_text"] = " ".join(f"{human}{t.question}<eoh> {moss}{t.answer[0][0]}{end}" for t in turns)
        dialogue = _system_beside(draw, record, replace(dialogue, turns=turns), names)
        if not all(turn.has_loss for turn in turns):
            _mask(draw, record, dialogue)
        return _rest(draw, record, dialogue, METADATA)
    if shape == "pairs":
        record["conversation"] = [
            {"human": turn.question, "assistant": turn.answer[0][0], **_flag(draw, turn.has_loss)} for turn in turns
        ]
        return _rest(draw, record, _system_beside(draw, record, replace(dialogue, turns=turns), names), METADATA)
    chat, meant = {}, []
    for number, turn in enumerate(turns, start=1):
        fields, answer = _moss_turn(draw, turn, lambda: draw(contents(clean).map(plain)))
        chat[f"turn_{number}"] = fields | _flag(draw, turn.has_loss)
        meant.append(replace(turn, answer=answer))
    order = draw(st.permutations(sorted(chat)))
    record["chat"] = {name: chat[name] for name in order} | {"turn_99": None}
    return _rest(draw, record, _system_beside(draw, record, replace(dialogue, turns=tuple(meant)), names), METADATA)


def _moss_turn(draw: Draw, turn: Turn, text: Callable[[], str]) -> tuple[dict[str, Any], tuple[tuple[str, bool], ...]]:
    fields: dict[str, Any] = {}
    answer: list[tuple[str, bool]] = []
    marked = draw(st.booleans())
    wrap = (
        (lambda name, content, end: f"<|{name}|>: {content}<{end}>\n") if marked else lambda name, content, end: content
    )
    fields["Human"] = wrap("Human", turn.question, "eoh")
    for name, mark, end, learn in (
        ("Inner Thoughts", "Inner Thoughts", "eot", True),
        ("Commands", "Commands", "eoc", True),
        ("Tool Responses", "Results", "eor", False),
    ):
        if draw(st.booleans()):
            content = draw(st.just("None") | st.builds(text))
            fields[name] = wrap(mark, content, end)
            if content not in ("None", ""):
                answer.append((f"{content}\n", learn))
    fields["MOSS"] = wrap("MOSS", turn.answer[0][0], "eom")
    return fields, (*answer, turn.answer[0])


@st.composite
def _leetcode(draw: Draw, clean: Clean) -> Case:
    problem = clean("P") + draw(contents(clean)).replace("```", "'''")
    code, explanation = draw(contents(clean)), draw(contents(clean))
    record: dict[str, Any] = {
        "code_with_problem": problem + draw(st.sampled_from(["", "```python\nx\n```", "\n\n```\n```"])),
        "code_only": code,
        "explanation_only": explanation,
    }
    answer = "\n".join(text for text in (code, explanation) if text.strip())
    dialogue = Dialogue(draw(st.none() | contents(clean)), (Turn(problem.strip(), ((answer, True),)),), "")
    return _rest(draw, record, _system_beside(draw, record, dialogue, ["system"]), [*METADATA, "code_with_data"])


@st.composite
def _gdgpt(draw: Draw, clean: Clean) -> Case:
    kind = draw(st.sampled_from(["pretrain", "instruct", "conversation", "conver_has_api", "ref_qa"]))
    record: dict[str, Any] = {"type": kind}
    if kind == "pretrain":
        text = Text("", draw(contents(clean)), draw(st.sampled_from(["", "c"])))
        return _rest(draw, record | {"text": text.target}, text, [*METADATA, "title"])
    dialogue = draw(dialogues(clean))
    if kind == "instruct":
        turn = Turn(draw(contents(clean)), ((draw(contents(clean)), True),))
        given = draw(st.sampled_from(["", None]) | contents(clean))
        record |= {"instruct": turn.question, "input": given, "output": turn.answer[0][0]}
        question = "\n".join(text for text in (turn.question, given or "") if text.strip())
        dialogue = replace(dialogue, turns=(replace(turn, question=question),))
        return _rest(draw, record, _system_beside(draw, record, dialogue, ["system"]), [*METADATA, "rounds"])
    dialogue = _trailing(draw, dialogue, clean)
    rounds: list[list[Any]] = []
    turns = []
    for turn in dialogue.turns:
        questions = [turn.question, *draw(st.lists(contents(clean), max_size=1))]
        rounds += [["ask", question] for question in questions]
        answer: Any = turn.answer[0][0]
        segments = turn.answer
        if kind == "conver_has_api" and draw(st.booleans()):
            answer, segments = _api_answer(draw, clean, answer)
        rounds.append(["ans" if isinstance(answer, str) else "ans-api", answer])
        turns.append(Turn("\n".join(questions), segments, turn.has_loss))
    if dialogue.trailing is not None:
        rounds.append(["ask", dialogue.trailing])
    record["rounds"] = rounds
    dialogue = replace(dialogue, turns=tuple(turns))
    if not all(turn.has_loss for turn in turns):
        _mask(draw, record, dialogue)
    if kind == "conversation":
        dialogue = _system_beside(draw, record, dialogue, ["system"])
    else:
        name, header = ("reference", "Answer from this reference:\n")
        if kind == "conver_has_api":
            name, header = ("api_desc", "You can call these APIs:\n")
        record[name] = draw(contents(clean))
        dialogue = replace(dialogue, system=header + record[name])
    return _rest(draw, record, dialogue, [*METADATA, "title"])


def _api_answer(draw: Draw, clean: Clean, answer: str) -> tuple[dict[str, Any], tuple[tuple[str, bool], ...]]:
    segments: list[tuple[str, bool]] = []
    actions = []
    for _ in range(draw(st.integers(0, 2))):
        action = {
            "inner_thought": draw(st.none() | contents(clean)),
            "api_name": draw(contents(clean)),
            "api_param": draw(st.none() | contents(clean) | st.dictionaries(st.just("q"), contents(clean))),
            "api_res": draw(contents(clean)),
        }
        actions.append(action)
        parameters = action["api_param"] or ""
        if isinstance(parameters, dict) or action["api_param"] == {}:
            parameters = json.dumps(action["api_param"], ensure_ascii=False)
        thought = action["inner_thought"] or ""
        before = f"Thought: {thought}\n" if thought.strip() else ""
        segments += [(f"{before}API: {action['api_name']}\nParameters: {parameters}\n", True)]
        segments += [(f"Result: {action['api_res']}\n", False)]
    return {"actions": actions, "ans": answer}, (*segments, (answer, True))


@st.composite
def _colossal(draw: Draw, clean: Clean) -> Case:
    source = draw(st.sampled_from(["", None]) | contents(clean))
    text = Text(source or "", draw(contents(clean)), draw(st.sampled_from(["", "c"])))
    record: dict[str, Any] = {"target": text.target}
    if source is not None or draw(st.booleans()):
        record["source"] = source
    return _rest(draw, record, text, [*METADATA, "title", "system", "prompt"])


@st.composite
def _wudao(draw: Draw, clean: Clean) -> Case:
    title, content, kind = draw(contents(clean)), draw(contents(clean)), draw(st.sampled_from(["", "百科"]))
    target = f"{title}\n{content}" if title.strip() else content
    meaning = Text("", target if content.strip() else "", kind)
    record = {"title": title, "content": content, "dataType": kind}
    case = _rest(draw, record, replace(meaning, category=""), METADATA)
    record = {name: value for name, value in case.record.items() if name != "category"}
    return Case(record, meaning, case.unread)


@st.composite
def _text(draw: Draw, clean: Clean) -> Case:
    text = Text("", draw(contents(clean)), draw(st.sampled_from(["", "c"])))
    record: dict[str, Any] = {"text": text.target}
    case = _rest(draw, record, text, [*METADATA, "title"])
    if draw(st.booleans()):
        return replace(
            case,
            record=case.record | {"meta": {"pile_set_name": "Pile", "page": 1}},
            meaning=replace(text, category="Pile"),
            unread=case.unread | {"meta.page"},
        )
    return case


RECORDS: dict[str, Callable[[Clean], st.SearchStrategy[Case]]] = {
    "messages": lambda clean: _messages(clean, False),
    "sharegpt": lambda clean: _messages(clean, True),
    "alpaca": _alpaca,
    "belle": _belle,
    "moss": _moss,
    "leetcode": _leetcode,
    "gdgpt": _gdgpt,
    "colossal": _colossal,
    "wudao": _wudao,
    "text": _text,
}
"""A strategy for the records of every format."""

_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | LETTERS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(LETTERS, inner, max_size=3),
    max_leaves=6,
)
_NAMES = [
    *("system", "tools", "history", "weight", "loss_mask", "role", "from", "content", "value", "type", "text", "chat"),
    *("messages", "conversations", "conversation", "rounds", "actions", "MOSS", "Human", "label", "images", "target"),
]


@st.composite
def damaged(draw: Draw, case: Case) -> dict[str, Any]:
    """The record with something wrong in it, or perhaps not wrong: values replaced, removed, added, at any depth."""
    record = json.loads(json.dumps(case.record))
    for _ in range(draw(st.integers(1, 3))):
        place: Any = record
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = draw(st.sampled_from(keys)) if keys else None
            inside = key is not None and isinstance(place[key], dict | list) and place[key]
            if not inside or draw(st.integers(0, 3)) == 0:
                break
            place = place[key]
        change = draw(st.sampled_from(["replace", "remove", "add"]))
        if change == "add" or key is None:
            if isinstance(place, dict):
                place[draw(st.sampled_from(_NAMES))] = draw(_ANYTHING)
            else:
                place.append(draw(_ANYTHING))
        elif change == "remove":
            del place[key]
        else:
            place[key] = draw(_ANYTHING)
    return record
