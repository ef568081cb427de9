"""Data preparation from .jsonl folders to packed parts; the one program behind both prepare commands."""

import os
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from colossal_llama.atomic import atomic_directory, refuse_existing
from colossal_llama.constants import MANIFEST_FILE, PART_PREFIX
from colossal_llama.data.bins import BinWriter, PartTask, scratch_file, write_part
from colossal_llama.data.chat_templates import BoundTemplate
from colossal_llama.data.formats import (
    Conversation,
    Dropped,
    Sample,
    parse_conversation,
    parse_pretrain,
)
from colossal_llama.data.manifest import (
    PRETRAIN,
    SFT,
    ChatFormat,
    Manifest,
    PartInfo,
    SubDataset,
    write_manifest,
)
from colossal_llama.data.readers import FileSlice, InputFile, list_input_files, plan_slices, read_slice
from colossal_llama.data.tokenization import (
    ConversationTokenizer,
    DocumentTokenizer,
    EncoderSpec,
    TextEncoder,
    TokenizedSample,
    encoder_spec,
)
from colossal_llama.errors import UserError
from colossal_llama.tokenizer.fingerprint import tokenizer_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PARALLEL_WRITE_TOKENS = 50_000_000
"""From here on parts are written by several processes; below, starting them costs more than it saves."""

ALL_TURNS_TOO_LONG = "every turn longer than a row"

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class PrepareJob:
    """What to prepare, in plain values.

    Attributes:
        input_dirs: one sub-dataset each.
        tokenizer: a fast tokenizer.
        template: chat template for conversations; None for pretraining texts.
        arrow_dir: receives the parts and the manifest.
        jsonl_dir: receives the same rows as jsonl; None for none.
        cache_dir: where scratch files go while the job runs.
        max_length: longest row in tokens.
        bins: number of parts.
        seed: of the shuffles.
        num_workers: processes that tokenise; 1 works in this process.
        overwrite: replace an older prepared dataset.
    """

    input_dirs: Sequence[Path]
    tokenizer: "PreTrainedTokenizerBase"
    template: BoundTemplate | None
    arrow_dir: Path
    jsonl_dir: Path | None
    cache_dir: Path
    max_length: int
    bins: int
    seed: int
    num_workers: int
    overwrite: bool


@dataclass(frozen=True)
class TokenizeSetup:
    """What a worker process is started with."""

    spec: EncoderSpec
    template: BoundTemplate | None
    max_length: int


@dataclass(slots=True)
class SliceResult:
    """The tokenised content of one slice; arrays hold all samples one behind the other."""

    input_ids: np.ndarray
    labels: np.ndarray
    lengths: list[int]
    categories: list[str]
    counts: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)

    def samples(self) -> Iterator[TokenizedSample]:
        """The samples one by one, as views."""
        start = 0
        for length, category in zip(self.lengths, self.categories, strict=True):
            end = start + length
            yield TokenizedSample(self.input_ids[start:end], self.labels[start:end], category)
            start = end


class SliceTokenizer:
    """Reads and tokenises slices of files."""

    def __init__(self, setup: TokenizeSetup) -> None:
        encoder = TextEncoder(setup.spec)
        self._documents = DocumentTokenizer(encoder)
        self._conversations = None
        if setup.template is not None:
            self._conversations = ConversationTokenizer(encoder, setup.template, setup.max_length)

    def run(self, piece: FileSlice) -> SliceResult:
        """Tokenise one slice.

        Raises:
            UserError: a record is wrong; the message starts with ``file:line``.
        """
        if self._conversations is None:
            return self._pretrain(piece)
        return self._sft(piece, self._conversations)

    def _pretrain(self, piece: FileSlice) -> SliceResult:
        kept: list[Sample] = []
        counts: Counter[str] = Counter()
        dropped: Counter[str] = Counter()
        for record in read_slice(piece):
            counts["records"] += 1
            sample = parse_pretrain(record)
            if isinstance(sample, Dropped):
                dropped[sample.reason] += 1
                continue
            kept.append(sample)
            counts["characters"] += len(sample.source) + len(sample.target)
        counts["documents"] = len(kept)
        return _slice_result(self._documents.tokenize(kept), counts, dropped)

    def _sft(self, piece: FileSlice, tokenizer: ConversationTokenizer) -> SliceResult:
        kept: list[Conversation] = []
        counts: Counter[str] = Counter()
        dropped: Counter[str] = Counter()
        for record in read_slice(piece):
            counts["records"] += 1
            conversation = parse_conversation(record)
            if isinstance(conversation, Dropped):
                dropped[conversation.reason] += 1
                continue
            kept.append(conversation)
        samples: list[TokenizedSample] = []
        for conversation, tokenized in zip(kept, tokenizer.tokenize(kept), strict=True):
            counts["dropped_turns"] += tokenized.dropped_turns
            counts["dropped_turn_tokens"] += tokenized.dropped_tokens
            if not tokenized.pieces:
                dropped[ALL_TURNS_TOO_LONG] += 1
                continue
            counts["documents"] += 1
            counts["trailing_human"] += conversation.trailing_human
            counts["characters"] += sum(len(message.content) for message in conversation.messages)
            samples.extend(tokenized.pieces)
        return _slice_result(samples, counts, dropped)


def _slice_result(samples: list[TokenizedSample], counts: Counter[str], dropped: Counter[str]) -> SliceResult:
    nothing = np.empty(0, dtype=np.int32)
    result = SliceResult(
        input_ids=np.concatenate([nothing, *(sample.input_ids for sample in samples)]),
        labels=np.concatenate([nothing, *(sample.labels for sample in samples)]),
        lengths=[len(sample.input_ids) for sample in samples],
        categories=[sample.category for sample in samples],
        counts=counts,
        dropped=dropped,
    )
    result.counts["tokens"] = len(result.input_ids)
    return result


_worker: SliceTokenizer | None = None


def _start_worker(setup: TokenizeSetup) -> None:
    global _worker
    # Each worker is one thread: the tokenizers library would start as many as there are cores in each.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker = SliceTokenizer(setup)


def _tokenize_in_worker(piece: FileSlice) -> SliceResult:
    assert _worker is not None, "worker processes start with _start_worker"
    return _worker.run(piece)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        del os.environ["TOKENIZERS_PARALLELISM"]
        if before is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def ordered_map(pool: ProcessPoolExecutor, function: Callable[[T], R], items: Iterable[T], window: int) -> Iterator[R]:
    """Like ``pool.map``, in order, but with at most ``window`` items under way, so results do not pile up."""
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UserError("a worker process was killed, most likely for lack of memory; lower --num_workers") from error
    finally:
        for future in waiting:
            future.cancel()


def tokenize_slices(setup: TokenizeSetup, slices: Iterable[FileSlice], num_workers: int) -> Iterator[SliceResult]:
    """Tokenise slices in order, in ``num_workers`` processes.

    Raises:
        UserError: of the first wrong record.
    """
    if num_workers == 1:
        with _one_thread():
            tokenizer = SliceTokenizer(setup)
            for piece in slices:
                yield tokenizer.run(piece)
        return
    with _spawn_pool(num_workers, _start_worker, (setup,)) as pool:
        yield from ordered_map(pool, _tokenize_in_worker, slices, window=2 * num_workers)


def _spawn_pool(
    num_workers: int, initializer: Callable[..., None] | None = None, arguments: tuple = ()
) -> ProcessPoolExecutor:
    import multiprocessing

    # Spawned, not forked: the parent runs threads (arrow, tokenizers), whose locks a fork would copy as held.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(num_workers, mp_context=context, initializer=initializer, initargs=arguments)


@dataclass
class _Totals:
    """Sums over one sub-dataset."""

    name: str
    files: int
    counts: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)

    def entry(self) -> SubDataset:
        counts = self.counts
        dropped = dict(sorted(self.dropped.items()))
        return SubDataset(self.name, self.files, counts["records"], counts["documents"], counts["tokens"], dropped)


def prepare_dataset(job: PrepareJob) -> Manifest:
    """Tokenise, deal out to bins, pack, and write parts and manifest; prints a summary.

    The output folders appear complete or not at all.

    Raises:
        UserError: unusable input, an output folder that exists, or a disk that cannot be written.
    """
    started = time.monotonic()
    files = [list_input_files(directory, "--data_input_dirs") for directory in job.input_dirs]
    check_outputs(job)
    control = job.template.control_tokens if job.template else []
    spec = encoder_spec(job.tokenizer, "--tokenizer_dir", control)
    setup = TokenizeSetup(spec, job.template, job.max_length)
    try:
        with ExitStack() as stack:
            scratch = stack.enter_context(_scratch_folder(job.cache_dir))
            arrow = stack.enter_context(atomic_directory(job.arrow_dir))
            jsonl = stack.enter_context(atomic_directory(job.jsonl_dir)) if job.jsonl_dir else None
            writer = BinWriter(scratch, job.bins, job.seed, len(job.input_dirs))
            totals = _tokenize_all(job, setup, files, writer)
            categories = writer.finish()
            _check_anything_left(job, totals)
            tasks = [
                PartTask(
                    scratch=str(scratch_file(scratch, number)),
                    arrow_folder=str(arrow),
                    jsonl_folder=str(jsonl) if jsonl else None,
                    number=number,
                    categories=tuple(categories),
                    max_length=job.max_length,
                    seed=job.seed,
                )
                for number in range(job.bins)
            ]
            parts = _write_parts(tasks, sum(total.counts["tokens"] for total in totals), job.num_workers)
            manifest = _build_manifest(job, totals, parts)
            write_manifest(manifest, arrow)
    except OSError as error:
        where = error.filename or job.arrow_dir
        raise UserError(f"{where}: {error.strerror or error}; check space and permissions") from error
    print(summary(manifest, time.monotonic() - started), flush=True)
    return manifest


def check_outputs(job: PrepareJob) -> None:
    """Refuse output folders that exist, or that ``overwrite`` would wrongly empty.

    Raises:
        UserError: an output folder exists without ``overwrite``, or holds files that no preparation wrote.
    """
    targets = [(job.arrow_dir, "--data_arrow_output_dir")]
    if job.jsonl_dir is not None:
        targets.append((job.jsonl_dir, "--data_jsonl_output_dir"))
    for target, flag in targets:
        refuse_existing(target, flag, job.overwrite, is_ours=_is_prepared_entry)


def _is_prepared_entry(entry: Path) -> bool:
    return entry.name == MANIFEST_FILE or entry.name.startswith(PART_PREFIX)


@contextmanager
def _scratch_folder(cache_dir: Path) -> Iterator[Path]:
    """A fresh folder in ``cache_dir``, removed at the end together with any folder made for it."""
    made = [folder for folder in (cache_dir, *cache_dir.parents) if not folder.exists()]
    cache_dir.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="prepare-", dir=cache_dir) as scratch:
            yield Path(scratch)
    finally:
        for folder in made:
            if not any(folder.iterdir()):
                folder.rmdir()


def _tokenize_all(
    job: PrepareJob, setup: TokenizeSetup, files: list[list[InputFile]], writer: BinWriter
) -> list[_Totals]:
    from tqdm import tqdm

    names = [directory.resolve().name for directory in job.input_dirs]
    totals = [_Totals(name, len(group)) for name, group in zip(names, files, strict=True)]
    owners: deque[tuple[int, int]] = deque()

    def slices() -> Iterator[FileSlice]:
        for number, group in enumerate(files):
            for path in group:
                for piece in plan_slices(path):
                    owners.append((number, piece.bytes_read))
                    yield piece

    size = sum(path.size for group in files for path in group)
    # disable=None: a bar on a terminal only
    with tqdm(total=size, unit="B", unit_scale=True, desc="tokenize", disable=None) as progress:
        for result in tokenize_slices(setup, slices(), job.num_workers):
            number, read = owners.popleft()
            totals[number].counts.update(result.counts)
            totals[number].dropped.update(result.dropped)
            for sample in result.samples():
                writer.add(number, sample)
            progress.update(read)
    return totals


def _check_anything_left(job: PrepareJob, totals: list[_Totals]) -> None:
    for directory, total in zip(job.input_dirs, totals, strict=True):
        if not total.counts["records"]:
            raise UserError(f"--data_input_dirs {directory}: its {total.files} file(s) hold no record")
    if not any(total.counts["documents"] for total in totals):
        reasons: Counter[str] = Counter()
        for total in totals:
            reasons.update(total.dropped)
        raise UserError(
            f"--data_input_dirs: nothing to learn in any record (dropped: {_reasons(reasons)}); "
            "check the input" + (" and --max_length" if reasons[ALL_TURNS_TOO_LONG] else "")
        )


def _write_parts(tasks: list[PartTask], tokens: int, num_workers: int) -> list[PartInfo]:
    workers = min(num_workers, len(tasks))
    if workers == 1 or tokens < PARALLEL_WRITE_TOKENS:
        return [write_part(task) for task in tasks]
    with _spawn_pool(workers) as pool:
        return list(ordered_map(pool, write_part, tasks, window=workers))


def _build_manifest(job: PrepareJob, totals: list[_Totals], parts: list[PartInfo]) -> Manifest:
    counts: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    for total in totals:
        counts.update(total.counts)
        dropped.update(total.dropped)
    tokens_out = sum(part.tokens for part in parts)
    if tokens_out != counts["tokens"]:
        raise RuntimeError(f"internal error: {counts['tokens']} tokens were made, {tokens_out} were written")
    template = job.template
    return Manifest(
        kind=PRETRAIN if template is None else SFT,
        tokenizer_fingerprint=tokenizer_fingerprint(job.tokenizer),
        vocab_size=max(job.tokenizer.get_vocab().values()) + 1,
        max_length=job.max_length,
        bins=job.bins,
        seed=job.seed,
        documents=counts["documents"],
        characters=counts["characters"],
        rows=sum(part.rows for part in parts),
        tokens=tokens_out,
        target_tokens=sum(part.target_tokens for part in parts),
        dropped=dict(sorted(dropped.items())),
        dropped_turns=counts["dropped_turns"],
        dropped_turn_tokens=counts["dropped_turn_tokens"],
        trailing_human=counts["trailing_human"],
        sub_datasets=[total.entry() for total in totals],
        parts=parts,
        chat_template=None if template is None else ChatFormat(template.name, template.jinja()),
    )


def _reasons(dropped: dict[str, int]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in sorted(dropped.items())) or "none"


def summary(manifest: Manifest, seconds: float) -> str:
    """The account that a preparation prints at its end."""
    records = sum(entry.records for entry in manifest.sub_datasets)
    produced = sum(entry.tokens for entry in manifest.sub_datasets)
    padding = 1 - manifest.tokens / (manifest.rows * manifest.max_length)
    lines = [
        f"records read {records:,}, kept {manifest.documents:,}, dropped: {_reasons(manifest.dropped)}",
        f"tokens produced {produced:,}, in rows {manifest.tokens:,}, with loss {manifest.target_tokens:,}",
        f"rows {manifest.rows:,} of at most {manifest.max_length:,} tokens in {manifest.bins} parts, "
        f"padding {padding:.2%}",
        f"{seconds:.1f} s, {manifest.tokens / max(seconds, 1e-9):,.0f} tokens/s",
    ]
    if manifest.dropped_turns:
        lines.insert(
            1,
            f"turns longer than a row dropped: {manifest.dropped_turns:,} "
            f"({manifest.dropped_turn_tokens:,} tokens); a larger --max_length keeps them",
        )
    if manifest.trailing_human:
        lines.insert(1, f"unanswered last messages cut: {manifest.trailing_human:,}")
    return "\n".join(lines)
