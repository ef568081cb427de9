"""Widening a tokenizer of any family into a new folder, with the old ids unchanged."""

import dataclasses
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from colossal_llama.atomic import atomic_directory, refuse_existing
from colossal_llama.errors import UserError
from colossal_llama.json_files import read_json_object
from colossal_llama.tokenizer.bytelevel import is_whole_text, readable
from colossal_llama.tokenizer.expansion_report import VocabularyExpansion
from colossal_llama.tokenizer.families import Family, family_of, settle_config
from colossal_llama.tokenizer.fingerprint import tokenizer_fingerprint
from colossal_llama.tokenizer.loading import SETTINGS_FILES, load_slow_tokenizer, load_tokenizer
from colossal_llama.tokenizer.pieces import PieceSelection, require_pieces, select_pieces
from colossal_llama.tokenizer.reachability import KEEP, REPAIR, Unreachable, settle, unreachable_pieces
from colossal_llama.tokenizer.sub_tokens import check_old_ids
from colossal_llama.tokenizer.text_changes import TextComparer, TextComparison, piece_lines

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SOURCE_FLAG = "--source_tokenizer_dir"
TARGET_FLAG = "--target_tokenizer_dir"
PIECES_NAME = "the pieces themselves"


@dataclasses.dataclass(frozen=True)
class _Pair:
    """The tokenizer before and after; the slow versions are None where the family or the class has none."""

    old: "PreTrainedTokenizerBase"
    new: "PreTrainedTokenizerBase"
    old_slow: "PreTrainedTokenizerBase | None"
    new_slow: "PreTrainedTokenizerBase | None"


def expand_tokenizer(
    source_dir: Path,
    pieces: Iterable[str],
    target_dir: Path,
    *,
    overwrite: bool = False,
    unreachable: str = REPAIR,
    check_texts: Mapping[str, Iterable[str]] | None = None,
) -> VocabularyExpansion:
    """Write a copy of the tokenizer in ``source_dir`` whose vocabulary also holds ``pieces``.

    Every old token keeps its id; settings, special tokens and chat template are kept; the new folder loads
    with ``AutoTokenizer`` at once, as a fast tokenizer, and holds a report of what was done.

    Args:
        source_dir: a Hugging Face folder with a SentencePiece BPE or unigram ``tokenizer.model`` or a byte-level
            BPE ``tokenizer.json``.
        pieces: what to add, in order of priority; ``▁`` stands for a space in all families.
        target_dir: appears when everything is written.
        overwrite: replace an existing ``target_dir``.
        unreachable: what to do with pieces that no text would give, one of ``reachability.MODES``.
        check_texts: texts by the name of their file; encoded before and after, with the slow and the fast version.

    Raises:
        UserError: the target exists, the source is broken or of another family, no piece is left to add, a piece
            is unreachable and ``unreachable`` is ``error``, the old ids cannot be kept, or the slow and the fast
            version differ on a text where those of the source agree.
    """
    refuse_existing(target_dir, TARGET_FLAG, overwrite)
    if target_dir.resolve() == source_dir.resolve():
        raise UserError(f"{TARGET_FLAG} {target_dir}: is the source folder; give another one")
    old = load_tokenizer(source_dir, SOURCE_FLAG)
    _require_class(source_dir)
    family = family_of(old, source_dir, SOURCE_FLAG)
    old_vocabulary = old.get_vocab()
    special = list(old.added_tokens_encoder)  # type: ignore[attr-defined]
    selection = select_pieces(pieces, old_vocabulary, special, family.spell, family.judge)
    require_pieces(selection)
    chosen, found = settle(selection.pieces, family.find_unreachable, unreachable)
    intermediates = family.widen(chosen, unreachable == REPAIR)
    with atomic_directory(target_dir) as scratch:
        _copy_settings(source_dir, scratch)
        family.write(scratch)
        settle_config(scratch / "tokenizer_config.json", family.name)
        pair = _load_pair(family, old, source_dir, scratch)
        comparisons = _compare(family, pair, chosen, intermediates, unreachable, check_texts or {})
        report = _report(family, pair, (selection, chosen, found, unreachable), intermediates, comparisons)
        report.write(scratch)
        return report


def _require_class(source_dir: Path) -> None:
    """Refuse a source whose class only its model's ``config.json`` tells, which the target has not.

    Raises:
        UserError: ``tokenizer_config.json`` is missing or names no class.
    """
    path = source_dir / "tokenizer_config.json"
    if not path.is_file() or not read_json_object(path).get("tokenizer_class"):
        raise UserError(
            f"{SOURCE_FLAG} {source_dir}: no tokenizer_config.json that names a tokenizer_class; copy it beside the "
            "other files"
        )


def _load_pair(family: Family, old: "PreTrainedTokenizerBase", source_dir: Path, folder: Path) -> _Pair:
    """Load what was written, and check that old ids are where they were.

    Raises:
        UserError: an old token has another id now, in the fast or in the slow tokenizer.
    """
    new = load_tokenizer(folder, TARGET_FLAG)
    check_old_ids(old, new)
    if not family.has_slow or (old_slow := load_slow_tokenizer(source_dir)) is None:
        return _Pair(old, new, None, None)
    new_slow = load_slow_tokenizer(folder)
    if new_slow is None:
        raise UserError(f"{SOURCE_FLAG} {source_dir}: {type(old_slow).__name__} cannot load the wider model")
    _check_slow_ids(old_slow, new_slow, new)
    return _Pair(old, new, old_slow, new_slow)


def _check_slow_ids(
    old_slow: "PreTrainedTokenizerBase", new_slow: "PreTrainedTokenizerBase", new: "PreTrainedTokenizerBase"
) -> None:
    """Check that old tokens keep their ids in the slow tokenizer, and that new ones have the fast one's ids.

    Raises:
        UserError: a class that numbers its own tokens by the size of the model moves them.
    """
    before, slow = old_slow.get_vocab(), new_slow.get_vocab()
    for token, token_id in sorted(new.get_vocab().items(), key=lambda pair: pair[1]):
        wanted = before.get(token, token_id)
        if slow.get(token) != wanted:
            raise UserError(
                f"the slow {type(new_slow).__name__} would give {token!r} id {slow.get(token)} instead of {wanted} "
                "after widening; a class that does so cannot be widened"
            )


def _compare(
    family: Family,
    pair: _Pair,
    pieces: list[str],
    intermediates: list[str],
    mode: str,
    check_texts: Mapping[str, Iterable[str]],
) -> list[TextComparison]:
    """Compare on the pieces and on the given texts.

    Raises:
        UserError: the expansion made the slow and the fast tokenizer differ.
    """
    remedy = f"use --unreachable {REPAIR}" if mode == KEEP else "leave out the new pieces of the example"
    comparer = TextComparer(pair.old, pair.new, pair.old_slow, pair.new_slow, family.scores(), intermediates)
    comparisons = []
    for name, texts in {PIECES_NAME: piece_lines(pieces), **check_texts}.items():
        comparison = comparer.compare(name, texts)
        if comparison.slow_unexplained:
            raise UserError(
                f"{name}: the slow and the fast tokenizer would differ in {comparison.slow_unexplained} of "
                f"{comparison.documents} texts where those of {SOURCE_FLAG} agree, such as "
                f"{comparison.examples['slow_differs']}; {remedy}"
            )
        comparisons.append(comparison)
    return comparisons


def _copy_settings(source_dir: Path, folder: Path) -> None:
    """Copy the settings byte for byte: no old id changes, so they stay true."""
    for name in SETTINGS_FILES:
        if (source_dir / name).is_file():
            shutil.copyfile(source_dir / name, folder / name)


def _report(
    family: Family,
    pair: _Pair,
    choice: tuple[PieceSelection, list[str], list[Unreachable], str],
    intermediates: list[str],
    comparisons: list[TextComparison],
) -> VocabularyExpansion:
    selection, pieces, found, mode = choice
    spelled_in_bytes = family.name == "byte-level"
    return VocabularyExpansion(
        family=family.name,
        old_size=max(pair.old.get_vocab().values()) + 1,
        new_size=max(pair.new.get_vocab().values()) + 1,
        pieces=pieces,
        intermediates=intermediates,
        partial_characters=sum(not is_whole_text(token) for token in intermediates) if spelled_in_bytes else 0,
        selection=selection,
        mode=mode,
        found_unreachable=found,
        unreachable=unreachable_pieces(pair.new, pieces, family.spell),
        slow_checked=pair.new_slow is not None,
        comparisons=comparisons,
        fingerprints=(tokenizer_fingerprint(pair.old), tokenizer_fingerprint(pair.new)),
        readable_intermediates=[readable(token) if spelled_in_bytes else token for token in intermediates],
    )
