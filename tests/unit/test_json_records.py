"""The quick parser and the strict one agree on everything."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama import json_records
from colossal_llama.errors import RecordError
from colossal_llama.json_records import parse_line

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(['":', '" :', "\\"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def strictly(raw: bytes) -> dict[str, Any] | str:
    try:
        return json_records._parse_strictly(raw, "f:1")
    except RecordError as error:
        return str(error)


def as_read(raw: bytes) -> dict[str, Any] | str:
    try:
        return parse_line(raw, "f:1")
    except RecordError as error:
        return str(error)


@given(value=st.dictionaries(st.text(max_size=4), VALUES, max_size=4), ascii_only=st.booleans(), wide=st.booleans())
def test_objects_are_read_as_by_the_strict_parser(value: dict[str, Any], ascii_only: bool, wide: bool) -> None:
    separators = (" , ", "\t: ") if wide else None
    text = json.dumps(value, ensure_ascii=ascii_only, separators=separators)
    raw = text.encode("utf-8", "surrogatepass")
    assert as_read(raw) == strictly(raw)


@given(raw=st.binary(max_size=30) | st.text('{}[]":,\\ud8a10n.e', max_size=30).map(str.encode))
def test_anything_else_is_refused_as_by_the_strict_parser(raw: bytes) -> None:
    assert as_read(raw) == strictly(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a": 1, "a": 2}',
        b'{"a": {"b": 1, "b": "2"}}',
        b'{"a": [{"b": 1}, {"b": 1, "b": 2}]}',
        b'{"a" : 1, "a": "\\":"}',
        b'{"a"\t : 1, "a" : 2, "c": "\\":\\":"}',
    ],
)
def test_a_key_that_stands_twice_is_never_lost(raw: bytes) -> None:
    with pytest.raises(RecordError, match="occurs twice"):
        parse_line(raw, "f:1")


def test_large_integers_are_exact() -> None:
    assert parse_line(b'{"id": 123456789012345678901234567890}', "f:1") == {"id": 123456789012345678901234567890}


def test_a_plain_record_takes_the_quick_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(raw: bytes, where: str) -> dict[str, Any]:
        raise AssertionError("the strict parser was asked")

    monkeypatch.setattr(json_records, "_parse_strictly", refuse)
    assert parse_line('{"target": "中 \\n", "meta": {"a": [1, null]}}\r'.encode(), "f:1")["meta"] == {"a": [1, None]}
