"""Find the pieces that a tokenizer lacks for a corpus."""

from collections.abc import Sequence
from pathlib import Path

from colossal_llama.config.cli import parse_config
from colossal_llama.config.vocabulary import MineTokensConfig
from colossal_llama.errors import UserError, run_command

DESCRIPTION = "Find the pieces that would save a tokenizer most tokens on a corpus."


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``mine_tokens.py``; returns the process's exit code."""
    return run_command(lambda: mine_tokens(parse_config(MineTokensConfig, argv, DESCRIPTION)))


def mine_tokens(config: MineTokensConfig) -> None:
    """Mine the corpus and write the pieces.

    Raises:
        UserError: the output exists, an input is missing or broken, or the corpus has nothing to add.
    """
    output = Path(config.output_file)
    if output.is_dir() or (output.exists() and not config.overwrite):
        raise UserError(f"--output_file {output} already exists; choose another file or add --overwrite")
    from colossal_llama.tokenizer.loading import load_tokenizer
    from colossal_llama.tokenizer.mining import mine_pieces, read_texts, write_pieces

    tokenizer = load_tokenizer(config.tokenizer_dir, "--tokenizer_dir")
    if not tokenizer.is_fast:
        raise UserError(f"--tokenizer_dir {config.tokenizer_dir}: has no fast version; expected one")
    texts = read_texts(Path(name) for name in config.text_files)
    pieces = mine_pieces(texts, tokenizer, config.num_tokens, max_characters=config.max_characters)
    if not pieces:
        raise UserError(
            f"--text_files {' '.join(config.text_files)}: no piece that would save this tokenizer a token; "
            "give more text in the new language"
        )
    write_pieces(output, pieces)
    saved = sum(entry.saved for entry in pieces)
    print(f"{len(pieces)} pieces, saving {saved} tokens on this corpus; written to {output}")
