"""Data preparation from input files to packed parts; the one program behind both prepare commands.

Three phases, each of files only: shards of tokenised documents, lists of each bin's documents, parts. What a
killed preparation has finished is found again by the same command, and nothing depends on who made what.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from colossal_llama.atomic import refuse_existing, refuse_unwritable
from colossal_llama.constants import MANIFEST_FILE, PART_PREFIX
from colossal_llama.data.account import build_manifest, describe_reasons, summary
from colossal_llama.data.allotment import Allotment, allot, parse_mixture, unique_names
from colossal_llama.data.bins import DealtTokens, write_bins
from colossal_llama.data.corpus import Corpus, load_corpus
from colossal_llama.data.decontamination import EvaluationNgrams
from colossal_llama.data.duplicate_search import find_duplicates
from colossal_llama.data.engines import choose_engine
from colossal_llama.data.formats import FORMATS, Conversation, FormatOptions, Sample, detect_format
from colossal_llama.data.held_out import VALIDATION
from colossal_llama.data.input_files import TXT, FileRules, FoundFiles, InputFile, find_input_files
from colossal_llama.data.job import PrepareJob, PrepareSettings
from colossal_llama.data.manifest import Manifest, PartInfo, read_manifest, write_manifest
from colossal_llama.data.near_duplicates import require_datasketch
from colossal_llama.data.parts import PartTask, is_made, part_name, write_part
from colossal_llama.data.readers import Record, Reject, read_slice
from colossal_llama.data.reject_file import RejectFile
from colossal_llama.data.report import REPORT_FILE, write_report
from colossal_llama.data.shards import (
    ALL_TURNS_TOO_LONG,
    Screening,
    TokenizeSetup,
    forget_maker,
    group_slices,
    make_shard,
)
from colossal_llama.data.slices import FileSlice, plan_slices
from colossal_llama.data.tokenization import encoder_spec, require_end_token
from colossal_llama.data.workplace import Workplace, open_workplace, workplace_of
from colossal_llama.errors import RecordError, UserError

SHARD_BYTES = 8 << 20
"""Input per shard: what a kill loses at most per worker, and what a worker holds in memory."""

PARALLEL_PART_TOKENS = 5_000_000
"""Tokens per process that writes parts: for fewer, starting it costs more than it saves."""

REJECTS_FILE = "rejects.jsonl"
"""Lists the records that were rejected, beside the manifest."""

DUPLICATES_FILE = "duplicates.jsonl"
"""Lists the duplicates, in the scratch folder: :data:`REJECTS_FILE` has them after all other records."""

EVALUATION_FILE = "evaluation.npy"
"""N-grams of the evaluation texts, in the scratch folder."""

DETECT_RECORDS = 100
"""Records of a file by which its format is recognised."""

DETECT_BYTES = 1 << 16
"""How much of a file is read at a time for that. All files are looked at before work begins, so that one of an unknown
format is refused at once and not after hours; that the shards read these records again costs less than that."""


def prepare_dataset(job: PrepareJob) -> Manifest:
    """Tokenise, deal out to bins, pack, and write parts and manifest; prints a summary.

    The output folders appear complete or not at all. After a kill, or when the disk was full, the same command goes
    on; after an error in the input everything is removed.

    Raises:
        UserError: unusable input, an output folder that exists, or a disk that cannot be written.
    """
    started = time.monotonic()
    found = find_input_files(job.inputs, _file_rules(job))
    files = found.groups
    evaluation = read_evaluation_files(job.settings.screening)
    require_end_token(job.tokenizer, "--tokenizer_dir")
    control = job.template.control_tokens if job.template else []
    setup = TokenizeSetup(
        spec=encoder_spec(job.tokenizer, "--tokenizer_dir", control, job.encoder),
        template=job.template,
        max_length=job.settings.max_length,
        options=FormatOptions(job.settings.text_field, frozenset(job.settings.ignore_fields)),
        skip_bad_records=job.settings.on_bad_record == "skip",
        screening=job.settings.screening,
    )
    place = workplace_of(job, setup, files, SHARD_BYTES)
    if not place.is_complete():
        check_outputs(job)
    try:
        with open_workplace(place):
            manifest = _finish(place) if place.is_complete() else _prepare_in(place, job, setup, found, evaluation)
    except OSError as error:
        where = error.filename or job.arrow_dir
        # pyarrow only says how many bytes it could not write.
        reason = error.strerror or f"the disk may be full: {error}"
        raise UserError(
            f"{where}: {reason}; check space and permissions, then run the command again: it goes on"
        ) from error
    print(summary(manifest, time.monotonic() - started), flush=True)
    return manifest


def _file_rules(job: PrepareJob) -> FileRules:
    """Plain text files of folders are read where any format of texts is."""
    settings = job.settings
    texts = job.template is None and settings.data_format in ("auto", "text") and settings.text_field is None
    return FileRules("--data_input_dirs", settings.recursive, plain_text=texts)


def _finish(place: Workplace) -> Manifest:
    """Publish what an earlier run made and was killed over."""
    print("an earlier run made everything; publishing what is left of it", flush=True)
    manifest = read_manifest(place.publish(), "--data_arrow_output_dir")
    assert manifest is not None, "a complete workplace has a manifest"
    return manifest


def _prepare_in(
    place: Workplace,
    job: PrepareJob,
    setup: TokenizeSetup,
    found: FoundFiles,
    evaluation: EvaluationNgrams | None,
) -> Manifest:
    files = found.groups
    if found.not_read:
        print(f"not read: {found.describe()}", flush=True)
    print(f"tokenising with {'sentencepiece' if setup.spec.sentencepiece else 'tokenizers'}", flush=True)
    if evaluation is not None:
        path = place.scratch / EVALUATION_FILE
        evaluation.save(path)
        setup = replace(setup, evaluation=str(path))
    shards = _make_shards(job, setup, files, place.scratch)
    corpus, allotment = _load_and_allot(place, job, files, shards)
    tasks, dealt = _write_lists(place, job.settings, corpus, allotment)
    # Which document goes where stands in files now.
    allotment.destinations, corpus.left_out = [], None
    tokens = sum(total.tokens for total in corpus.totals)
    workers = min(job.num_workers, len(tasks), tokens // PARALLEL_PART_TOKENS + 1)
    engine = choose_engine(job.engine, workers, job.ray_address)
    infos = list(_progress(engine.map(_write_one_part, None, tasks), total=len(tasks), unit="part", label="pack"))
    validation = infos.pop() if allotment.held is not None else None
    manifest = build_manifest(job, found, corpus, allotment, infos, validation, dealt)
    write_manifest(manifest, place.arrow)
    write_report(place.arrow, job.tokenizer, place.arrow / REPORT_FILE)
    place.complete()
    place.publish()
    return manifest


def read_evaluation_files(screening: Screening) -> EvaluationNgrams | None:
    """The n-grams of the evaluation files, read once for all workers; None without such files.

    Raises:
        UserError: a file cannot be used, or the library for near duplicates is missing.
    """
    if screening.near is not None:
        require_datasketch("--deduplicate near")
    if not screening.evaluation_files:
        return None
    found = EvaluationNgrams.from_files(screening.evaluation_files, flag="--decontaminate")
    print(
        f"decontamination: {found.texts:,} evaluation texts, {len(found):,} {found.n}-grams; "
        f"{found.too_short:,} texts too short to be found",
        flush=True,
    )
    return found


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
    refuse_unwritable(job.cache_dir, "--data_cache_dir")


def _is_prepared_entry(entry: Path) -> bool:
    name = entry.name
    return name in (MANIFEST_FILE, REPORT_FILE, REJECTS_FILE, VALIDATION, f"{VALIDATION}.jsonl") or name.startswith(
        PART_PREFIX
    )


def _make_shards(job: PrepareJob, setup: TokenizeSetup, files: list[list[InputFile]], scratch: Path) -> int:
    """Make all shards; returns their number."""
    formats = _recognise(job.settings, setup, files)

    def slices() -> Iterator[tuple[int, str, FileSlice]]:
        for number, group in enumerate(files):
            for file in group:
                for piece in plan_slices(file):
                    yield number, formats[file.path], piece

    size = sum(file.size for group in files for file in group)
    engine = choose_engine(job.engine, min(job.num_workers, -(-size // SHARD_BYTES) or 1), job.ray_address)
    tasks = group_slices(slices(), scratch, SHARD_BYTES)
    shards = 0
    for _ in _progress(engine.map(make_shard, setup, tasks), size, "B", "tokenize", amount=lambda read: read):
        shards += 1
    forget_maker()
    return shards


def _recognise(settings: PrepareSettings, setup: TokenizeSetup, files: list[list[InputFile]]) -> dict[str, str]:
    """Name of the record format of each file; says what was recognised.

    Raises:
        UserError: an unknown format, or a file of none.
    """
    every = [file for group in files for file in group]
    for file in every:
        if file.kind == TXT and setup.template is not None:
            _check_kind("text", file.path, setup)
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
    """Some records to recognise a format by: good ones only, and without ``skip`` those before the first bad one."""

    def ignore(reject: Reject) -> None:
        """It is reported when the file is read as a whole."""

    slices = plan_slices(file, DETECT_BYTES)
    every = (record for piece in slices for record in read_slice(piece, ignore if skip else None))
    records: list[Record] = []
    # The command will stop at the bad record, unless at one before it whose fields are wrong.
    with suppress(RecordError):
        for record in islice(every, DETECT_RECORDS):
            records.append(record)
    return records


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
    if not any(total.documents for total in corpus.totals):
        reasons = sum(corpus.dropped, Counter())
        hint = "check the input" + (" and --max_length" if reasons[ALL_TURNS_TOO_LONG] else "")
        if corpus.first_reject is not None:
            hint = f"the first one: {corpus.first_reject.detail}"
        raise UserError(
            f"--data_input_dirs {','.join(job.inputs)}: nothing to learn in any record "
            f"(dropped: {describe_reasons(reasons)}); {hint}"
        )


def _load_and_allot(
    place: Workplace, job: PrepareJob, files: list[list[InputFile]], shards: int
) -> tuple[Corpus, Allotment]:
    """Look for duplicates, list them and what was rejected, and deal the documents out."""
    settings, scratch = job.settings, place.scratch
    names, left_out = unique_names(job.inputs), None
    repeated: list[Counter[str]] = [Counter() for _ in names]
    if settings.screening.exact:
        with RejectFile(scratch / DUPLICATES_FILE) as duplicates:

            def note(owner: int, reject: Reject) -> None:
                repeated[owner][reject.reason] += 1
                duplicates.write(reject)

            left_out = find_duplicates(scratch, shards, settings.screening.near, note)
    with RejectFile(place.arrow / REJECTS_FILE) as rejects:
        by_category = settings.sub_dataset_by == "category"
        corpus, members = load_corpus(scratch, shards, names, by_category, left_out, rejects.write)
        rejects.append(scratch / DUPLICATES_FILE)
    _check_anything_left(job, files, corpus)
    for dropped, more in zip(corpus.dropped, repeated, strict=True):
        dropped.update(more)
    weights = None if settings.mixture is None else parse_mixture(settings.mixture, corpus.names)
    return corpus, allot(members, corpus.names, weights, settings.validation_fraction, settings.bins, settings.seed)


def _write_lists(
    place: Workplace, settings: PrepareSettings, corpus: Corpus, allotment: Allotment
) -> tuple[list[PartTask], DealtTokens]:
    """Write the document list of each part that is not made yet; returns the tasks, the validation part last."""
    names = [part_name(number) for number in range(allotment.bins)]
    if allotment.held is not None:
        names.append(VALIDATION)
    tasks = [
        PartTask(
            name=name,
            bin_file=str(place.scratch / f"{name}.documents"),
            shard_folder=str(place.scratch),
            arrow_folder=str(place.arrow),
            jsonl_folder=None if place.jsonl is None else str(place.jsonl),
            categories=tuple(corpus.categories),
            sub_datasets=tuple(allotment.names),
            max_length=settings.max_length,
            long_documents=settings.long_documents,
            packing=settings.packing,
            seed=(settings.seed, 1, position),
            # Evaluation tells sub-datasets apart; in the parts for training nothing reads their names.
            notes_sub_datasets=name == VALIDATION,
        )
        for position, name in enumerate(names)
    ]
    paths = [None if is_made(task) else Path(task.bin_file) for task in tasks]
    return tasks, write_bins(corpus, allotment, paths)
