"""prepare_sft_dataset.py: conversations to packed rows for supervised fine-tuning."""

from collections.abc import Sequence

from colossal_llama.commands.prepare_pretrain_dataset import prepare
from colossal_llama.config.cli import parse_config
from colossal_llama.config.prepare import SftPrepareConfig
from colossal_llama.errors import run_command

DESCRIPTION = "Tokenise and pack .jsonl conversations ({messages}) into parts for supervised fine-tuning."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(lambda: prepare(parse_config(SftPrepareConfig, argv, DESCRIPTION)))
