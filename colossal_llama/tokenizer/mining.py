"""Finding the pieces that would save a tokenizer most tokens on a corpus.

Meant for scripts written without spaces (Chinese, Japanese, Thai): candidates never contain a space.
"""

import codecs
import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from colossal_llama.errors import UserError
from colossal_llama.json_records import parse_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

FOREIGN_RUN = r"[^\x00-\x7F\p{P}\p{S}\p{Z}\p{N}\p{C}]+|[^\x00-\x7F\p{Z}\p{N}\p{C}]"
"""A run of letters outside ASCII, or one mark of punctuation outside ASCII."""

SURPLUS = 2
"""Candidates are trained at this multiple of the wanted number, so that ranking has something to drop."""

TEXT_FIELDS = ("target", "text")
"""Fields of a jsonl record that hold its text; the first one present is taken."""


@dataclasses.dataclass(frozen=True)
class MinedPiece:
    """A piece worth adding.

    Attributes:
        piece: its text.
        count: how often it was used when the corpus was cut into candidates (without overlaps).
        saved: tokens saved on the corpus: ``count`` times (old tokens - 1).
    """

    piece: str
    count: int
    saved: int


def mine_pieces(
    texts: Iterable[str],
    tokenizer: "PreTrainedTokenizerBase",
    count: int,
    *,
    max_characters: int = 4,
    min_count: int = 2,
) -> list[MinedPiece]:
    """The pieces that save ``tokenizer`` most tokens on ``texts``, best first.

    A BPE over characters is trained on the runs of non-ASCII letters; the corpus is cut with it, so that
    every character counts for one candidate only; candidates are ranked by the tokens they save.

    Args:
        texts: the corpus; kept in memory only as counts of distinct runs.
        tokenizer: the fast tokenizer to be widened.
        count: the number of pieces wanted; fewer come back from a small corpus.
        max_characters: the longest piece.
        min_count: rarer pieces are left out, as their rows would see no training.
    """
    runs = count_runs(texts)
    if not runs:
        return []
    cutter = _train_cutter(runs, size=SURPLUS * count, max_characters=max_characters)
    used: Counter[str] = Counter()
    for run, times in runs.items():
        for piece in cutter.encode(run).tokens:
            used[piece] += times
    return _rank(used, tokenizer, min_count)[:count]


def count_runs(texts: Iterable[str]) -> Counter[str]:
    """How often each run of non-ASCII letters (or single mark) occurs in ``texts``."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    splitter = Split(Regex(FOREIGN_RUN), behavior="removed", invert=True)
    runs: Counter[str] = Counter()
    for text in texts:
        # Line by line: offsets into a long text cost the library quadratic time.
        for line in text.splitlines():
            if not line.isascii():
                runs.update(run for run, _ in splitter.pre_tokenize_str(line))
    return runs


def _train_cutter(runs: Counter[str], size: int, max_characters: int) -> "Tokenizer":
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    characters = {character for run in runs for character in run}
    cutter = Tokenizer(BPE())
    trainer = BpeTrainer(
        # The alphabet is not limited: every character is a candidate. The trainer would join two in any case.
        vocab_size=len(characters) + (size if max_characters > 1 else 0),
        max_token_length=max_characters,
        min_frequency=2,
        show_progress=False,
    )
    cutter.train_from_iterator((run for run, times in runs.items() for _ in range(times)), trainer)
    return cutter


def _rank(used: Counter[str], tokenizer: "PreTrainedTokenizerBase", min_count: int) -> list[MinedPiece]:
    from colossal_llama.tokenizer.sub_tokens import count_old_tokens

    candidates = [piece for piece, count in used.items() if count >= min_count]
    lengths = count_old_tokens(tokenizer, candidates)
    mined = [
        MinedPiece(piece, used[piece], used[piece] * (length - 1))
        for piece, length in zip(candidates, lengths, strict=True)
        if length > 1
    ]
    return sorted(mined, key=lambda entry: (-entry.saved, entry.piece))


def read_texts(paths: Iterable[Path], flag: str = "--text_files") -> Iterator[str]:
    """The texts of ``.jsonl`` files (field ``target`` or ``text``) and the lines of all others.

    Raises:
        UserError: a file is missing or not UTF-8, or a jsonl line is not an object with a text; the message
            names file and line.
    """
    for path in paths:
        if not path.is_file():
            raise UserError(f"{flag} {path}: no such file; expected .jsonl or plain UTF-8 text")
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                raw = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
                if raw.strip():
                    yield _text_of(raw, f"{path}:{number}", is_json=path.suffix == ".jsonl")


def _text_of(raw: bytes, where: str, is_json: bool) -> str:
    if not is_json:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: not UTF-8; convert the file to UTF-8") from error
    record = parse_line(raw, where)
    for field in TEXT_FIELDS:
        if isinstance(record.get(field), str):
            return record[field]
    raise UserError(f"{where}: expected an object with a string in one of {', '.join(TEXT_FIELDS)}")


def write_pieces(path: Path, pieces: Iterable[MinedPiece]) -> None:
    """Write pieces as ``init_tokenizer.py`` reads them, one ``{"piece": "..."}`` a line; all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with scratch.open("w", encoding="utf-8", newline="\n") as file:
            for entry in pieces:
                record = {"piece": entry.piece, "count": entry.count, "saved": entry.saved}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
