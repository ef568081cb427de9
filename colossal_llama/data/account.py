"""The account of a preparation: where every record and every token went."""

import importlib.metadata
import sys
from collections import Counter
from dataclasses import asdict

import numpy as np

from colossal_llama.data.allotment import Allotment, Corpus, Documents
from colossal_llama.data.input_files import InputFile
from colossal_llama.data.job import PrepareJob
from colossal_llama.data.manifest import PRETRAIN, SFT, ChatFormat, InputInfo, Manifest, PartInfo, SubDataset
from colossal_llama.data.shard_files import NOT_FIRST
from colossal_llama.tokenizer.fingerprint import tokenizer_fingerprint

LONG_DOCUMENT = "end of a long document"
DUPLICATE = "duplicates"


def build_manifest(
    job: PrepareJob,
    files: list[list[InputFile]],
    corpus: Corpus,
    allotment: Allotment,
    parts: list[PartInfo],
    validation: PartInfo | None,
    duplicate_tokens: int,
) -> Manifest:
    """Describe what was written.

    Args:
        job, files: what was asked for, and the files of each input.
        corpus, allotment: all documents and where they went.
        parts, validation: what was written, counted as it was.
        duplicate_tokens: tokens of the documents that were left out as duplicates.

    Raises:
        RuntimeError: tokens were lost or invented (a fault of this program).
    """
    documents, settings, template = corpus.documents, job.settings, job.template
    counts, dropped = sum(corpus.counts, Counter()), sum(corpus.dropped, Counter())
    first = documents.characters != NOT_FIRST
    tokens_repeated, tokens_dropped = _token_account(
        documents, allotment, [*parts, *([validation] if validation else [])], duplicate_tokens
    )
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
        tokens_in=int(documents.lengths.sum(dtype=np.int64)),
        tokens_repeated=tokens_repeated,
        tokens_dropped=tokens_dropped,
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


def _token_account(
    documents: Documents, allotment: Allotment, written: list[PartInfo], duplicate_tokens: int
) -> tuple[int, dict[str, int]]:
    """Tokens taken more than once, and tokens dropped by reason; checks that all others were written once."""
    planned = [*allotment.bins, *([] if allotment.validation is None else [allotment.validation])]
    times = np.bincount(np.concatenate(planned), minlength=len(documents))
    lengths = documents.lengths.astype(np.int64)
    taken, left_out = int((times * lengths).sum()), int(lengths[times == 0].sum())
    cut_off = sum(part.dropped_tokens for part in written)
    if taken != sum(part.tokens for part in written) + cut_off:
        raise RuntimeError(f"internal error: {taken} tokens were dealt out, another number was written")
    if left_out != duplicate_tokens:
        raise RuntimeError(f"internal error: {left_out} tokens were left out, {duplicate_tokens} on purpose")
    dropped = {LONG_DOCUMENT: cut_off, DUPLICATE: left_out}
    repeated = int((np.maximum(times - 1, 0) * lengths).sum())
    return repeated, {reason: count for reason, count in dropped.items() if count}


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
