"""Making shards: slices are read, screened and tokenised.

A shard holds the documents of a few consecutive slices. Workers write shards and nothing else, so tokens never
travel between processes, memory does not grow with the corpus, and a killed preparation finds its finished
shards again.
"""

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from colossal_llama.data.chat_templates import BoundTemplate
from colossal_llama.data.decontamination import EvaluationNgrams
from colossal_llama.data.duplicates import exact_key
from colossal_llama.data.formats import FORMATS, Conversation, Dropped, FormatOptions, Sample, require_sample
from colossal_llama.data.formats.field_use import count_names
from colossal_llama.data.near_duplicates import NearDuplicateSettings, NearDuplicateSigner
from colossal_llama.data.quality import QualityFilter, QualitySettings
from colossal_llama.data.readers import RAW_CHARACTERS, Record, Reject, read_slice, reject_record
from colossal_llama.data.shard_files import NOT_FIRST, ShardBuilder, shard_path, write_shard
from colossal_llama.data.slices import FileSlice
from colossal_llama.data.tokenization import (
    ConversationTokenizer,
    DocumentTokenizer,
    EncoderSpec,
    TextEncoder,
)
from colossal_llama.errors import RecordError

ALL_TURNS_TOO_LONG = "every turn longer than a row"
NO_LOSS_IN_A_ROW = "no turn with loss fits a row"

CONTAMINATED = "holds an evaluation text"


@dataclass(frozen=True)
class Screening:
    """What is looked for in texts before they are learned; nothing by default.

    Attributes:
        quality: rules that a text must pass.
        evaluation_files: texts that share an n-gram with one of these files' are left out.
        exact: note a key of each text, so that equal ones can be found.
        near: note a signature and the shingles of each text, so that similar ones can be found.
    """

    quality: QualitySettings | None = None
    evaluation_files: tuple[str, ...] = ()
    exact: bool = False
    near: NearDuplicateSettings | None = None


@dataclass(frozen=True)
class TokenizeSetup:
    """What a worker is started with; plain values, so that any process or machine can be one.

    Attributes:
        spec: the tokenizer.
        template: chat template for conversations; None for pretraining texts.
        max_length: longest row; conversations are cut to it, between turns.
        options: how records are read.
        skip_bad_records: reject bad records instead of stopping at the first.
        screening: what is looked for in texts.
        evaluation: file of :meth:`EvaluationNgrams.save`, where ``screening`` names evaluation files.
    """

    spec: EncoderSpec
    template: BoundTemplate | None
    max_length: int
    options: FormatOptions = field(default_factory=FormatOptions)
    skip_bad_records: bool = False
    screening: Screening = field(default_factory=Screening)
    evaluation: str | None = None


@dataclass(frozen=True)
class ShardTask:
    """One shard to make.

    Attributes:
        number: place of the shard in the corpus.
        slices: what it is made from, in order.
        inputs: number of the input (see ``--data_input_dirs``) that each slice belongs to.
        formats: registered name of each slice's record format.
        folder: where the shard's files go.
    """

    number: int
    slices: tuple[FileSlice, ...]
    inputs: tuple[int, ...]
    formats: tuple[str, ...]
    folder: str


class ShardMaker:
    """Reads, screens and tokenises slices, and writes shards.

    Args:
        setup: what to do.
        encoder: of ``setup.spec``, where there is one already; building it takes most of the time.
    """

    def __init__(self, setup: TokenizeSetup, encoder: TextEncoder | None = None) -> None:
        self._setup = setup
        encoder = encoder or TextEncoder(setup.spec)
        self._documents = DocumentTokenizer(encoder)
        self._conversations = None
        if setup.template is not None:
            self._conversations = ConversationTokenizer(encoder, setup.template, setup.max_length)
        screening = setup.screening
        self._quality = QualityFilter(screening.quality) if screening.quality else None
        self._evaluation = EvaluationNgrams.load(Path(setup.evaluation)) if setup.evaluation else None
        self._signer = NearDuplicateSigner(screening.near) if screening.near else None

    def make(self, task: ShardTask) -> int:
        """Write one shard, unless it is there; returns the bytes of its slices.

        Raises:
            UserError: a record is wrong; the message starts with ``file:line``.
        """
        folder = Path(task.folder)
        if not shard_path(folder, task.number, "npz").exists():
            with no_garbage_collection():
                builder = ShardBuilder()
                for piece, number, name in zip(task.slices, task.inputs, task.formats, strict=True):
                    self._add_slice(builder, piece, number, name)
                write_shard(builder, folder, task.number)
        return sum(piece.bytes_read for piece in task.slices)

    def _add_slice(self, builder: ShardBuilder, piece: FileSlice, number: int, format_name: str) -> None:
        """Texts and conversations of a slice are tokenised apart, each in one batch, and keep their own order."""
        texts: list[tuple[Record, Sample]] = []
        conversations: list[tuple[Record, Conversation]] = []
        for record, parsed in self._parsed(builder, piece, number, format_name):
            reject = self._screened(record, parsed)
            if reject is not None:
                builder.reject(number, reject)
            elif isinstance(parsed, Sample):
                texts.append((record, parsed))
            else:
                conversations.append((record, parsed))
        self._add_texts(builder, number, texts)
        if self._conversations is not None:
            self._add_conversations(builder, number, conversations, self._conversations)

    def _parsed(
        self, builder: ShardBuilder, piece: FileSlice, number: int, format_name: str
    ) -> Iterator[tuple[Record, Sample | Conversation]]:
        """The records of a slice that hold something to learn."""
        parse = FORMATS.get(format_name).parse
        skip = self._setup.skip_bad_records
        counts = builder.counter(number)
        note_unread = partial(count_names, builder.unread_counter(number))

        def unreadable(reject: Reject) -> None:
            counts["records"] += 1
            builder.reject(number, reject)

        for record in read_slice(piece, unreadable if skip else None):
            counts["records"] += 1
            try:
                parsed = parse(record, self._setup.options, note_unread)
                if self._conversations is None:
                    parsed = require_sample(record, parsed)
            except RecordError as error:
                if not skip:
                    raise
                builder.reject(number, reject_record(record, error))
                continue
            if isinstance(parsed, Dropped):
                builder.drop(number, parsed.reason)
            else:
                yield record, parsed

    def _screened(self, record: Record, parsed: Sample | Conversation) -> Reject | None:
        if self._quality is None and self._evaluation is None:
            return None
        text = text_of(parsed)
        reason = self._quality.reason(text) if self._quality else None
        detail = reason or ""
        if reason is None and self._evaluation is not None:
            found = self._evaluation.hit(text)
            if found is not None:
                reason, detail = CONTAMINATED, f"{CONTAMINATED}: {found}"
        if reason is None:
            return None
        return Reject(record.where, reason, f"{record.where}: {detail}", text[:RAW_CHARACTERS])

    def _add_texts(self, builder: ShardBuilder, number: int, texts: list[tuple[Record, Sample]]) -> None:
        for (record, sample), tokenized in zip(
            texts, self._documents.tokenize([sample for _, sample in texts]), strict=True
        ):
            characters = len(sample.source) + len(sample.target)
            builder.add(number, tokenized, characters, _utf8_bytes(sample.source) + _utf8_bytes(sample.target))
            self._mark(builder, record, sample)

    def _add_conversations(
        self,
        builder: ShardBuilder,
        number: int,
        conversations: list[tuple[Record, Conversation]],
        tokenizer: ConversationTokenizer,
    ) -> None:
        counts = builder.counter(number)
        tokenized_all = tokenizer.tokenize([conversation for _, conversation in conversations])
        for (record, conversation), tokenized in zip(conversations, tokenized_all, strict=True):
            counts["dropped_turns"] += tokenized.dropped_turns
            counts["dropped_turn_tokens"] += tokenized.dropped_tokens
            counts["turns_without_loss"] += tokenized.turns_without_loss
            counts["tokens_without_loss"] += tokenized.tokens_without_loss
            if not tokenized.pieces:
                builder.drop(number, NO_LOSS_IN_A_ROW if tokenized.turns_without_loss else ALL_TURNS_TOO_LONG)
                continue
            counts["trailing_human"] += conversation.trailing_human
            text = text_of(conversation)
            sizes = [(len(text), _utf8_bytes(text))] + [(NOT_FIRST, NOT_FIRST)] * (len(tokenized.pieces) - 1)
            for sample, (characters, size) in zip(tokenized.pieces, sizes, strict=True):
                builder.add(number, sample, characters, size)
            self._mark(builder, record, conversation, len(tokenized.pieces))

    def _mark(self, builder: ShardBuilder, record: Record, parsed: Sample | Conversation, pieces: int = 1) -> None:
        """Note what duplicates are told by, the same for each piece."""
        if not self._setup.screening.exact and self._signer is None:
            return
        text = text_of(parsed)
        builder.places += [record.where] * pieces
        if self._setup.screening.exact:
            builder.keys += [exact_key(text)] * pieces
        if self._signer is not None:
            shingles = self._signer.shingles(text)
            builder.signatures += [self._signer.signature(shingles)] * pieces
            builder.shingles += [shingles] + [shingles[:0]] * (pieces - 1)


def text_of(parsed: Sample | Conversation) -> str:
    """A document's text, for counting and comparing; a conversation's messages, a line each."""
    if isinstance(parsed, Sample):
        return parsed.source + parsed.target
    return "\n".join(message.content for message in parsed.messages)


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Leave memory to reference counting: records hold no cycles, and looking for some costs a fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


_maker: tuple[TokenizeSetup, ShardMaker] | None = None


def make_shard(setup: TokenizeSetup, task: ShardTask) -> int:
    """:meth:`ShardMaker.make` with one maker a process, for the engines."""
    global _maker
    if _maker is None or _maker[0] != setup:
        _maker = setup, ShardMaker(setup)
    return _maker[1].make(task)


def forget_maker() -> None:
    """Free what :func:`make_shard` keeps between shards, when it ran in this process."""
    global _maker
    _maker = None


def group_slices(slices: Iterable[tuple[int, str, FileSlice]], folder: Path, shard_bytes: int) -> Iterator[ShardTask]:
    """Group consecutive slices into shards of about ``shard_bytes`` of input.

    Args:
        slices: the input's number, the name of the record format and a slice, in the order of the corpus.
        folder: where the shards go.
        shard_bytes: bytes of input per shard.
    """
    group: list[tuple[int, str, FileSlice]] = []
    size = number = 0
    for entry in slices:
        group.append(entry)
        size += entry[2].bytes_read
        if size >= shard_bytes:
            yield _shard_task(number, group, folder)
            group, size, number = [], 0, number + 1
    if group:
        yield _shard_task(number, group, folder)


def _shard_task(number: int, group: list[tuple[int, str, FileSlice]], folder: Path) -> ShardTask:
    inputs, formats, slices = zip(*group, strict=True)
    return ShardTask(number=number, slices=slices, inputs=inputs, formats=formats, folder=str(folder))
