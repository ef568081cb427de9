"""What an expansion did: a few lines for people, ``expansion.json`` for programs."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from colossal_llama.tokenizer.pieces import PieceSelection, examples_by_reason
from colossal_llama.tokenizer.reachability import Unreachable
from colossal_llama.tokenizer.text_changes import TextComparison

REPORT_FILE = "expansion.json"
LIBRARIES = ("colossal_llama", "transformers", "tokenizers", "sentencepiece")

_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class VocabularyExpansion:
    """What an expansion did.

    Attributes:
        family: ``sentencepiece-bpe``, ``sentencepiece-unigram`` or ``byte-level``.
        old_size: number of ids before (highest id + 1), and first id of the new pieces.
        new_size: number of ids after.
        pieces: the added pieces; piece ``i`` has id ``old_size + i``.
        intermediates: tokens added because pieces are put together from them; they follow the pieces.
        partial_characters: how many of the intermediates are parts of a UTF-8 character.
        selection: which candidates were left out, and why.
        mode: what was to be done about unreachable pieces.
        found_unreachable: the pieces that would have been unreachable without a repair.
        unreachable: added pieces that their own text does not encode to.
        slow_checked: whether there is a slow tokenizer, which was compared with the fast one.
        comparisons: what changed in texts: the pieces themselves first, then each file given.
        fingerprints: of the old and of the new vocabulary.
        readable_intermediates: the intermediates as text, or their bytes in hexadecimal.
    """

    family: str
    old_size: int
    new_size: int
    pieces: list[str]
    intermediates: list[str]
    partial_characters: int
    selection: PieceSelection
    mode: str
    found_unreachable: list[Unreachable]
    unreachable: list[str]
    slow_checked: bool
    comparisons: list[TextComparison]
    fingerprints: tuple[str, str]
    readable_intermediates: list[str]

    @property
    def skipped(self) -> Counter[str]:
        """How many candidates were left out, by reason."""
        return self.selection.skipped

    def describe(self) -> str:
        """A report of a few lines for people."""
        lines = [
            f"{self.family} vocabulary: {self.old_size} -> {self.new_size}",
            f"pieces added: {len(self.pieces)}; skipped: {sum(self.skipped.values())}",
            *self._skipped_lines(),
            *self._unreachable_lines(),
        ]
        if self.intermediates:
            lines.append(
                f"intermediate tokens added: {len(self.intermediates)} "
                f"({self.partial_characters} are parts of a character)"
            )
        return "\n".join([*lines, *_comparison_lines(self.comparisons, self.slow_checked)])

    def _skipped_lines(self) -> list[str]:
        examples = examples_by_reason(self.selection.left_out)
        return [
            f"  {count} {reason}, such as {', '.join(map(repr, examples[reason]))}"
            for reason, count in self.skipped.most_common()
        ]

    def _unreachable_lines(self) -> list[str]:
        remedy = {"repair": "repaired", "drop": "dropped", "keep": "kept", "error": "refused"}[self.mode]
        found = f"{len(self.found_unreachable)} found, {remedy}; " if self.found_unreachable else ""
        return [
            f"unreachable pieces: {found}{len(self.unreachable)} left",
            *(f"  {entry.describe()}" for entry in self.found_unreachable[:_SHOWN]),
        ]

    def write(self, folder: Path) -> None:
        """Write :data:`REPORT_FILE` into ``folder``."""
        text = json.dumps(self._content(), ensure_ascii=False, indent=2)
        # A skipped piece may hold what UTF-8 cannot express.
        (folder / REPORT_FILE).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")

    def _content(self) -> dict[str, Any]:
        return {
            "versions": {name: version(name) for name in LIBRARIES},
            "family": self.family,
            "old_size": self.old_size,
            "new_size": self.new_size,
            "old_fingerprint": self.fingerprints[0],
            "new_fingerprint": self.fingerprints[1],
            "pieces_added": len(self.pieces),
            "intermediates": self.readable_intermediates,
            "partial_characters": self.partial_characters,
            "skipped": dict(self.skipped.most_common()),
            "skipped_pieces": [{"piece": raw, "reason": reason} for raw, reason in self.selection.left_out],
            "unreachable_mode": self.mode,
            "unreachable_before": [dataclasses.asdict(entry) for entry in self.found_unreachable],
            "unreachable_after": self.unreachable,
            "slow_tokenizer_checked": self.slow_checked,
            "texts": [dataclasses.asdict(entry) for entry in self.comparisons],
        }


def _comparison_lines(comparisons: Iterable[TextComparison], slow_checked: bool) -> list[str]:
    """A few lines for each file."""
    lines = []
    for entry in comparisons:
        lines += [
            f"{entry.name}: {entry.documents} documents, tokens {entry.old_tokens} -> {entry.new_tokens} "
            f"({_per_character(entry.old_tokens, entry)} -> {_per_character(entry.new_tokens, entry)} a character)",
            f"  {_changes(entry)}" + (f"; {_slow_differences(entry)}" if slow_checked else ""),
            *(f"  {kind}: {example}" for kind, example in entry.examples.items()),
        ]
    if not slow_checked:
        lines.append("there is no slow tokenizer to compare with")
    return lines


def _changes(entry: TextComparison) -> str:
    if not entry.changed:
        return "all ids as before"
    return (
        f"ids changed in {entry.changed} documents, {entry.changed_without_new} of them without a new token, "
        f"{entry.changed_by_intermediates} by intermediate tokens alone; "
        f"old tokens cut {entry.cut}, moved {entry.moved}"
    )


def _slow_differences(entry: TextComparison) -> str:
    if not entry.slow_differs:
        return "slow and fast tokenizer agree"
    return (
        f"slow and fast tokenizer differ in {entry.slow_differs} documents ({entry.slow_differed_before} already with "
        f"the source tokenizer, {entry.slow_ties} ties by rounding)"
    )


def _per_character(tokens: int, entry: TextComparison) -> str:
    return f"{tokens / entry.characters:.3f}" if entry.characters else "-"
