"""Data preparation from input files to packed parts; the one program behind both prepare commands.

Three phases, each of files only: shards of tokenised documents, lists of each bin's documents, parts. What a
killed preparation has finished is found again by the same command, and nothing depends on who made what.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from colossal_llama.atomic import refuse_existing
from colossal_llama.constants import MANIFEST_FILE, PART_PREFIX
from colossal_llama.data.account import build_manifest, describe_reasons, summary
from colossal_llama.data.allotment import (
    Allotment,
    Corpus,
    allot,
    epochs_of,
    load_corpus,
    owners_by,
    parse_mixture,
    set_aside,
    unique_names,
)
from colossal_llama.data.decontamination import EvaluationNgrams
from colossal_llama.data.duplicate_search import find_duplicates
from colossal_llama.data.engines import choose_engine
from colossal_llama.data.formats import FORMATS, Conversation, FormatOptions, Sample, detect_format
from colossal_llama.data.held_out import VALIDATION
from colossal_llama.data.input_files import InputFile, list_input_files
from colossal_llama.data.job import PrepareJob, PrepareSettings
from colossal_llama.data.manifest import Manifest, PartInfo, read_manifest, write_manifest
from colossal_llama.data.near_duplicates import require_datasketch
from colossal_llama.data.parts import PartTask, is_made, part_name, write_bin, write_part
from colossal_llama.data.readers import Record, Reject, read_slice
from colossal_llama.data.report import REPORT_FILE, write_report
from colossal_llama.data.shard_files import NOT_FIRST
from colossal_llama.data.shards import (
    ALL_TURNS_TOO_LONG,
    Screening,
    TokenizeSetup,
    group_slices,
    make_shard,
)
from colossal_llama.data.slices import FileSlice, plan_slices
from colossal_llama.data.tokenization import encoder_spec
from colossal_llama.data.workplace import Workplace, open_workplace, workplace_of
from colossal_llama.errors import RecordError, UserError

SHARD_BYTES = 8 << 20
"""Input per shard: what a kill loses at most per worker, and what a worker holds in memory."""

PARALLEL_PART_TOKENS = 5_000_000
"""Tokens per process that writes parts: for fewer, starting it costs more than it saves."""

REJECTS_FILE = "rejects.jsonl"
"""Lists the records that were rejected, beside the manifest."""

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
    files = [list_input_files(spec, "--data_input_dirs") for spec in job.inputs]
    evaluation = read_evaluation_files(job.settings.screening)
    control = job.template.control_tokens if job.template else []
    setup = TokenizeSetup(
        spec=encoder_spec(job.tokenizer, "--tokenizer_dir", control, job.encoder),
        template=job.template,
        max_length=job.settings.max_length,
        options=FormatOptions(job.settings.text_field),
        skip_bad_records=job.settings.on_bad_record == "skip",
        screening=job.settings.screening,
    )
    place = workplace_of(job, setup, files, SHARD_BYTES)
    if not place.is_complete():
        check_outputs(job)
    try:
        with open_workplace(place):
            manifest = _finish(place) if place.is_complete() else _prepare_in(place, job, setup, files, evaluation)
    except OSError as error:
        where = error.filename or job.arrow_dir
        raise UserError(
            f"{where}: {error.strerror or error}; check space and permissions, then run the command again: it goes on"
        ) from error
    print(summary(manifest, time.monotonic() - started), flush=True)
    return manifest


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
    files: list[list[InputFile]],
    evaluation: EvaluationNgrams | None,
) -> Manifest:
    print(f"tokenising with {'sentencepiece' if setup.spec.sentencepiece else 'tokenizers'}", flush=True)
    if evaluation is not None:
        path = place.scratch / EVALUATION_FILE
        evaluation.save(path)
        setup = replace(setup, evaluation=str(path))
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
    tokens = int(corpus.documents.lengths.sum(dtype=np.int64))
    workers = min(job.num_workers, len(tasks), tokens // PARALLEL_PART_TOKENS + 1)
    engine = choose_engine(job.engine, workers, job.ray_address)
    infos = list(_progress(engine.map(_write_one_part, None, tasks), total=len(tasks), unit="part", label="pack"))
    validation = infos.pop() if allotment.validation is not None else None
    duplicate_tokens = int(corpus.documents.lengths[repeated].sum(dtype=np.int64))
    manifest = build_manifest(job, files, corpus, allotment, infos, validation, duplicate_tokens)
    write_manifest(manifest, place.arrow)
    write_rejects(corpus.rejects, place.arrow / REJECTS_FILE)
    write_report(place.arrow, job.tokenizer, place.arrow / REPORT_FILE)
    place.complete()
    place.publish()
    return manifest


def write_rejects(rejects: Sequence[Reject], path: Path) -> None:
    """List rejected records, one JSON object a line: where, reason, detail, raw. Without any, no file."""
    if rejects:
        # The name of a file need not be UTF-8; what of it is not becomes an escape of JSON.
        with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
            for reject in rejects:
                file.write(json.dumps(asdict(reject), ensure_ascii=False) + "\n")


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

    size = sum(file.size for group in files for file in group)
    engine = choose_engine(job.engine, min(job.num_workers, -(-size // SHARD_BYTES) or 1), job.ray_address)
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
    if not len(corpus.documents):
        reasons = sum(corpus.dropped, Counter())
        hint = "check the input" + (" and --max_length" if reasons[ALL_TURNS_TOO_LONG] else "")
        if corpus.rejects:
            hint = f"the first one: {corpus.rejects[0].detail}"
        raise UserError(
            f"--data_input_dirs {','.join(job.inputs)}: nothing to learn in any record "
            f"(dropped: {describe_reasons(reasons)}); {hint}"
        )


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
            # Evaluation tells sub-datasets apart; in the parts for training nothing reads their names.
            notes_sub_datasets=name == VALIDATION,
        )
        if not is_made(task):
            write_bin(Path(task.bin_file), corpus, allotment.owners, numbers)
        tasks.append(task)
    return tasks
