"""Data preparation from input files to packed parts; the one program behind both prepare commands.

Three phases, each of files only: shards of tokenised documents, lists of each bin's documents, parts. What a
killed preparation has finished is found again by the same command, and nothing depends on who made what.
"""

import fcntl
import hashlib
import importlib.metadata
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from colossal_llama.atomic import publish_directory, refuse_existing
from colossal_llama.constants import MANIFEST_FILE, PART_PREFIX
from colossal_llama.data.allotment import (
    Corpus,
    allot,
    epochs_of,
    find_duplicates,
    load_corpus,
    owners_by,
    parse_mixture,
    set_aside,
    unique_names,
)
from colossal_llama.data.chat_templates import BoundTemplate
from colossal_llama.data.decontamination import EvaluationNgrams
from colossal_llama.data.duplicates import require_datasketch
from colossal_llama.data.engines import choose_engine
from colossal_llama.data.formats import FORMATS, Conversation, FormatOptions, Sample, detect_format
from colossal_llama.data.manifest import (
    FORMAT_VERSION,
    PRETRAIN,
    SFT,
    ChatFormat,
    InputInfo,
    Manifest,
    PartInfo,
    SubDataset,
    write_manifest,
)
from colossal_llama.data.parts import PartTask, part_info_file, part_name, write_bin, write_part
from colossal_llama.data.readers import FileSlice, InputFile, Record, Reject, list_input_files, plan_slices, read_slice
from colossal_llama.data.report import REPORT_FILE, write_report
from colossal_llama.data.shards import (
    ALL_TURNS_TOO_LONG,
    NOT_FIRST,
    Screening,
    TokenizeSetup,
    group_slices,
    make_shard,
)
from colossal_llama.data.tokenization import encoder_spec
from colossal_llama.errors import UserError
from colossal_llama.tokenizer.fingerprint import tokenizer_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHARD_BYTES = 8 << 20
"""Input per shard: what a kill loses at most per worker, and what a worker holds in memory."""

VALIDATION = "validation"
"""Folder of the validation part, beside the parts."""

REJECTS_FILE = "rejects.jsonl"
"""Lists the records that were rejected, beside the manifest."""

DETECT_RECORDS = 100
"""Records of a file by which its format is recognised."""

LONG_DOCUMENT = "end of a long document"
DUPLICATE = "duplicates"


@dataclass(frozen=True)
class PrepareSettings:
    """The flags that decide what the rows hold.

    Attributes:
        max_length: longest row in tokens.
        bins: number of parts.
        seed: of the shuffles.
        long_documents, packing: registered names.
        sub_dataset_by: ``input`` or ``category``.
        mixture: weights of the sub-datasets as text; None takes everything once.
        validation_fraction: documents of each sub-dataset that go into no bin.
        data_format: registered name, or ``auto`` to recognise it file by file.
        text_field: field of plain text records, or None.
        on_bad_record: ``stop`` at the first, or ``skip`` and list them.
        screening: what is looked for in texts.
    """

    max_length: int
    bins: int
    seed: int
    long_documents: str = "split"
    packing: str = "best_fit"
    sub_dataset_by: str = "input"
    mixture: str | None = None
    validation_fraction: float = 0.0
    data_format: str = "auto"
    text_field: str | None = None
    on_bad_record: str = "stop"
    screening: Screening = field(default_factory=Screening)


@dataclass(frozen=True)
class PrepareJob:
    """What to prepare, in plain values.

    Attributes:
        inputs: directories, files or globs.
        tokenizer: a fast tokenizer.
        template: chat template for conversations; None for pretraining texts.
        settings: what decides the result.
        arrow_dir: receives the parts and the manifest.
        jsonl_dir: receives the same rows as jsonl; None for none.
        cache_dir: where scratch files go while the job runs.
        num_workers: processes or Ray tasks at a time.
        engine: ``local`` or ``ray``.
        ray_address: of a running cluster, or None.
        overwrite: replace an older prepared dataset.
    """

    inputs: Sequence[str]
    tokenizer: "PreTrainedTokenizerBase"
    template: BoundTemplate | None
    settings: PrepareSettings
    arrow_dir: Path
    jsonl_dir: Path | None
    cache_dir: Path
    num_workers: int
    overwrite: bool
    engine: str = "local"
    ray_address: str | None = None


@dataclass(frozen=True)
class Workplace:
    """Folders of one preparation, the same for every run of the same command.

    Attributes:
        scratch: shards, document lists and counts; below ``--data_cache_dir``.
        arrow, jsonl: the outputs under temporary names, beside their targets.
    """

    scratch: Path
    arrow: Path
    jsonl: Path | None

    def remove(self) -> None:
        """Remove everything that is not published."""
        for folder in (self.scratch, self.arrow, self.jsonl):
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


def prepare_dataset(job: PrepareJob) -> Manifest:
    """Tokenise, deal out to bins, pack, and write parts and manifest; prints a summary.

    The output folders appear complete or not at all. After a kill, or when the disk was full, the same command goes
    on; after an error in the input everything is removed.

    Raises:
        UserError: unusable input, an output folder that exists, or a disk that cannot be written.
    """
    started = time.monotonic()
    files = [list_input_files(spec, "--data_input_dirs") for spec in job.inputs]
    check_outputs(job)
    check_evaluation_files(job.settings.screening)
    control = job.template.control_tokens if job.template else []
    setup = TokenizeSetup(
        spec=encoder_spec(job.tokenizer, "--tokenizer_dir", control),
        template=job.template,
        max_length=job.settings.max_length,
        options=FormatOptions(job.settings.text_field),
        skip_bad_records=job.settings.on_bad_record == "skip",
        screening=job.settings.screening,
    )
    try:
        with _workplace(job, setup, files) as place:
            manifest = _prepare_in(place, job, setup, files)
    except OSError as error:
        where = error.filename or job.arrow_dir
        raise UserError(
            f"{where}: {error.strerror or error}; check space and permissions, then run the command again: it goes on"
        ) from error
    print(summary(manifest, time.monotonic() - started), flush=True)
    return manifest


def _prepare_in(place: Workplace, job: PrepareJob, setup: TokenizeSetup, files: list[list[InputFile]]) -> Manifest:
    corpus, shards = _tokenize_all(job, setup, files, place.scratch)
    _check_anything_left(job, files, corpus)
    repeated = _drop_duplicates(job.settings.screening, corpus, place.scratch, shards)
    owners, names = owners_by(
        corpus.documents,
        corpus.categories,
        job.settings.sub_dataset_by == "category",
        unique_names(job.inputs),
    )
    allotment = _allot(job.settings, corpus, owners, names, ~repeated)
    tasks = _plan_parts(place, job.settings, corpus, allotment)
    engine = choose_engine(job.engine, min(job.num_workers, len(tasks)), job.ray_address)
    infos = list(_progress(engine.map(_write_one_part, None, tasks), total=len(tasks), unit="part", label="pack"))
    validation = infos.pop() if allotment.validation is not None else None
    duplicate_tokens = int(corpus.documents.lengths[repeated].sum(dtype=np.int64))
    manifest = _build_manifest(job, files, corpus, allotment, infos, validation, duplicate_tokens)
    write_manifest(manifest, place.arrow)
    write_rejects(corpus.rejects, place.arrow / REJECTS_FILE)
    write_report(place.arrow, job.tokenizer, place.arrow / REPORT_FILE)
    publish_directory(place.arrow, job.arrow_dir.resolve())
    if place.jsonl is not None and job.jsonl_dir is not None:
        publish_directory(place.jsonl, job.jsonl_dir.resolve())
    return manifest


def write_rejects(rejects: Sequence[Reject], path: Path) -> None:
    """List rejected records, one JSON object a line: where, reason, detail, raw. Without any, no file."""
    if rejects:
        with path.open("w", encoding="utf-8") as file:
            for reject in rejects:
                # What UTF-8 cannot express (half a surrogate pair) is escaped.
                line = json.dumps(asdict(reject), ensure_ascii=False)
                file.write(line.encode("utf-8", "backslashreplace").decode("utf-8") + "\n")


def check_evaluation_files(screening: Screening) -> None:
    """Read the evaluation files once before any worker does.

    Raises:
        UserError: a file cannot be used.
    """
    if screening.near is not None:
        require_datasketch("--deduplicate near")
    if screening.evaluation_files:
        found = EvaluationNgrams.from_files(screening.evaluation_files, flag="--decontaminate")
        print(
            f"decontamination: {found.texts:,} evaluation texts, {len(found):,} {found.n}-grams; "
            f"{found.too_short:,} texts too short to be found",
            flush=True,
        )


def _drop_duplicates(screening: Screening, corpus: Corpus, scratch: Path, shards: int) -> np.ndarray:
    """Which documents are left out as duplicates; counts and lists them in the corpus."""
    documents = corpus.documents
    if not screening.exact:
        return np.zeros(len(documents), dtype=bool)
    repeated, notes = find_duplicates(scratch, shards, documents, screening.near)
    corpus.rejects.extend(notes)
    heads = np.flatnonzero(repeated & (documents.characters != NOT_FIRST))
    for owner, note in zip(documents.inputs[heads].tolist(), notes, strict=True):
        corpus.dropped[owner][note.reason] += 1
    return repeated


def _write_one_part(setup: None, task: PartTask) -> PartInfo:
    return write_part(task)


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
    name = entry.name
    return name in (MANIFEST_FILE, REPORT_FILE, REJECTS_FILE, VALIDATION, f"{VALIDATION}.jsonl") or name.startswith(
        PART_PREFIX
    )


def _identity(job: PrepareJob, setup: TokenizeSetup, files: list[list[InputFile]]) -> str:
    """A name for this preparation: equal for the same inputs, tokenizer, settings and program, else different."""
    facts = {
        "format": FORMAT_VERSION,
        "settings": asdict(job.settings),
        "tokenizer": hashlib.sha256((setup.spec.head_json + setup.spec.tail_json).encode()).hexdigest(),
        "template": None if job.template is None else job.template.jinja(),
        "jsonl": job.jsonl_dir is not None,
        "files": [
            [[str(Path(file.path).resolve()), file.size, Path(file.path).stat().st_mtime_ns] for file in group]
            for group in files
        ],
        "shard_bytes": SHARD_BYTES,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def _workplace(job: PrepareJob, setup: TokenizeSetup, files: list[list[InputFile]]) -> Iterator[Workplace]:
    """The folders that the work is done in; kept when the disk fails or the process is killed, else removed."""
    identity = _identity(job, setup, files)
    arrow, jsonl = (
        None if target is None else target.resolve().with_name(f".{target.name}.prepare-{identity}")
        for target in (job.arrow_dir, job.jsonl_dir)
    )
    assert arrow is not None
    place = Workplace(job.cache_dir / f"prepare-{identity}", arrow, jsonl)
    made = [folder for folder in (job.cache_dir, *job.cache_dir.parents) if not folder.exists()]
    if place.scratch.exists():
        print(f"going on with what an earlier run left in {place.scratch}", flush=True)
    for folder in (place.scratch, place.arrow, place.jsonl):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    try:
        with _only_one(place.scratch / "lock"):
            try:
                yield place
            except OSError:
                raise
            except BaseException:
                place.remove()
                raise
            else:
                place.remove()
    finally:
        for folder in made:
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Hold a lock that ends with the process.

    Raises:
        UserError: another process holds it.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{path.parent}: the same preparation is running already; wait for it or stop it"
            ) from error
        yield


def _tokenize_all(
    job: PrepareJob, setup: TokenizeSetup, files: list[list[InputFile]], scratch: Path
) -> tuple[Corpus, int]:
    """Make all shards; returns the corpus and their number."""
    formats = _recognise(job.settings, setup, files)

    def slices() -> Iterator[tuple[int, str, FileSlice]]:
        for number, group in enumerate(files):
            for file in group:
                for piece in plan_slices(file):
                    yield number, formats[file.path], piece

    engine = choose_engine(job.engine, job.num_workers, job.ray_address)
    size = sum(file.size for group in files for file in group)
    tasks = group_slices(slices(), scratch, SHARD_BYTES)
    shards = 0
    for _ in _progress(engine.map(make_shard, setup, tasks), size, "B", "tokenize", amount=lambda read: read):
        shards += 1
    return load_corpus(scratch, shards, len(files)), shards


def _recognise(settings: PrepareSettings, setup: TokenizeSetup, files: list[list[InputFile]]) -> dict[str, str]:
    """Name of the record format of each file; says what was recognised.

    Raises:
        UserError: an unknown format, or a file of none.
    """
    every = [file for group in files for file in group]
    if settings.data_format != "auto":
        name = FORMATS.get(settings.data_format).name
        _check_kind(name, f"--data_format {name}", setup)
        return {file.path: name for file in every}
    found: dict[str, str] = {}
    default = "colossal" if setup.template is None else "messages"
    for file in every:
        records = _first_records(file, setup.skip_bad_records)
        found[file.path] = detect_format(records, file.path, setup.options).name if records else default
        _check_kind(found[file.path], file.path, setup)
    numbers = Counter(found.values())
    print("record formats: " + ", ".join(f"{name} ({count} files)" for name, count in numbers.items()), flush=True)
    return found


def _check_kind(name: str, where: str, setup: TokenizeSetup) -> None:
    """Refuse conversations for pretraining and texts for SFT.

    Raises:
        UserError: names the file and the command to use.
    """
    holds = FORMATS.get(name).holds
    if setup.template is None and Sample not in holds:
        raise UserError(f"{where}: holds conversations (format {name}); use prepare_sft_dataset.py for them")
    if setup.template is not None and Conversation not in holds:
        raise UserError(f"{where}: holds pretraining texts (format {name}); use prepare_pretrain_dataset.py for them")


def _first_records(file: InputFile, skip: bool) -> list[Record]:
    def ignore(reject: Reject) -> None:
        """It is counted when the file is read as a whole."""

    records = (record for piece in plan_slices(file) for record in read_slice(piece, ignore if skip else None))
    return list(islice(records, DETECT_RECORDS))


def _progress(
    results: Iterator[Any], total: int, unit: str, label: str, amount: Callable[[Any], int] = lambda result: 1
) -> Iterator[Any]:
    from tqdm import tqdm

    # disable=None: a bar on a terminal only
    with tqdm(total=total, unit=unit, unit_scale=True, desc=label, disable=None) as bar:
        for result in results:
            yield result
            bar.update(amount(result))


def _check_anything_left(job: PrepareJob, files: list[list[InputFile]], corpus: Corpus) -> None:
    for spec, group, counts in zip(job.inputs, files, corpus.counts, strict=True):
        if not counts["records"]:
            raise UserError(f"--data_input_dirs {spec}: its {len(group)} file(s) hold no record")
    if not len(corpus.documents):
        reasons = sum(corpus.dropped, Counter())
        raise UserError(
            f"--data_input_dirs: nothing to learn in any record (dropped: {_reasons(reasons)}); "
            "check the input" + (" and --max_length" if reasons[ALL_TURNS_TOO_LONG] else "")
        )


@dataclass(slots=True)
class Allotment:
    """Which documents go where.

    Attributes:
        owners: number of each document's sub-dataset.
        names: of the sub-datasets.
        epochs: passes over each.
        bins: numbers of each bin's documents.
        validation: numbers of the validation set's documents; None without one.
    """

    owners: np.ndarray
    names: list[str]
    epochs: list[float]
    bins: list[np.ndarray]
    validation: np.ndarray | None


def _allot(
    settings: PrepareSettings, corpus: Corpus, owners: np.ndarray, names: list[str], kept: np.ndarray
) -> Allotment:
    chosen = np.flatnonzero(kept)
    aside = set_aside(corpus.documents.take(chosen), owners[chosen], settings.validation_fraction, settings.seed)
    validation = chosen[aside] if settings.validation_fraction else None
    left = chosen[~aside]
    documents = corpus.documents.take(left)
    weights = None if settings.mixture is None else parse_mixture(settings.mixture, names)
    tokens = np.bincount(owners[left], documents.lengths, minlength=len(names)).astype(np.int64)
    epochs = epochs_of(tokens.tolist(), weights)
    bins = allot(documents, owners[left], epochs, settings.bins, settings.seed)
    return Allotment(owners, names, epochs, [left[numbers] for numbers in bins], validation)


def _plan_parts(place: Workplace, settings: PrepareSettings, corpus: Corpus, allotment: Allotment) -> list[PartTask]:
    """Write the document list of each part that is not made yet; returns the tasks, the validation part last."""
    lists = [(part_name(number), numbers) for number, numbers in enumerate(allotment.bins)]
    if allotment.validation is not None:
        lists.append((VALIDATION, allotment.validation))
    tasks = []
    for position, (name, numbers) in enumerate(lists):
        task = PartTask(
            name=name,
            bin_file=str(place.scratch / f"{name}.npz"),
            shard_folder=str(place.scratch),
            arrow_folder=str(place.arrow),
            jsonl_folder=None if place.jsonl is None else str(place.jsonl),
            categories=tuple(corpus.categories),
            sub_datasets=tuple(allotment.names),
            max_length=settings.max_length,
            long_documents=settings.long_documents,
            packing=settings.packing,
            seed=(settings.seed, 1, position),
        )
        if not part_info_file(task).exists():
            write_bin(Path(task.bin_file), corpus, allotment.owners, numbers)
        tasks.append(task)
    return tasks


def _build_manifest(
    job: PrepareJob,
    files: list[list[InputFile]],
    corpus: Corpus,
    allotment: Allotment,
    parts: list[PartInfo],
    validation: PartInfo | None,
    duplicate_tokens: int,
) -> Manifest:
    documents, settings, template = corpus.documents, job.settings, job.template
    counts, dropped = sum(corpus.counts, Counter()), sum(corpus.dropped, Counter())
    first = documents.characters != NOT_FIRST
    tokens_in = int(documents.lengths.sum(dtype=np.int64))
    written = [*parts, *([validation] if validation else [])]
    dropped_tokens = sum(part.dropped_tokens for part in written)
    planned = [*allotment.bins, *([] if allotment.validation is None else [allotment.validation])]
    times = np.bincount(np.concatenate(planned), minlength=len(documents))
    taken = int((times * documents.lengths.astype(np.int64)).sum())
    left_out = int(documents.lengths[times == 0].sum(dtype=np.int64))
    repeated = int((np.maximum(times - 1, 0) * documents.lengths.astype(np.int64)).sum())
    if taken != sum(part.tokens for part in written) + dropped_tokens:
        raise RuntimeError(f"internal error: {taken} tokens were dealt out, another number was written")
    if left_out != duplicate_tokens:
        raise RuntimeError(f"internal error: {left_out} tokens were left out, {duplicate_tokens} on purpose")
    other = {name: value for name, value in asdict(settings).items() if name not in ("max_length", "bins", "seed")}
    return Manifest(
        kind=PRETRAIN if template is None else SFT,
        tokenizer_fingerprint=tokenizer_fingerprint(job.tokenizer),
        vocab_size=max(job.tokenizer.get_vocab().values()) + 1,
        max_length=settings.max_length,
        bins=settings.bins,
        seed=settings.seed,
        settings=other,
        documents=documents.count(),
        characters=int(documents.characters[first].sum(dtype=np.int64)),
        bytes=int(documents.bytes[first].sum(dtype=np.int64)),
        tokens_in=tokens_in,
        tokens_repeated=repeated,
        tokens_dropped={
            reason: count for reason, count in ((LONG_DOCUMENT, dropped_tokens), (DUPLICATE, left_out)) if count
        },
        rows=sum(part.rows for part in parts),
        tokens=sum(part.tokens for part in parts),
        target_tokens=sum(part.target_tokens for part in parts),
        dropped=dict(sorted(dropped.items())),
        dropped_turns=counts["dropped_turns"],
        dropped_turn_tokens=counts["dropped_turn_tokens"],
        trailing_human=counts["trailing_human"],
        inputs=[
            InputInfo(spec, len(group), own["records"], dict(sorted(lost.items())))
            for spec, group, own, lost in zip(job.inputs, files, corpus.counts, corpus.dropped, strict=True)
        ],
        sub_datasets=_sub_datasets(corpus, allotment),
        parts=parts,
        validation=validation,
        versions=_versions(),
        chat_template=None if template is None else ChatFormat(template.name, template.jinja()),
    )


def _sub_datasets(corpus: Corpus, allotment: Allotment) -> list[SubDataset]:
    documents = corpus.documents
    aside = np.zeros(len(documents), dtype=bool)
    if allotment.validation is not None:
        aside[allotment.validation] = True
    entries = []
    for number, name in enumerate(allotment.names):
        own = allotment.owners == number
        whole, held = documents.take(np.flatnonzero(own)), documents.take(np.flatnonzero(own & aside))
        first = whole.characters != NOT_FIRST
        entries.append(
            SubDataset(
                name=name,
                documents=whole.count(),
                characters=int(whole.characters[first].sum(dtype=np.int64)),
                bytes=int(whole.bytes[first].sum(dtype=np.int64)),
                tokens=int(whole.lengths.sum(dtype=np.int64)),
                validation_documents=held.count(),
                validation_tokens=int(held.lengths.sum(dtype=np.int64)),
                epochs=round(allotment.epochs[number], 6),
            )
        )
    return entries


def _versions() -> dict[str, str]:
    names = ("colossal_llama", "tokenizers", "transformers", "datasets", "pyarrow", "numpy")
    return {"python": sys.version.split()[0]} | {name: importlib.metadata.version(name) for name in names}


def _reasons(dropped: dict[str, int]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in sorted(dropped.items())) or "none"


def summary(manifest: Manifest, seconds: float) -> str:
    """The account that a preparation prints at its end."""
    records = sum(entry.records for entry in manifest.inputs)
    padding = 1 - manifest.tokens / max(manifest.rows * manifest.max_length, 1)
    lines = [f"records read {records:,}, kept {manifest.documents:,}, dropped: {_reasons(manifest.dropped)}"]
    if manifest.trailing_human:
        lines.append(f"unanswered last messages cut: {manifest.trailing_human:,}")
    if manifest.dropped_turns:
        lines.append(
            f"turns longer than a row dropped: {manifest.dropped_turns:,} "
            f"({manifest.dropped_turn_tokens:,} tokens); a larger --max_length keeps them"
        )
    account = [f"tokens produced {manifest.tokens_in:,}"]
    if manifest.tokens_repeated:
        account.append(f"repeated {manifest.tokens_repeated:,}")
    account += [f"dropped ({reason}) {count:,}" for reason, count in manifest.tokens_dropped.items()]
    if manifest.validation is not None:
        account.append(f"in validation {manifest.validation.tokens:,}")
    account += [f"in rows {manifest.tokens:,}", f"with loss {manifest.target_tokens:,}"]
    lines.append(", ".join(account))
    for entry in manifest.sub_datasets:
        if entry.epochs != 1:
            lines.append(f"sub-dataset {entry.name}: {entry.tokens:,} tokens, {entry.epochs:g} epochs")
    lines.append(
        f"rows {manifest.rows:,} of at most {manifest.max_length:,} tokens in {manifest.bins} parts, "
        f"padding {padding:.2%}"
    )
    lines.append(f"{seconds:.1f} s, {manifest.tokens_in / max(seconds, 1e-9):,.0f} tokens/s")
    return "\n".join(lines)
