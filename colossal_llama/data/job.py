"""What a preparation is asked to do."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from colossal_llama.data.chat_templates import BoundTemplate
from colossal_llama.data.shards import Screening

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
        ignore_fields: names of fields that are passed over although they change what a record means.
        on_bad_record: ``stop`` at the first, or ``skip`` and list them.
        screening: what is looked for in texts.
        recursive: read the subfolders of folders too.
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
    ignore_fields: tuple[str, ...] = ()
    on_bad_record: str = "stop"
    screening: Screening = field(default_factory=Screening)
    recursive: bool = False


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
        encoder: ``auto`` or ``tokenizers``; the ids are the same.
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
    encoder: str = "auto"
    engine: str = "local"
    ray_address: str | None = None
