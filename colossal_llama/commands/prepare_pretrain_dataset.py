"""prepare_pretrain_dataset.py: raw texts to packed rows for continual pretraining."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from colossal_llama.config.cli import parse_config
from colossal_llama.config.prepare import PretrainPrepareConfig
from colossal_llama.errors import run_command

if TYPE_CHECKING:
    from colossal_llama.data.pipeline import PrepareJob

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
    from colossal_llama.data.pipeline import PrepareJob
    from colossal_llama.tokenizer.loading import load_tokenizer

    flag = f"--tokenizer_dir {config.tokenizer_dir}"
    tokenizer = load_tokenizer(config.tokenizer_dir, "--tokenizer_dir")
    name = config.template_name()
    return PrepareJob(
        input_dirs=config.input_dirs(),
        tokenizer=tokenizer,
        template=CHAT_TEMPLATES.get(name).bind(tokenizer, name, flag) if name else None,
        arrow_dir=config.arrow_dir(),
        jsonl_dir=config.jsonl_dir(),
        cache_dir=config.cache_dir(),
        max_length=config.max_length,
        bins=config.num_spliced_dataset_bins,
        seed=config.seed,
        num_workers=config.worker_count(),
        overwrite=config.overwrite,
    )
