"""Widen a tokenizer's vocabulary."""

from collections.abc import Sequence
from pathlib import Path

from colossal_llama.config.cli import parse_config
from colossal_llama.config.vocabulary import InitTokenizerConfig
from colossal_llama.errors import run_command

DESCRIPTION = "Add pieces to a tokenizer; every old token keeps its id."


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``init_tokenizer.py``; returns the process's exit code."""
    return run_command(lambda: init_tokenizer(parse_config(InitTokenizerConfig, argv, DESCRIPTION)))


def init_tokenizer(config: InitTokenizerConfig) -> None:
    """Read the pieces, write the wider tokenizer and print what was done.

    Raises:
        UserError: the target exists, the source or the pieces are broken, or nothing is left to add.
    """
    from colossal_llama.tokenizer.expansion import expand_tokenizer
    from colossal_llama.tokenizer.pieces import read_pieces

    report = expand_tokenizer(
        Path(config.source_tokenizer_dir),
        read_pieces(Path(config.expand_tokens_file)),
        Path(config.target_tokenizer_dir),
        overwrite=config.overwrite,
    )
    print(report.describe())
    print(f"written to {config.target_tokenizer_dir}")
