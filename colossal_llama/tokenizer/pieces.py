"""Reading the pieces to add, and telling the usable ones from the rest.

A piece is running text in which ``▁`` stands for a space, whatever the tokenizer's family.
"""

import dataclasses
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable
from pathlib import Path

from colossal_llama.errors import UserError
from colossal_llama.json_records import parse_line

SPACE_MARK = "▁"
"""Stands for a space inside a piece (SentencePiece's convention)."""

MAX_PIECE_CHARACTERS = 32
"""Longer pieces would need a chain of intermediate tokens that no text ever uses."""

DUPLICATE = "given twice"
ALREADY_KNOWN = "already in the vocabulary"
SPECIAL = "holds a special, control or byte token"
CONTROL_CHARACTER = "contains a newline or control character"
NOT_NORMAL = "changed by the tokenizer's normalization"
SPLIT = "split by the tokenizer's pre-tokenizer"
TOO_LONG = f"longer than {MAX_PIECE_CHARACTERS} characters"
BLANK = "only white space"
INNER_SPACE = "contains a space that is not its first character"
BROKEN_TEXT = "contains U+FFFD, the mark of wrongly decoded text"

EXAMPLES_SHOWN = 3
"""Skipped pieces that a message shows for each reason."""

_SPECIAL_SPELLING = re.compile(
    r"<0x[0-9A-Fa-f]{2}>|</?(?:s|unk|pad|mask|cls|sep|bos|eos)>|\[(?:UNK|PAD|MASK|CLS|SEP|BOS|EOS)\]|<[|｜].*[|｜]>"
)
_CONTROL_CATEGORIES = {"Cc", "Cs", "Zl", "Zp"}
_BYTE_ORDER_MARK = "\ufeff"
_REPLACEMENT = "\ufffd"


@dataclasses.dataclass(frozen=True)
class PieceSelection:
    """The pieces that can be added, and those that were left out.

    Attributes:
        pieces: the usable ones, in the file's order, with ``▁`` for a space.
        left_out: every other one as the file spells it, with the reason, in the file's order.
    """

    pieces: list[str]
    left_out: list[tuple[str, str]]

    @property
    def skipped(self) -> Counter[str]:
        """How many pieces were left out, by reason."""
        return Counter(reason for _, reason in self.left_out)


def read_pieces(path: Path, flag: str = "--expand_tokens_file") -> list[str]:
    """Read a jsonl file of ``{"piece": "..."}`` lines; blank lines are ignored.

    Returns:
        The pieces in the file's order, duplicates included.

    Raises:
        UserError: the file is missing or holds no piece, or a line is not a JSON object in UTF-8 with a
            string ``piece``, or has an empty piece; the message names file and line.
    """
    if not path.is_file():
        raise UserError(f'{flag} {path}: no such file; expected jsonl with one {{"piece": "..."}} a line')
    pieces = []
    for number, raw in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if raw.strip():
            pieces.append(_piece_of(raw, f"{path}:{number}"))
    if not pieces:
        raise UserError(f'{flag} {path}: holds no piece; expected one {{"piece": "..."}} a line')
    return pieces


def _piece_of(raw: bytes, where: str) -> str:
    piece = parse_line(raw, where).get("piece")
    if not isinstance(piece, str):
        raise UserError(f'{where}: expected {{"piece": "..."}} with a string, found {raw.decode()[:60].strip()}')
    if not piece:
        raise UserError(f"{where}: the piece is empty; remove the line")
    return piece


def select_pieces(
    pieces: Iterable[str],
    known: Container[str],
    special: Collection[str],
    spell: Callable[[str], str],
    judge: Callable[[str], str | None],
) -> PieceSelection:
    """Leave out the pieces that cannot or need not be added.

    Args:
        pieces: candidates, in order of priority; a space and ``▁`` mean the same.
        known: the old vocabulary, in the tokenizer's own spelling.
        special: contents of the tokenizer's special and added tokens, which text is split at first.
        spell: from a piece (with ``▁``) to the tokenizer's spelling of it.
        judge: the family's own reason to skip a piece, or None.
    """
    chosen: dict[str, None] = {}
    left_out: list[tuple[str, str]] = []
    marks = _containing_any(special)
    for raw in pieces:
        piece = raw.replace(" ", SPACE_MARK)
        reason = _reason_to_skip(raw, marks)
        if reason is None and piece in chosen:
            reason = DUPLICATE
        if reason is None and spell(piece) in known:
            reason = ALREADY_KNOWN
        if reason is None:
            reason = judge(piece)
        if reason is None:
            chosen[piece] = None
        else:
            left_out.append((raw, reason))
    return PieceSelection(list(chosen), left_out)


def _containing_any(special: Collection[str]) -> re.Pattern[str]:
    """A pattern that finds any of the special tokens inside a piece; one search instead of a thousand."""
    contents = [re.escape(token) for token in special if token]
    return re.compile("|".join(contents) if contents else r"(?!)")


def _reason_to_skip(raw: str, special: re.Pattern[str]) -> str | None:
    if _SPECIAL_SPELLING.fullmatch(raw) or special.search(raw):
        return SPECIAL
    if _BYTE_ORDER_MARK in raw or any(unicodedata.category(char) in _CONTROL_CATEGORIES for char in raw):
        return CONTROL_CHARACTER
    if _REPLACEMENT in raw:
        return BROKEN_TEXT
    if not raw.replace(SPACE_MARK, " ").strip():
        return BLANK
    # A piece across words would join the end of one old word with the start of the next.
    if " " in raw[1:].replace(SPACE_MARK, " "):
        return INNER_SPACE
    if len(raw) > MAX_PIECE_CHARACTERS:
        return TOO_LONG
    return None


def require_pieces(selection: PieceSelection) -> None:
    """Refuse an expansion that would add nothing.

    Raises:
        UserError: no piece is left; the message counts the reasons.
    """
    if not selection.pieces:
        raise UserError(f"no piece left to add ({describe_skipped(selection.skipped)}); give other pieces")


def examples_by_reason(left_out: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """The first few pieces that were left out for each reason."""
    examples: dict[str, list[str]] = {}
    for raw, reason in left_out:
        shown = examples.setdefault(reason, [])
        if len(shown) < EXAMPLES_SHOWN:
            shown.append(raw if len(raw) <= 40 else raw[:40] + "...")
    return examples


def describe_skipped(skipped: Counter[str]) -> str:
    """One line for people: ``3 given twice, 1 already in the vocabulary``."""
    return ", ".join(f"{count} {reason}" for reason, count in skipped.most_common()) or "none skipped"
