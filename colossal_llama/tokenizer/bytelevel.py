"""Widening a byte-level BPE ``tokenizer.json`` (Llama 3, Qwen, SmolLM2, DeepSeek).

New merges stand at the end of the list, below every old one, so text without the new tokens keeps its ids, and any
other text gets its old tokens with neighbours joined. An intermediate token may be part of a character; the text of
other characters with the same bytes changes then, which is why those tokens are counted.
"""

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

from colossal_llama.tokenizer.merging import merge_symbols
from colossal_llama.tokenizer.pieces import NOT_NORMAL, SPACE_MARK, SPLIT
from colossal_llama.tokenizer.reachability import Unreachable

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@functools.cache
def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable character for each of the 256 bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        table.setdefault(byte, chr(256 + len(table) - len(printable)))
    return table


@functools.cache
def _byte_of() -> dict[str, int]:
    return {character: byte for byte, character in byte_alphabet().items()}


def spell(piece: str) -> str:
    """The byte-level spelling of a piece (``▁`` is a space)."""
    alphabet = byte_alphabet()
    return "".join(alphabet[byte] for byte in piece.replace(SPACE_MARK, " ").encode("utf-8"))


def unspell(token: str) -> bytes:
    """The bytes that a byte-level token stands for.

    Raises:
        KeyError: ``token`` is not spelled in the byte alphabet (some added tokens are not).
    """
    table = _byte_of()
    return bytes(table[character] for character in token)


def is_whole_text(token: str) -> bool:
    """Whether a byte-level token consists of whole UTF-8 characters."""
    try:
        unspell(token).decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def is_byte_level(backend: dict[str, Any]) -> bool:
    """Whether a ``tokenizer.json`` mapping is byte-level BPE."""
    return backend["model"].get("type") == "BPE" and _names_byte_level(backend.get("pre_tokenizer"))


def _names_byte_level(component: dict[str, Any] | None) -> bool:
    if component is None:
        return False
    if component.get("type") == "ByteLevel":
        return True
    return any(_names_byte_level(part) for part in component.get("pretokenizers", []))


def judge(backend_tokenizer: "Tokenizer", piece: str) -> str | None:
    """Why ``piece`` can never come out of this tokenizer as one token, or None."""
    text = piece.replace(SPACE_MARK, " ")
    if backend_tokenizer.normalizer and backend_tokenizer.normalizer.normalize_str(text) != text:
        return NOT_NORMAL
    words = [word for word, _ in backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    # With add_prefix_space the pre-tokenizer puts a space before the piece; inside a text it does not.
    if words not in ([spell(piece)], [spell(" " + piece)]):
        return SPLIT
    return None


@dataclasses.dataclass
class MergeTable:
    """The merges of a byte-level model, growing at the end."""

    ranks: dict[tuple[str, str], int]
    added: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, backend: dict[str, Any]) -> "MergeTable":
        """The table of a ``tokenizer.json`` mapping with merges as pairs."""
        return cls({tuple(merge): rank for rank, merge in enumerate(backend["model"]["merges"])})

    def encode(self, tokens: list[str]) -> list[str]:
        """What the model makes of neighbouring tokens (single bytes at first)."""
        return merge_symbols(tokens, lambda left, right: self.ranks.get((left, right)))

    def append(self, left: str, right: str) -> None:
        """Add a merge below all others."""
        self.ranks[left, right] = len(self.ranks)
        self.added.append((left, right))

    def make_reachable(self, token: str) -> None:
        """Append the merges that ``token``'s bytes still need to become one token."""
        tokens = self.encode(list(token))
        while len(tokens) > 1:
            self.append(*next_pair(tokens))
            tokens = self.encode(tokens)

    def missing(self, tokens: list[str]) -> list[str]:
        """The tokens that :meth:`make_reachable` would make of ``tokens``, the last one left out; adds nothing."""
        own: dict[tuple[str, str], int] = {}
        made = []
        while len(tokens) > 2:
            left, right = next_pair(tokens)
            own[left, right] = len(self.ranks) + len(own)
            made.append(left + right)
            tokens = merge_symbols(tokens, lambda one, two: self.ranks.get((one, two), own.get((one, two))))
        return made


def next_pair(tokens: list[str]) -> tuple[str, str]:
    """The neighbours to merge next: inside the first character that is still in parts, else the first two.

    Putting characters together before words keeps tokens that are neither bytes nor text to a minimum.
    """
    start = 0
    for end in range(1, len(tokens) + 1):
        if is_whole_text("".join(tokens[start:end])):
            if end - start > 1:
                return tokens[start], tokens[start + 1]
            start = end
    return tokens[0], tokens[1]


def join_pieces(backend: dict[str, Any], pieces: list[str]) -> tuple[MergeTable, list[Unreachable]]:
    """Add the merges that join two existing tokens to a piece, and find the pieces that this does not reach.

    Shorter pieces come first, so that a long piece is put together from them.

    Returns:
        The merges, and the pieces whose text stays in three tokens or more.
    """
    table = MergeTable.of(backend)
    found = []
    for piece in sorted(pieces, key=len):
        tokens = table.encode(list(spell(piece)))
        if len(tokens) == 2:
            table.append(*tokens)
        elif len(tokens) > 2:
            missing = map(readable, table.missing(tokens))
            found.append(Unreachable(piece, tuple(map(readable, tokens)), tuple(missing)))
    return table, found


def readable(token: str) -> str:
    """A token as text, or its bytes where they are not whole characters: ``<E9 A5>``."""
    content = unspell(token)
    return content.decode("utf-8") if is_whole_text(token) else f"<{content.hex(' ').upper()}>"


def widen(backend: dict[str, Any], pieces: list[str], *, repair: bool) -> list[str]:
    """Append ``pieces`` and what they need to a ``tokenizer.json`` mapping (changed in place).

    Ids: the old ones stay, then ``pieces`` in their order, then intermediate tokens. Added tokens move into
    the model's own vocabulary under their old ids, because the tokenizers library numbers those outside of
    it anew, after the model's last id, when it loads the file. Merges go by length, so that a long piece is
    put together from short ones instead of from intermediates.

    Args:
        backend: the mapping.
        pieces: new pieces, in order of priority.
        repair: add intermediate tokens where a piece needs them; without it such a piece gets no merge.

    Returns:
        The spellings of the intermediate tokens.
    """
    vocabulary: dict[str, int] = backend["model"]["vocab"]
    for added in backend["added_tokens"]:
        vocabulary.setdefault(added["content"], added["id"])
    next_id = max(vocabulary.values()) + 1
    known = set(vocabulary)
    spellings = [spell(piece) for piece in pieces]
    if repair:
        table = MergeTable.of(backend)
        for piece in sorted(pieces, key=len):
            table.make_reachable(spell(piece))
    else:
        table, _ = join_pieces(backend, pieces)
    made = dict.fromkeys(left + right for left, right in table.added)
    known.update(spellings)
    intermediates = [token for token in made if token not in known]
    for token in spellings + intermediates:
        vocabulary[token] = next_id
        next_id += 1
    backend["model"]["merges"] = [*backend["model"]["merges"], *(list(pair) for pair in table.added)]
    return intermediates
