"""prepare_pretrain_dataset.py: raw texts to packed rows for continual pretraining."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from colossal_llama.config.cli import parse_config
from colossal_llama.config.prepare import PretrainPrepareConfig
from colossal_llama.errors import UserError, run_command

if TYPE_CHECKING:
    from colossal_llama.data.job import PrepareJob
    from colossal_llama.data.shards import Screening

DESCRIPTION = "Tokenise and pack .jsonl texts ({source, target, category}) into parts for continual pretraining."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(lambda: prepare(parse_config(PretrainPrepareConfig, argv, DESCRIPTION)))


def prepare(config: PretrainPrepareConfig) -> None:
    """Prepare the dataset that a pretraining or SFT configuration describes.

    Raises:
        UserError: unusable input.
    """
    from colossal_llama.data.pipeline import prepare_dataset

    prepare_dataset(build_job(config))


def build_job(config: PretrainPrepareConfig) -> "PrepareJob":
    """Turn the flags into a job: load the tokenizer, bind the chat template.

    Raises:
        UserError: an unusable tokenizer.
    """
    from colossal_llama.data.chat_templates import CHAT_TEMPLATES
    from colossal_llama.data.exported_template import with_exported_template
    from colossal_llama.data.formats.field_use import REFUSABLE
    from colossal_llama.data.job import PrepareJob, PrepareSettings
    from colossal_llama.tokenizer.loading import load_tokenizer

    for unknown in set(config.ignored_fields()) - REFUSABLE:
        raise UserError(
            f"--ignore_fields {unknown}: no such field would be refused; expected {', '.join(sorted(REFUSABLE))}"
        )
    flag = f"--tokenizer_dir {config.tokenizer_dir}"
    tokenizer = load_tokenizer(config.tokenizer_dir, "--tokenizer_dir")
    name = config.template_name()
    template = CHAT_TEMPLATES.get(name).bind(tokenizer, name, flag) if name else None
    return PrepareJob(
        inputs=config.inputs(),
        tokenizer=tokenizer,
        template=None if template is None else with_exported_template(template, tokenizer, flag),
        settings=PrepareSettings(
            max_length=config.max_length,
            bins=config.num_spliced_dataset_bins,
            seed=config.seed,
            long_documents=config.long_documents,
            packing=config.packing,
            sub_dataset_by=config.sub_dataset_by,
            mixture=config.mixture,
            validation_fraction=config.validation_fraction,
            data_format=config.data_format,
            text_field=config.text_field,
            ignore_fields=config.ignored_fields(),
            recursive=config.recursive,
            on_bad_record=config.on_bad_record,
            screening=build_screening(config),
        ),
        arrow_dir=config.arrow_dir(),
        jsonl_dir=config.jsonl_dir(),
        cache_dir=config.cache_dir(),
        num_workers=config.worker_count(),
        overwrite=config.overwrite,
        encoder=config.encoder,
        engine=config.engine,
        ray_address=config.ray_address,
    )


def build_screening(config: PretrainPrepareConfig) -> "Screening":
    """What the flags ask to look for in texts.

    Raises:
        UserError: limits that contradict each other.
    """
    from colossal_llama.data.near_duplicates import NearDuplicateSettings
    from colossal_llama.data.quality import GOPHER, QualitySettings
    from colossal_llama.data.shards import Screening

    base = GOPHER if config.quality == "gopher" else QualitySettings()
    try:
        quality = replace(base, min_characters=config.min_characters, max_characters=config.max_characters)
        near = NearDuplicateSettings(config.near_duplicate_threshold) if config.deduplicate == "near" else None
    except ValueError as error:
        raise UserError(f"--{error}") from error
    return Screening(
        quality=None if quality == QualitySettings() else quality,
        evaluation_files=tuple(part.strip() for part in (config.decontaminate or "").split(",") if part.strip()),
        exact=config.deduplicate != "none",
        near=near,
    )
