"""Widen a tokenizer's vocabulary."""

from collections.abc import Sequence
from pathlib import Path

from colossal_llama.config.cli import parse_config
from colossal_llama.config.vocabulary import InitTokenizerConfig
from colossal_llama.errors import UserError, run_command

DESCRIPTION = "Add pieces to a tokenizer; every old token keeps its id."


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``init_tokenizer.py``; returns the process's exit code."""
    return run_command(lambda: init_tokenizer(parse_config(InitTokenizerConfig, argv, DESCRIPTION)))


def init_tokenizer(config: InitTokenizerConfig) -> None:
    """Read the pieces, write the wider tokenizer and print what was done.

    Raises:
        UserError: the target exists, the source, the pieces or the texts are broken, nothing is left to add, or the
            slow and the fast tokenizer would differ.
    """
    from colossal_llama.data.texts import TextReader
    from colossal_llama.tokenizer.expansion import expand_tokenizer
    from colossal_llama.tokenizer.expansion_report import REPORT_FILE
    from colossal_llama.tokenizer.pieces import read_pieces

    for name in config.check_text:
        if not Path(name).is_file():  # found out before minutes of work
            raise UserError(f"--check_text {name}: no such file; expected .jsonl or plain UTF-8 text")

    report = expand_tokenizer(
        Path(config.source_tokenizer_dir),
        read_pieces(Path(config.expand_tokens_file)),
        Path(config.target_tokenizer_dir),
        overwrite=config.overwrite,
        unreachable=config.unreachable,
        check_texts={name: (entry.text for entry in TextReader([name], "--check_text")) for name in config.check_text},
    )
    print(report.describe())
    print(f"written to {config.target_tokenizer_dir}; all that was left out is listed in its {REPORT_FILE}")
