"""Compare tokenizers on text."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from colossal_llama.atomic import refuse_existing_file, write_text_atomically
from colossal_llama.config.cli import parse_config, with_leading_values
from colossal_llama.config.mining import TokenizerReportConfig
from colossal_llama.errors import UserError, run_command

if TYPE_CHECKING:
    from colossal_llama.tokenizer.comparison import TokenizerMeter

DESCRIPTION = "Compare tokenizers: tokens for the same text, byte fallback, round trips, cost of the embedding rows."


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``tokenizer_report.py``; returns the process's exit code."""
    arguments = with_leading_values(argv, "--tokenizers")
    return run_command(lambda: tokenizer_report(parse_config(TokenizerReportConfig, arguments, DESCRIPTION)))


def tokenizer_report(config: TokenizerReportConfig) -> None:
    """Measure every tokenizer on the text, print the tables, write Markdown and HTML.

    Raises:
        UserError: an output exists, a tokenizer or an input is missing or broken, or there is no text.
    """
    _check_outputs(config)
    from colossal_llama.data.texts import TextReader
    from colossal_llama.tokenizer.comparison import Comparison, measure_texts, read_model_shape
    from colossal_llama.tokenizer.comparison_report import to_html, to_markdown, to_terminal
    from colossal_llama.tokenizer.pieces import describe_skipped

    hidden_size, tied = config.hidden_size, config.tied
    if config.model is not None:
        hidden_size, tied = read_model_shape(Path(config.model), "--model")
    meters = load_meters(config.tokenizers)
    reader = TextReader(config.text_files, "--text_files", config.data_format, config.text_field, config.recursive)
    measure_texts(meters, ((text.category, text.text) for text in reader))
    if not meters[0].categories:
        raise UserError(
            f"--text_files {' '.join(config.text_files)}: no text (records without any: "
            f"{describe_skipped(reader.dropped)})"
        )
    for line in reader.notes():
        print(line)
    comparison = Comparison(meters, hidden_size, tied, config.tokens_per_parameter)
    print(to_terminal(comparison))
    for name, render in (("markdown", to_markdown), ("html", to_html)):
        value = getattr(config, name)
        if value is not None:
            write_text_atomically(Path(value), render(comparison))
            print(f"written to {value}")


def _check_outputs(config: TokenizerReportConfig) -> None:
    for name in ("markdown", "html"):
        value = getattr(config, name)
        if value is not None:
            refuse_existing_file(Path(value), f"--{name}", config.overwrite)


def load_meters(specs: Sequence[str]) -> "list[TokenizerMeter]":
    """The tokenizers of folders or NAME=FOLDER; a folder's own name is its last part, or the whole if that is taken.

    Raises:
        UserError: a folder holds no tokenizer that can be loaded fast, or a name is given twice.
    """
    from colossal_llama.tokenizer.comparison import TokenizerMeter
    from colossal_llama.tokenizer.loading import check_tokenizer_folder, load_tokenizer

    folders: dict[str, str] = {}
    ends = Counter(Path(spec).resolve().name for spec in specs)
    for spec in specs:
        name, separator, folder = spec.partition("=")
        if not separator or Path(spec).exists():
            end = Path(spec).resolve().name
            name, folder = (end if ends[end] == 1 else spec), spec
        if not name or name in folders:
            raise UserError(f"--tokenizers {spec}: {'no name' if not name else 'given twice'}; give NAME=FOLDER")
        check_tokenizer_folder(Path(folder), "--tokenizers")
        folders[name] = folder
    return [
        TokenizerMeter(name, load_tokenizer(folder, "--tokenizers"), "--tokenizers") for name, folder in folders.items()
    ]
