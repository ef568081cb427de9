"""The account of a preparation: where every record and every token went."""

import importlib.metadata
import sys
from collections import Counter
from dataclasses import asdict
from itertools import islice

from colossal_llama.data.allotment import Allotment
from colossal_llama.data.bins import DealtTokens
from colossal_llama.data.corpus import Corpus
from colossal_llama.data.formats.field_use import count_names
from colossal_llama.data.input_files import FoundFiles, describe_not_read
from colossal_llama.data.job import PrepareJob
from colossal_llama.data.manifest import PRETRAIN, SFT, ChatFormat, InputInfo, Manifest, PartInfo, Share, SubDataset
from colossal_llama.tokenizer.fingerprint import tokenizer_fingerprint

MOST_FILES_NOT_READ = 1000
"""Files and folders that were passed over and are listed by name."""

LONG_DOCUMENT = "end of a long document"
DUPLICATE = "duplicates"


def build_manifest(
    job: PrepareJob,
    found: FoundFiles,
    corpus: Corpus,
    allotment: Allotment,
    parts: list[PartInfo],
    validation: PartInfo | None,
    dealt: DealtTokens,
) -> Manifest:
    """Describe what was written.

    Args:
        job, found: what was asked for, and the files of each input.
        corpus, allotment: all documents and how they were dealt out.
        parts, validation: what was written, counted as it was.
        dealt: tokens on the lists that parts and validation were made from.

    Raises:
        RuntimeError: tokens were lost or invented (a fault of this program).
    """
    settings, template = job.settings, job.template
    counts, dropped = sum(corpus.counts, Counter()), sum(corpus.dropped, Counter())
    tokens_dropped = _tokens_dropped(dealt, [*parts, *([validation] if validation else [])], corpus.left_out_tokens)
    other = {name: value for name, value in asdict(settings).items() if name not in ("max_length", "bins", "seed")}
    return Manifest(
        kind=PRETRAIN if template is None else SFT,
        tokenizer_fingerprint=tokenizer_fingerprint(job.tokenizer),
        vocab_size=max(job.tokenizer.get_vocab().values()) + 1,
        max_length=settings.max_length,
        bins=settings.bins,
        seed=settings.seed,
        settings=other,
        documents=sum(total.documents for total in corpus.totals),
        characters=sum(total.characters for total in corpus.totals),
        bytes=sum(total.bytes for total in corpus.totals),
        tokens_in=sum(total.tokens for total in corpus.totals),
        tokens_repeated=dealt.repeated,
        tokens_dropped=tokens_dropped,
        rows=sum(part.rows for part in parts),
        tokens=sum(part.tokens for part in parts),
        target_tokens=sum(part.target_tokens for part in parts),
        dropped=dict(sorted(dropped.items())),
        dropped_turns=counts["dropped_turns"],
        dropped_turn_tokens=counts["dropped_turn_tokens"],
        trailing_human=counts["trailing_human"],
        inputs=_inputs(job, found, corpus),
        sub_datasets=_sub_datasets(corpus, allotment),
        parts=parts,
        validation=validation,
        versions=_versions(),
        chat_template=None if template is None else ChatFormat(template.name, template.jinja()),
        turns_without_loss=counts["turns_without_loss"],
        tokens_without_loss=counts["tokens_without_loss"],
        fields_not_read=_fields_not_read(corpus),
        files_not_read=dict(islice(found.not_read.items(), MOST_FILES_NOT_READ)),
        number_not_read=len(found.not_read),
    )


def _inputs(job: PrepareJob, found: FoundFiles, corpus: Corpus) -> list[InputInfo]:
    columns = (job.inputs, found.groups, corpus.counts, corpus.dropped, corpus.unread)
    return [
        InputInfo(spec, len(group), own["records"], dict(sorted(lost.items())), dict(sorted(others.items())))
        for spec, group, own, lost, others in zip(*columns, strict=True)
    ]


def _fields_not_read(corpus: Corpus) -> dict[str, int]:
    """Records with fields that are not read, by the fields' names, of all inputs."""
    unread: Counter[str] = Counter()
    for own in corpus.unread:
        count_names(unread, own)
    return dict(sorted(unread.items()))


def _tokens_dropped(dealt: DealtTokens, written: list[PartInfo], duplicate_tokens: int) -> dict[str, int]:
    """Tokens dropped by reason; checks that all others were written as often as they were dealt out."""
    cut_off = sum(part.dropped_tokens for part in written)
    if dealt.taken != sum(part.tokens for part in written) + cut_off:
        raise RuntimeError(f"internal error: {dealt.taken} tokens were dealt out, another number was written")
    if dealt.left_out != duplicate_tokens:
        raise RuntimeError(f"internal error: {dealt.left_out} tokens were left out, {duplicate_tokens} on purpose")
    dropped = {LONG_DOCUMENT: cut_off, DUPLICATE: dealt.left_out}
    return {reason: count for reason, count in dropped.items() if count}


def _sub_datasets(corpus: Corpus, allotment: Allotment) -> list[SubDataset]:
    held = allotment.held or [Share(0, 0)] * len(corpus.totals)
    return [
        SubDataset(
            name=name,
            documents=total.documents,
            characters=total.characters,
            bytes=total.bytes,
            tokens=total.tokens,
            validation_documents=aside.documents,
            validation_tokens=aside.tokens,
            epochs=round(epochs, 6),
        )
        for name, total, aside, epochs in zip(allotment.names, corpus.totals, held, allotment.epochs, strict=True)
    ]


def _versions() -> dict[str, str]:
    names = ("colossal_llama", "tokenizers", "transformers", "datasets", "pyarrow", "numpy")
    return {"python": sys.version.split()[0]} | {name: importlib.metadata.version(name) for name in names}


def describe_reasons(dropped: dict[str, int]) -> str:
    """Numbers of dropped records by reason, for people."""
    return ", ".join(f"{number} {reason}" for reason, number in sorted(dropped.items())) or "none"


def summary(manifest: Manifest, seconds: float) -> str:
    """The account that a preparation prints at its end."""
    records = sum(entry.records for entry in manifest.inputs)
    padding = 1 - manifest.tokens / max(manifest.rows * manifest.max_length, 1)
    kept = records - sum(manifest.dropped.values())
    lines = [f"records read {records:,}, kept {kept:,}, dropped: {describe_reasons(manifest.dropped)}"]
    if manifest.trailing_human:
        lines.append(f"unanswered last messages cut: {manifest.trailing_human:,}")
    if manifest.dropped_turns:
        lines.append(
            f"turns longer than a row dropped: {manifest.dropped_turns:,} "
            f"({manifest.dropped_turn_tokens:,} tokens); a larger --max_length keeps them"
        )
    if manifest.turns_without_loss:
        lines.append(
            f"turns dropped that fell into pieces without loss: {manifest.turns_without_loss:,} "
            f"({manifest.tokens_without_loss:,} tokens)"
        )
    if manifest.files_not_read:
        shown = describe_not_read(manifest.files_not_read)
        lines.append(f"files and folders not read {manifest.number_not_read:,}: {shown}")
    if manifest.fields_not_read:
        names = ", ".join(f"{name} {number:,}" for name, number in manifest.fields_not_read.items())
        lines.append(f"fields not read, in so many records: {names}")
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
