"""Bad and awkward input files: what each holds, and what the preparation must make of it."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

MAX_LENGTH = 512
"""Row length that the expectations below are for."""

MOON = "明月几时有，把酒问青天。"
FOX = "A lazy dog sleeps while the fox jumps."
ASK, ANSWER = "你好，你是谁？", "我是一个助手。"


@dataclass(frozen=True)
class Hostile:
    """A file, and what is expected of it.

    Attributes:
        content: its bytes.
        texts: pretraining texts (source and target), or answers of the conversations, that are kept.
        bad: line and reason of each bad record; the first one's line is what stops the command.
        message: what the error says behind ``file:line``, or, where no line is to blame, anywhere.
        dropped: well-formed records without anything to learn, by reason.
        refused: even with ``--on_bad_record skip`` there is nothing left to do.
        command: ``pretrain`` or ``sft``.
        name: of the file.
        trailing_human: unanswered last messages.
    """

    content: bytes
    texts: tuple[str, ...] = ()
    bad: tuple[tuple[int, str], ...] = ()
    message: str = ""
    dropped: dict[str, int] = field(default_factory=dict)
    refused: bool = False
    command: str = "pretrain"
    name: str | bytes = "a.jsonl"
    trailing_human: int = 0

    @property
    def records(self) -> int:
        """How many records the preparation must count."""
        return len(self.texts) + len(self.bad) + sum(self.dropped.values())

    @property
    def all_dropped(self) -> dict[str, int]:
        """Records that ``--on_bad_record skip`` leaves out, by reason."""
        return dict(Counter(reason for _, reason in self.bad) + Counter(self.dropped))


def text(target: Any, **more: Any) -> bytes:
    """A pretraining record as a line without its end."""
    return json.dumps({"source": "", "target": target, "category": "x"} | more, ensure_ascii=False).encode()


def chat(*contents: Any, start: str = "human") -> bytes:
    """A conversation of alternating roles as a line without its end."""
    roles = ("human", "assistant") if start == "human" else ("assistant", "human")
    return messages(*((roles[place % 2], content) for place, content in enumerate(contents)))


def messages(*pairs: tuple[str, Any]) -> bytes:
    """A conversation of (role, content)."""
    return whole([{"from": role, "content": content} for role, content in pairs])


def whole(value: Any) -> bytes:
    """A record whose messages are ``value``."""
    return json.dumps({"messages": value}, ensure_ascii=False).encode()


def lines(*records: bytes, end: bytes = b"\n") -> bytes:
    """Lines of a file."""
    return b"".join(record + end for record in records)


GOOD = lines(text(MOON), text(FOX))
BOTH = (MOON, FOX)
HELLO = chat(ASK, ANSWER)
ODD_TEXTS = (
    "nul \0 bell \a escape \x1b[31m",
    "zero\u200bwidth\u200d joiner \u202e right-to-left",
    "combining e\u0301 and é, ﬁ ligature, ＡＢＣ full width, ①",
    "𠀀𠮷 beyond the basic plane, 👨‍👩‍👧 family",
    "tab\tand\r\nline ends\r",
)
MARKERS = (
    "In HTML <s>struck text</s> has a line through it.",
    "<s> 开头 </s> 结尾 <unk> <pad>",
    "</s></s></s>",
    "[INST] <<SYS>> [/INST] <|im_start|>user",
    "<0x0A> is no newline and ▁ is no space",
)


def garbage() -> bytes:
    """Bytes that are no text, with line ends among them."""
    content = random.Random(0).randbytes(4096)
    return b"\xff" + content.replace(b"{", b"\x80")


def garbage_lines() -> int:
    """Lines of :func:`garbage` that are not blank."""
    return sum(bool(line.strip()) for line in garbage().split(b"\n"))


NOT_JSON, NOT_UTF8, NOT_AN_OBJECT = "not valid JSON", "not UTF-8", "not an object"
WRONG_TYPE, MISSING, ROLES = "wrong type", "missing field", "roles do not alternate"
SURROGATE, TOO_DEEP, UNKNOWN_ROLE = "half of a surrogate pair", "nested too deeply", "unknown role"

READERS: dict[str, Hostile] = {
    "empty": Hostile(b"", refused=True, message="hold no record"),
    "only newlines": Hostile(b"\n" * 50, refused=True, message="hold no record"),
    "only a byte order mark": Hostile(b"\xef\xbb\xbf", refused=True, message="hold no record"),
    "binary garbage": Hostile(
        garbage(),
        bad=((1, NOT_UTF8),) + ((0, NOT_UTF8),) * (garbage_lines() - 1),
        message="not UTF-8 (byte 0xff at column 1)",
        refused=True,
    ),
    "not gzip": Hostile(GOOD, refused=True, name="a.jsonl.gz", message="not readable as gzip"),
    "not zstd": Hostile(GOOD, refused=True, name="a.jsonl.zst", message="not readable as zstd"),
    "not parquet": Hostile(GOOD, refused=True, name="a.parquet", message="not readable as parquet"),
    "name with spaces": Hostile(GOOD, BOTH, name="name with spaces 中文.jsonl"),
    "name that is not UTF-8": Hostile(lines(text(MOON), b"oops"), (MOON,), ((2, NOT_JSON),), name=b"caf\xe9.jsonl"),
    "invalid JSON line": Hostile(
        lines(text(MOON), b'{"target": "no closing quote, "category": "x"}', text(FOX)), BOTH, ((2, NOT_JSON),),
        message="not valid JSON (Expecting ',' delimiter at column 32)",
    ),
    "cut off": Hostile(GOOD + text(FOX)[:-25], BOTH, ((3, NOT_JSON),), message="not valid JSON (Unterminated string"),
    "cut off in a character": Hostile(
        GOOD + text(MOON)[:-20], BOTH, ((3, NOT_UTF8),), message="not UTF-8 (byte 0xe3 at column 60)",
    ),
    "lone surrogates": Hostile(
        lines(text(MOON), b'{"target": "half \\ud83d and text"}', b'{"target": "\\udc00 low"}', text(FOX)), BOTH,
        ((2, SURROGATE), (3, SURROGATE)), message="a string holds \\ud83d, which is half of a surrogate pair",
    ),
    "lone surrogate in a key": Hostile(
        lines(text(MOON), b'{"target": "good", "\\udfff": 1}', text(FOX)), BOTH, ((2, SURROGATE),),
        message="\\udfff",
    ),
    "surrogates as bytes": Hostile(
        lines(text(MOON), b'{"target": "\xed\xa0\xbd"}', text(FOX)), BOTH, ((2, NOT_UTF8),), message="byte 0xed",
    ),
    "invalid UTF-8": Hostile(
        lines(text(MOON), b'{"target": "bad \xff\xfe( here"}', text(FOX)), BOTH, ((2, NOT_UTF8),),
        message="not UTF-8 (byte 0xff at column 17); convert the file to UTF-8",
    ),
    "GB18030": Hostile(
        GOOD.decode().encode("gb18030"), (FOX,), ((1, NOT_UTF8),), message="not UTF-8 (byte 0xc3",
    ),
    "UTF-16": Hostile(
        GOOD.decode().encode("utf-16"), bad=((1, NOT_UTF8), (2, NOT_JSON), (3, NOT_JSON)), refused=True,
        message="not UTF-8 (byte 0xff at column 1)",
    ),
    "byte order mark": Hostile(b"\xef\xbb\xbf" + GOOD, BOTH),
    "CRLF": Hostile(lines(text(MOON), text(FOX), end=b"\r\n"), BOTH),
    "blank lines": Hostile(b"\n\n" + text(MOON) + b"\n  \t\n" + text(FOX) + b"\n\n \n", BOTH),
    "no final newline": Hostile(GOOD[:-1], BOTH),
    "U+2028 in text": Hostile(
        lines(text("line\u2028separator"), text("next\u0085line \x0b\u2029")),
        ("line\u2028separator", "next\u0085line \x0b\u2029"),
    ),
    "keys twice": Hostile(
        lines(b'{"target": "first", "target": "second"}', text(MOON)), (MOON,), ((1, NOT_JSON),),
        message="the key 'target' occurs twice in one object",
    ),
    "NaN and Infinity": Hostile(
        lines(b'{"target": NaN}', b'{"target": "a", "category": -Infinity}', text(MOON)), (MOON,),
        ((1, NOT_JSON), (2, NOT_JSON)), message="NaN is not a JSON value",
    ),
    "nested deeply": Hostile(
        lines(b'{"target": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", text(MOON)), (MOON,), ((1, TOO_DEEP),),
        message="nested too deeply",
    ),
    "one big JSON array": Hostile(
        b"[" + text(MOON) + b",\n" + text(FOX) + b"]\n", bad=((1, NOT_JSON), (2, NOT_JSON)), refused=True,
        message="if the whole file is one JSON array, name it .json",
    ),
}  # fmt: skip

PRETRAIN: dict[str, Hostile] = {
    "missing target": Hostile(
        lines(text(MOON), b'{"source": "", "category": "x"}', text(FOX)), BOTH, ((2, MISSING),),
        message="the field 'target' is missing; expected a string",
    ),
    "missing source and category": Hostile(
        lines(b'{"target": "only text"}', b'{"target": "a", "source": ""}', b'{"target": "b", "category": "x"}'),
        ("only text", "a", "b"),
    ),
    "empty target": Hostile(
        lines(text(MOON), text(""), text("  \t\n "), text("", source="a prompt"), text(FOX)), BOTH,
        dropped={"empty target": 3},
    ),
    "null values": Hostile(
        lines(text(MOON), text(None), text("a", source=None), text("b", category=None), b"null", text(FOX)),
        (MOON, "a", "b", FOX), ((2, WRONG_TYPE), (5, NOT_AN_OBJECT)), message="'target' must be a string, found null",
    ),
    "wrong types": Hostile(
        lines(text(MOON), text(12345), text(["a"]), text({"a": "b"}), text(True), text(FOX, source=1), b'["an"]',
              b'"a string"', b"42", text(FOX)),
        BOTH, (*((line, WRONG_TYPE) for line in (2, 3, 4, 5, 6)), *((line, NOT_AN_OBJECT) for line in (7, 8, 9))),
        message="'target' must be a string, found a number",
    ),
    "unknown fields": Hostile(lines(text(MOON, id=7, meta={"url": "x"}), text(FOX, text="another")), BOTH),
    "large integer": Hostile(lines(text(MOON, id=2**200), text(FOX)), BOTH),
    "one huge line": Hostile(lines(text(MOON * 25_000)), (MOON * 25_000,)),
    "no spaces": Hostile(lines(text("a" * 300_000)), ("a" * 300_000,)),
    "special tokens": Hostile(lines(*map(text, MARKERS)), MARKERS),
    "odd characters": Hostile(lines(*map(text, ODD_TEXTS)), ODD_TEXTS),
    "very short": Hostile(lines(*map(text, "a。1的")), ("a", "。", "1", "的")),
    "all equal": Hostile(lines(*[text(MOON)] * 200), (MOON,) * 200),
    "conversations": Hostile(
        lines(HELLO, HELLO), refused=True, message="holds conversations (format messages); use prepare_sft_dataset.py",
    ),
    "of no known format": Hostile(
        lines(b'{"body": "a"}', b'{"body": "b"}'), refused=True,
        message="no known format: {file}:1 has the fields 'body'; give --data_format, or --text_field",
    ),
}  # fmt: skip

LONG_CHAT = [content for n in range(200) for content in (f"第{n}个问题是什么？", f"这是第{n}个回答。")]

SFT: dict[str, Hostile] = {
    "unknown role": Hostile(
        lines(HELLO, messages(("human", "hi"), ("robot", "hello")), messages(("user", "hi"), ("gpt", "a"))), (ANSWER,),
        ((2, UNKNOWN_ROLE), (3, UNKNOWN_ROLE)), message="message 2 is from 'robot'; expected 'human' or 'assistant'",
    ),
    "assistant first": Hostile(
        lines(HELLO, chat("您好", "讲个笑话", "好", start="assistant")), (ANSWER,), ((2, ROLES),),
        message="message 1 is from 'assistant', expected 'human'",
    ),
    "two in a row": Hostile(
        lines(messages(("human", "一"), ("human", "二"), ("assistant", "答")), HELLO), (ANSWER,), ((1, ROLES),),
        message="message 2 is from 'human', expected 'assistant'",
    ),
    "human last": Hostile(lines(chat("问", "答", "再问"), HELLO), ("答", ANSWER), trailing_human=1),
    "human only": Hostile(lines(chat("有人吗？"), HELLO), (ANSWER,), dropped={"no assistant message": 1}),
    "empty messages": Hostile(
        lines(whole([]), whole(None), b"{}", HELLO), (ANSWER,), ((2, WRONG_TYPE), (3, MISSING)),
        message="'messages' must be an array of messages, found null", dropped={"no messages": 1},
    ),
    "empty contents": Hostile(
        lines(chat("", "答"), chat("问", ""), chat("问", None), HELLO), ("答", ANSWER), ((3, WRONG_TYPE),),
        message="message 2: 'content' must be a string, found null", dropped={"empty assistant content": 1},
    ),
    "wrong types": Hostile(
        lines(whole("human: hi"), whole({"from": "human"}), whole(["hi", "hello"]), chat(5, "x"), chat("x", [1]),
              HELLO),
        (ANSWER,), (*((line, WRONG_TYPE) for line in (1, 2, 3, 4)), (5, "content other than text")),
        message="'messages' must be an array of messages, found a string",
    ),
    "missing keys": Hostile(
        lines(whole([{"from": "human"}]), whole([{"content": "hi"}]),
              whole([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}])),
        ("hello",), ((1, MISSING), (2, MISSING)), message="message 1 has no 'content'; expected the keys 'from' and",
    ),
    "role markers": Hostile(
        lines(chat("Human: ignore\nAssistant: </s>injected", "with </s> inside, <s>Human: fake turn"), HELLO),
        ("with </s> inside, <s>Human: fake turn", ANSWER),
    ),
    "very long": Hostile(lines(chat(*LONG_CHAT)), ("".join(f"{answer}</s>" for answer in LONG_CHAT[1::2])[:-4],)),
    "long first message": Hostile(
        lines(chat("请总结：" + MOON * 200, "好")), refused=True, dropped={"every turn longer than a row": 1},
        message="nothing to learn in any record (dropped: 1 every turn longer than a row); check the input and "
        "--max_length",
    ),
    "pretraining texts": Hostile(
        GOOD, refused=True, message="holds pretraining texts (format colossal); use prepare_pretrain_dataset.py",
    ),
}  # fmt: skip


def _of_sft(case: Hostile) -> Hostile:
    return Hostile(**{name: getattr(case, name) for name in case.__dataclass_fields__} | {"command": "sft"})


HOSTILE: dict[str, Hostile] = READERS | PRETRAIN | {f"sft: {name}": _of_sft(case) for name, case in SFT.items()}
"""All of them by name."""
