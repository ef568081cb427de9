"""Reading the list of new pieces: what is an error, what is skipped and counted."""

from pathlib import Path

import pytest

from colossal_llama.errors import UserError
from colossal_llama.tokenizer import pieces as pieces_module
from colossal_llama.tokenizer.pieces import (
    ALREADY_KNOWN,
    BLANK,
    BROKEN_TEXT,
    CONTROL_CHARACTER,
    DUPLICATE,
    INNER_SPACE,
    SPECIAL,
    TOO_LONG,
    PieceSelection,
    examples_by_reason,
    read_pieces,
    require_pieces,
    select_pieces,
)


def select(candidates: list[str], known: tuple[str, ...] = (), special: tuple[str, ...] = ()) -> PieceSelection:
    return select_pieces(candidates, known, special, spell=lambda piece: piece, judge=lambda piece: None)


def test_reads_pieces_between_blank_lines_with_mark_and_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "pieces.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"piece": "\xe4\xbd\xa0"}\r\n\r\n  \n{"piece": "a b", "count": 3}')
    assert read_pieces(path) == ["你", "a b"]


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        (b'{"piece": "a"}\n{"piece": "b"\n', 2, "not valid JSON"),
        (b'{"piece": "a"}\n\n{"token": "b"}\n', 3, "with a string"),
        (b'{"piece": null}\n', 1, "with a string"),
        (b'{"piece": 7}\n', 1, "with a string"),
        (b'"piece"\n', 1, "expected a JSON object"),
        (b'{"piece": ""}\n', 1, "empty"),
        (b'{"piece": "a"}\n{"piece": "\xd6\xd0"}\n', 2, "not UTF-8"),
        (b"[" * 100_000 + b"\n", 1, "nested too deeply"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, content: bytes, line: int, reason: str) -> None:
    path = tmp_path / "pieces.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"pieces.jsonl:{line}: .*{reason}") as caught:
        read_pieces(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n\n  \n"])
def test_a_file_without_pieces_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pieces.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match="holds no piece"):
        read_pieces(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--expand_tokens_file .*no such file"):
        read_pieces(tmp_path / "absent.jsonl")


def test_skipped_pieces_are_counted_by_reason() -> None:
    long = "中" * (pieces_module.MAX_PIECE_CHARACTERS + 1)
    candidates = ["你好", "你好", "the", "<s>", "<0x41>", "<pad>", "<|im_end|>", "x<tool>y"]
    candidates += ["第\n一", "a\0b", "\ufeff中", "a\u2028b", "\ud800", long, "世界"]
    selection = select(candidates, known=("the",), special=("<tool>",))
    assert selection.pieces == ["你好", "世界"]
    assert selection.skipped == {
        DUPLICATE: 1,
        ALREADY_KNOWN: 1,
        SPECIAL: 5,
        CONTROL_CHARACTER: 5,
        TOO_LONG: 1,
    }


def test_space_and_its_mark_are_the_same_piece() -> None:
    selection = select([" ab", "▁ab", " c"], known=("▁c",))
    assert selection.pieces == ["▁ab"]
    assert selection.skipped == {DUPLICATE: 1, ALREADY_KNOWN: 1}


def test_white_space_alone_or_inside_is_skipped() -> None:
    selection = select([" ", "▁", "▁▁", "\u3000", "中 国", "of▁the", "，▁", "▁▁x", "▁x"])
    assert selection.pieces == ["▁x"]
    assert selection.skipped == {BLANK: 4, INNER_SPACE: 4}


def test_every_skipped_piece_is_listed_as_it_was_given_with_its_reason() -> None:
    selection = select(["你好", "a b", "你好", "坏\ufffd", "<s>"])
    assert selection.left_out == [
        ("a b", INNER_SPACE),
        ("你好", DUPLICATE),
        ("坏\ufffd", BROKEN_TEXT),
        ("<s>", SPECIAL),
    ]
    many = [(str(number), DUPLICATE) for number in range(9)]
    assert examples_by_reason([*many, ("x" * 99, TOO_LONG)]) == {
        DUPLICATE: ["0", "1", "2"],
        TOO_LONG: ["x" * 40 + "..."],
    }


def test_special_tokens_are_found_as_text_not_as_patterns() -> None:
    selection = select(["a.c", "abc", "x[y"], special=("a.c", "[", ""))
    assert selection.pieces == ["abc"]


def test_html_tags_are_ordinary_pieces() -> None:
    assert select(["<div>", "</span>"]).pieces == ["<div>", "</span>"]


def test_nothing_left_is_an_error_that_says_why() -> None:
    with pytest.raises(UserError, match=r"no piece left to add .*2 already in the vocabulary"):
        require_pieces(select(["a", "b"], known=("a", "b")))
