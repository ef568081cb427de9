"""Widening a tokenizer of either family into a new folder, with the old ids unchanged."""

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colossal_llama.atomic import atomic_directory, refuse_existing
from colossal_llama.errors import UserError
from colossal_llama.tokenizer import bytelevel, sentencepiece
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.tokenizer.pieces import (
    PieceSelection,
    describe_skipped,
    require_pieces,
    select_pieces,
)
from colossal_llama.tokenizer.sub_tokens import check_old_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SOURCE_FLAG = "--source_tokenizer_dir"
TARGET_FLAG = "--target_tokenizer_dir"

SETTINGS_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""Copied byte for byte: no old id changes, so they stay true."""


@dataclasses.dataclass(frozen=True)
class VocabularyExpansion:
    """What an expansion did.

    Attributes:
        family: ``sentencepiece`` or ``byte-level``.
        old_size: number of ids before (highest id + 1), and first id of the new pieces.
        new_size: number of ids after.
        pieces: the added pieces; piece ``i`` has id ``old_size + i``.
        intermediates: tokens added because pieces are put together from them; they follow the pieces.
        partial_characters: how many of the intermediates are parts of a UTF-8 character.
        skipped: how many candidates were left out, by reason.
        unreachable: added pieces that their own text does not encode to.
    """

    family: str
    old_size: int
    new_size: int
    pieces: list[str]
    intermediates: list[str]
    partial_characters: int
    skipped: Counter[str]
    unreachable: list[str]

    def describe(self) -> str:
        """A report of a few lines for people."""
        lines = [
            f"{self.family} vocabulary: {self.old_size} -> {self.new_size}",
            f"pieces added: {len(self.pieces)}; skipped: {describe_skipped(self.skipped)}",
            f"intermediate tokens added: {len(self.intermediates)} "
            f"({self.partial_characters} are parts of a character)",
            f"pieces that their own text does not reach: {len(self.unreachable)}",
        ]
        if self.unreachable:
            lines.append("  " + " ".join(self.unreachable[:20]))
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class _Family:
    """One kind of tokenizer: how it spells and judges a piece, widens itself and writes its own files."""

    name: str
    spell: Callable[[str], str]
    judge: Callable[[str], str | None]
    widen: Callable[[list[str]], list[str]]
    write: Callable[[Path], None]


def expand_tokenizer(
    source_dir: Path, pieces: Iterable[str], target_dir: Path, *, overwrite: bool = False
) -> VocabularyExpansion:
    """Write a copy of the tokenizer in ``source_dir`` whose vocabulary also holds ``pieces``.

    Every old token keeps its id; settings, special tokens and chat template are kept; the new folder loads
    with ``AutoTokenizer`` at once, as a fast tokenizer.

    Args:
        source_dir: a Hugging Face folder with a SentencePiece BPE ``tokenizer.model`` or a byte-level BPE
            ``tokenizer.json``.
        pieces: what to add, in order of priority; ``▁`` stands for a space in both families.
        target_dir: appears when everything is written.
        overwrite: replace an existing ``target_dir``.

    Raises:
        UserError: the target exists, the source is broken or of another family, no piece is left to add, or
            the old ids cannot be kept.
    """
    refuse_existing(target_dir, TARGET_FLAG, overwrite)
    if target_dir.resolve() == source_dir.resolve():
        raise UserError(f"{TARGET_FLAG} {target_dir}: is the source folder; give another one")
    old = load_tokenizer(source_dir, SOURCE_FLAG)
    family, backend = _family_of(old, source_dir)
    old_vocabulary = old.get_vocab()
    special = list(old.added_tokens_encoder)  # type: ignore[attr-defined]
    selection = select_pieces(pieces, old_vocabulary, special, family.spell, family.judge)
    require_pieces(selection)
    intermediates = family.widen(selection.pieces)
    with atomic_directory(target_dir) as scratch:
        _copy_settings(source_dir, scratch)
        family.write(scratch)
        _write_json(scratch / "tokenizer.json", backend)
        new = load_tokenizer(scratch, TARGET_FLAG)
        check_old_ids(old, new)
        return _report(family, old_vocabulary, new, selection, intermediates)


def _family_of(old: "PreTrainedTokenizerBase", source_dir: Path) -> tuple[_Family, dict[str, Any]]:
    """The family by the files: a byte-level ``tokenizer.json`` first, then ``tokenizer.model``."""
    if not old.is_fast:
        raise UserError(f"{SOURCE_FLAG} {source_dir}: {type(old).__name__} has no fast version; cannot widen it")
    # The backend as loaded holds what tokenizer_config.json adds to tokenizer.json, too.
    backend: dict[str, Any] = json.loads(old.backend_tokenizer.to_str())  # type: ignore[attr-defined]
    if bytelevel.is_byte_level(backend):
        return _byte_level_family(old, backend, source_dir), backend
    if (source_dir / "tokenizer.model").is_file() and backend["model"].get("type") == "BPE":
        return _sentencepiece_family(old, backend, source_dir), backend
    raise UserError(
        f"{SOURCE_FLAG} {source_dir}: cannot widen this {backend['model'].get('type')} tokenizer; expected a "
        "SentencePiece BPE tokenizer.model or a byte-level BPE tokenizer.json"
    )


def _byte_level_family(old: "PreTrainedTokenizerBase", backend: dict[str, Any], source_dir: Path) -> _Family:
    old_backend = old.backend_tokenizer  # type: ignore[attr-defined]

    def write(folder: Path) -> None:
        # The slow tokenizers of GPT-2 and Qwen read these two; stale copies would contradict tokenizer.json.
        if (source_dir / "vocab.json").is_file():
            _write_json(folder / "vocab.json", backend["model"]["vocab"])
            lines = [" ".join(merge) for merge in backend["model"]["merges"]]
            (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]), encoding="utf-8")

    return _Family(
        name="byte-level",
        spell=bytelevel.spell,
        judge=lambda piece: bytelevel.judge(old_backend, piece),
        widen=lambda pieces: bytelevel.widen(backend, pieces),
        write=write,
    )


def _sentencepiece_family(old: "PreTrainedTokenizerBase", backend: dict[str, Any], source_dir: Path) -> _Family:
    model = sentencepiece.read_model(source_dir / "tokenizer.model")

    def write(folder: Path) -> None:
        (folder / "tokenizer.model").write_bytes(model.proto.SerializeToString())
        _let_fast_load(folder / "tokenizer_config.json")

    return _Family(
        name="sentencepiece",
        spell=lambda piece: piece,
        judge=model.judge,
        widen=lambda pieces: sentencepiece.widen(model, old, backend, pieces),
        write=write,
    )


def _let_fast_load(config_file: Path) -> None:
    """Drop ``"add_prefix_space": true``, the default: given, it makes every load convert the model anew."""
    if not config_file.is_file():
        return
    config = json.loads(config_file.read_text(encoding="utf-8"))
    if config.get("add_prefix_space") is True:
        del config["add_prefix_space"]
        _write_json(config_file, config)


def _copy_settings(source_dir: Path, folder: Path) -> None:
    for name in SETTINGS_FILES:
        if (source_dir / name).is_file():
            shutil.copyfile(source_dir / name, folder / name)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _report(
    family: _Family,
    old_vocabulary: dict[str, int],
    new: "PreTrainedTokenizerBase",
    selection: PieceSelection,
    intermediates: list[str],
) -> VocabularyExpansion:
    partial = family.name == "byte-level"
    return VocabularyExpansion(
        family=family.name,
        old_size=max(old_vocabulary.values()) + 1,
        new_size=max(new.get_vocab().values()) + 1,
        pieces=selection.pieces,
        intermediates=intermediates,
        partial_characters=sum(not bytelevel.is_whole_text(token) for token in intermediates) if partial else 0,
        skipped=selection.skipped,
        unreachable=unreachable_pieces(new, selection.pieces, family.spell),
    )


def unreachable_pieces(
    tokenizer: "PreTrainedTokenizerBase", pieces: Iterable[str], spell: Callable[[str], str]
) -> list[str]:
    """The pieces that the tokenizer's merges do not put together from their own text."""
    vocabulary = tokenizer.get_vocab()
    model = tokenizer.backend_tokenizer.model  # type: ignore[attr-defined]
    model.ignore_merges = False  # would hide an unreachable piece that stands alone, but not inside a word
    return [
        piece for piece in pieces if [token.id for token in model.tokenize(spell(piece))] != [vocabulary[spell(piece)]]
    ]
