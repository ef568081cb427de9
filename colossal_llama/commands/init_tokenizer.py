"""Widen a tokenizer's vocabulary."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from colossal_llama.atomic import atomic_directory, refuse_existing
from colossal_llama.config.cli import parse_config
from colossal_llama.config.vocabulary import InitTokenizerConfig
from colossal_llama.errors import UserError, run_command

SOURCE_FLAG, TARGET_FLAG = "--source_tokenizer_dir", "--target_tokenizer_dir"
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
    for name in config.check_text:
        if not Path(name).is_file():  # found out before minutes of work
            raise UserError(f"--check_text {name}: no such file; expected .jsonl or plain UTF-8 text")
    source, target = Path(config.source_tokenizer_dir), Path(config.target_tokenizer_dir)
    if not config.adds_control_tokens:
        add_pieces(config, source, target)
        return
    from colossal_llama.commands.control_tokens import add_control_tokens

    refuse_existing(target, TARGET_FLAG, config.overwrite)
    if target.resolve() == source.resolve():
        raise UserError(f"{TARGET_FLAG} {target}: is the source folder; give another one")
    if config.expand_tokens_file is None:
        with atomic_directory(target) as scratch:
            add_control_tokens(config, source, SOURCE_FLAG, scratch)
        print(f"written to {target}")
        return
    with TemporaryDirectory() as name:
        add_control_tokens(config, source, SOURCE_FLAG, Path(name))
        add_pieces(config, Path(name), target)


def add_pieces(config: InitTokenizerConfig, source: Path, target: Path) -> None:
    """Write the tokenizer of ``source`` with the pieces of the flags to ``target``, and print what was done.

    Raises:
        UserError: see :func:`init_tokenizer`.
    """
    from colossal_llama.data.texts import TextReader
    from colossal_llama.tokenizer.expansion import expand_tokenizer
    from colossal_llama.tokenizer.expansion_report import REPORT_FILE
    from colossal_llama.tokenizer.pieces import read_pieces

    report = expand_tokenizer(
        source,
        read_pieces(Path(str(config.expand_tokens_file))),
        target,
        overwrite=config.overwrite,
        unreachable=config.unreachable,
        check_texts={name: (entry.text for entry in TextReader([name], "--check_text")) for name in config.check_text},
    )
    print(report.describe())
    print(f"written to {target}; all that was left out is listed in its {REPORT_FILE}")
