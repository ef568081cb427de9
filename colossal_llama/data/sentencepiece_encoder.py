"""SentencePiece's own encoder in place of the ``tokenizers`` library's, where both give the same ids.

Both do byte-pair merging, but by different rules: SentencePiece joins the neighbours whose joint piece scores highest,
``tokenizers`` those whose merge stands first in its list. So a ``tokenizer.model`` may stand in for a
``tokenizer.json`` when normalization, vocabulary and the order of all merges agree. What then could still differ is two
overlapping ways to put the same piece together. Those that the vocabulary allows are tried out, and some texts of every
batch are encoded by both (see ``TextEncoder``).
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPACE_MARK = "▁"

BPE = 2
NORMAL, BYTE = 1, 6
UNWANTED = (4, 5)
"""Piece types of SentencePiece's ModelProto; user-defined and unused pieces follow rules of their own."""

LONGEST_RUN = 64
"""Runs of one character are tried up to this length."""

_LETTERS = "A-Za-z\u00c0-\u1fff\u3005-\u3007\u3040-\u9fff\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
"""About the letters of all scripts; as ranges, which are matched twice as fast as by property."""

WORD_PATTERNS = (
    # Letters and all else apart, which holds for Llama's and Mistral's pieces.
    rf"\n|{SPACE_MARK}*(?:[{_LETTERS}]+|[^{_LETTERS}{SPACE_MARK}\n]+)|{SPACE_MARK}+",
    rf"\n|{SPACE_MARK}*[^{SPACE_MARK}\n]+|{SPACE_MARK}+",
    rf"{SPACE_MARK}*[^{SPACE_MARK}]+|{SPACE_MARK}+",
)
"""Ways to cut a text into words, all of it, the finest first. Whether two characters are cut apart depends on these two
alone, so a pattern that leaves every piece whole never cuts where a piece could arise."""

LONGEST_WORD = 24
MOST_WORDS = 200_000
"""Words to remember: up to so many characters each, and about so many of them (some 50 MB)."""

_REPLACE_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}
_LEGACY_NORMALIZER = {
    "type": "Sequence",
    "normalizers": [{"type": "Prepend", "prepend": SPACE_MARK}, _REPLACE_SPACES],
}
_METASPACE = {"type": "Metaspace", "replacement": SPACE_MARK, "prepend_scheme": "first", "split": False}


@dataclass(frozen=True, slots=True)
class EqualModel:
    """A ``tokenizer.model`` that encodes as a ``tokenizer.json`` does.

    Attributes:
        content: the file's bytes.
        marks_once: no ``▁`` is put before a text that starts with a space or ``▁`` (SentencePiece always puts one).
    """

    content: bytes
    marks_once: bool


class SentencePieceEncoder:
    """Encodes texts with a ``tokenizer.model``, on one thread, each distinct word once.

    Neighbours are merged only into a piece of the vocabulary. So where no piece spans a kind of boundary, what stands
    on either side is encoded independently, and words between such boundaries are worth remembering.
    """

    def __init__(self, model: EqualModel) -> None:
        from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

        proto = sentencepiece_model_pb2.ModelProto()
        proto.ParseFromString(model.content)
        pieces = [piece.piece for piece in proto.pieces if piece.type == NORMAL]
        proto.normalizer_spec.add_dummy_prefix = False  # words inside of a text have none
        self._marks_once = model.marks_once
        self._split = _word_pattern(pieces).findall
        self._processor = SentencePieceProcessor()
        self._processor.LoadFromSerializedProto(proto.SerializeToString())
        # Tuples of numbers, unlike lists, are nothing that the garbage collector looks at again and again.
        self._known: dict[str, tuple[int, ...]] = {}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text."""
        words = [self._split(self._marked(text)) for text in texts]
        known = self._known
        new = list(set().union(*words).difference(known))
        known.update(zip(new, map(tuple, self._processor.Encode(new, num_threads=1)), strict=True))
        results = []
        for words_of_text in words:
            ids: list[int] = []
            for word in words_of_text:
                ids += known[word]
            results.append(ids)
        self._forget(new)
        return results

    def _forget(self, new: Sequence[str]) -> None:
        """Keep memory bounded: drop long words, and everything when there is too much of it."""
        if len(self._known) > MOST_WORDS:
            self._known.clear()
            return
        for word in new:
            if len(word) > LONGEST_WORD:
                del self._known[word]

    def _marked(self, text: str) -> str:
        """The text as SentencePiece sees it: spaces as marks, one more in front."""
        marked = text.replace(" ", SPACE_MARK)
        if not text or (self._marks_once and marked[0] == SPACE_MARK):
            return marked
        return SPACE_MARK + marked


def _word_pattern(pieces: Sequence[str]) -> re.Pattern[str]:
    """The finest of :data:`WORD_PATTERNS` that cuts through none of ``pieces``."""
    for pattern in map(re.compile, WORD_PATTERNS):
        if all(len(pattern.findall(piece)) == 1 for piece in pieces):
            return pattern
    return re.compile(r"(?s).+")


def equal_model(tokenizer: "PreTrainedTokenizerBase", backend: Mapping[str, Any]) -> EqualModel | None:
    """The tokenizer's ``tokenizer.model`` if it encodes as its ``tokenizer.json`` does, else None.

    Args:
        tokenizer: a fast tokenizer.
        backend: its serialised form, with special tokens marked as such.
    """
    path = Path(getattr(tokenizer, "vocab_file", None) or Path(tokenizer.name_or_path) / "tokenizer.model")
    if backend["model"].get("type") != "BPE" or not path.is_file():
        return None
    from sentencepiece import sentencepiece_model_pb2

    content = path.read_bytes()
    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(content)
    except Exception:  # protobuf's own error types differ between versions; a tokenizer.json does without the file
        return None
    if not (_same_text(proto, backend) and _same_pieces(proto, backend)):
        return None
    # Older files write a merge as one string.
    listed = backend["model"]["merges"]
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in listed)
    merges = [(left, right) for left, right in pairs]
    model = EqualModel(content, marks_once=backend["pre_tokenizer"] is not None)
    return model if _same_merges(proto, merges) and _equal_on(tokenizer, model, _probes(merges)) else None


def _same_text(proto: Any, backend: Mapping[str, Any]) -> bool:
    """Both see the same characters: spaces become ``▁``, one stands in front, nothing else changes."""
    rules = proto.normalizer_spec
    identity = not (rules.precompiled_charsmap or rules.remove_extra_whitespaces)
    marks = rules.add_dummy_prefix and rules.escape_whitespaces and not proto.trainer_spec.treat_whitespace_as_suffix
    if not (identity and marks):
        return False
    normalizer, pre_tokenizer = backend.get("normalizer"), backend.get("pre_tokenizer")
    legacy = pre_tokenizer is None and normalizer == _LEGACY_NORMALIZER
    return legacy or (normalizer is None and pre_tokenizer == _METASPACE)


def _same_pieces(proto: Any, backend: Mapping[str, Any]) -> bool:
    """Both know the same pieces by the same ids, and none but special tokens is found before merging."""
    model = backend["model"]
    plain = not any(model.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
    pieces = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    return (
        plain
        and not model.get("ignore_merges")
        and bool(model.get("byte_fallback"))
        and proto.trainer_spec.byte_fallback
        and proto.trainer_spec.model_type == BPE
        and sum(piece.type == BYTE for piece in proto.pieces) == 256
        and not any(piece.type in UNWANTED for piece in proto.pieces)
        and pieces == model["vocab"]
        and all(token["special"] for token in backend["added_tokens"])
    )


def _same_merges(proto: Any, merges: Sequence[tuple[str, str]]) -> bool:
    """Every pair that SentencePiece would join is a merge, and merges are ordered by their pieces' scores.

    Pieces of one score are joined from left to right by SentencePiece and by rank in ``tokenizers``; only runs of
    one character may share a score (Llama's spaces do), and :func:`_probes` holds them.
    """
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == NORMAL}
    sharing: dict[float, set[str]] = {}
    for piece, score in scores.items():
        sharing.setdefault(score, set()).add(piece if len(set(piece)) > 1 else piece[0])
    if any(len(pieces) > 1 for pieces in sharing.values()):
        return False
    pairs = {
        (piece[:cut], piece[cut:])
        for piece in scores
        for cut in range(1, len(piece))
        # SentencePiece starts from single characters whether they are pieces or not.
        if (cut == 1 or piece[:cut] in scores) and (cut == len(piece) - 1 or piece[cut:] in scores)
    }
    if len(merges) != len(pairs) or set(merges) != pairs:
        return False
    ordered = [scores[left + right] for left, right in merges]
    return all(earlier >= later for earlier, later in itertools.pairwise(ordered))


def _probes(merges: Sequence[tuple[str, str]]) -> list[str]:
    """Texts in which the order of two merges into one piece matters: ``abaaba`` where ``aba`` is ab+a and a+ba."""
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    splits: dict[str, list[tuple[str, str]]] = {}
    for left, right in merges:
        splits.setdefault(left + right, []).append((left, right))
    overlaps = {
        left + middle + right
        for pairs in splits.values()
        if len(pairs) > 1
        for left, middle in pairs
        for again, right in pairs
        if again == middle and ranks[middle, right] <= ranks[left, middle]
    }
    repeated = {SPACE_MARK, *(text[0] for text in overlaps if len(set(text)) == 1)}
    runs = [character * length for character in sorted(repeated) for length in range(1, LONGEST_RUN + 1)]
    return [f"{before}{text}b" for text in [*sorted(overlaps), *runs] for before in ("", " ", "a")]


def _equal_on(tokenizer: "PreTrainedTokenizerBase", model: EqualModel, texts: Sequence[str]) -> bool:
    backend = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    codes = backend.encode_batch_fast(list(texts), add_special_tokens=False)
    return [code.ids for code in codes] == SentencePieceEncoder(model).encode(texts)
