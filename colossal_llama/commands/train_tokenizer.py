"""Find the tokens that a tokenizer lacks for a corpus."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from colossal_llama.atomic import refuse_existing_file
from colossal_llama.config.cli import parse_config
from colossal_llama.config.mining import TrainTokenizerConfig
from colossal_llama.errors import UserError, run_command

if TYPE_CHECKING:
    from colossal_llama.tokenizer.compression import CompressionCurve
    from colossal_llama.tokenizer.mining import MinedPiece
    from colossal_llama.tokenizer.sampling import MiningCorpus

DESCRIPTION = "Find the tokens that would shorten a corpus most, and measure by how much they do."


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``train_tokenizer.py``; returns the process's exit code."""
    return run_command(lambda: train_tokenizer(parse_config(TrainTokenizerConfig, argv, DESCRIPTION)))


def train_tokenizer(config: TrainTokenizerConfig) -> None:
    """Find candidates, rank them, measure what they save, and write the best.

    Raises:
        UserError: an output exists, an input is missing or broken, nothing would save a token, or the target
            compression is out of reach.
    """
    _check_before_work(config)
    corpus = _read_corpus(config)
    found = _mine(config, corpus)
    pieces = [mined.piece for mined in found]
    from colossal_llama.tokenizer.compression import CompressionCurve
    from colossal_llama.tokenizer.mining import write_pieces

    curve = CompressionCurve(Path(config.source_tokenizer_dir), pieces, corpus.measuring)
    count = min(config.target_size, len(pieces))
    if config.target_compression is not None:
        count = curve.smallest(config.target_compression, count).pieces
    _measure(config, curve, count)
    write_pieces(Path(config.output_file), found[:count])
    print(f"{count:,} pieces written to {config.output_file}")


def _check_before_work(config: TrainTokenizerConfig) -> None:
    for name in ("output_file", "plot"):
        value = getattr(config, name)
        if value is not None:
            refuse_existing_file(Path(value), f"--{name}", config.overwrite)
    from colossal_llama.tokenizer.loading import check_tokenizer_folder

    check_tokenizer_folder(Path(config.source_tokenizer_dir), "--source_tokenizer_dir")
    if config.plot is not None:
        from colossal_llama.tokenizer.curve_plot import require_matplotlib

        require_matplotlib("--plot")


def _read_corpus(config: TrainTokenizerConfig) -> "MiningCorpus":
    from colossal_llama.data.texts import TextReader
    from colossal_llama.tokenizer.pieces import describe_skipped
    from colossal_llama.tokenizer.sampling import sample_corpus

    reader = TextReader(config.text_files, "--text_files", config.data_format, config.text_field, config.recursive)
    corpus = sample_corpus(
        (text.text for text in reader), config.held_out_fraction, config.sample_characters, config.seed
    )
    given = " ".join(config.text_files)
    if not corpus.passages_read:
        raise UserError(f"--text_files {given}: no text (records without any: {describe_skipped(reader.dropped)})")
    if not (corpus.finding and corpus.ranking and corpus.measuring):
        raise UserError(
            f"--text_files {given}: {corpus.passages_kept} passages are too few to hold some out; give more text, "
            "or --held_out_fraction 0 to rank and measure on the same text"
        )
    print(corpus.describe(), flush=True)
    for line in reader.notes():
        print(line, flush=True)
    return corpus


def _mine(config: TrainTokenizerConfig, corpus: "MiningCorpus") -> "list[MinedPiece]":
    from colossal_llama.tokenizer.candidates import CandidateSettings
    from colossal_llama.tokenizer.foreign_vocabulary import read_vocabulary
    from colossal_llama.tokenizer.loading import load_tokenizer
    from colossal_llama.tokenizer.mining import SURPLUS, mine_pieces
    from colossal_llama.tokenizer.pieces import describe_skipped
    from colossal_llama.tokenizer.plain_text import plain_encoder

    tokenizer = load_tokenizer(config.source_tokenizer_dir, "--source_tokenizer_dir")
    plain_encoder(tokenizer, "--source_tokenizer_dir")  # refuses one without a fast version
    dropped: Counter[str] = Counter()
    others = [piece for path in config.merge for piece in read_vocabulary(Path(path), "--merge", dropped)]
    method = config.method or (None if config.merge else "bpe")
    settings = CandidateSettings(SURPLUS * config.target_size, config.max_characters, config.ascii_pieces)
    found = mine_pieces(
        Path(config.source_tokenizer_dir), tokenizer, corpus, settings, dropped, method=method, others=others
    )
    print(f"candidates that save tokens: {len(found):,}; left out: {describe_skipped(+dropped)}", flush=True)
    if not found:
        raise UserError(
            f"--text_files {' '.join(config.text_files)}: no piece that would save this tokenizer a token; "
            "give more text in the new language"
        )
    return found


def _measure(config: TrainTokenizerConfig, curve: "CompressionCurve", count: int) -> None:
    """Print the curve up to ``count`` pieces and draw it."""
    from colossal_llama.tokenizer.compression import find_knee
    from colossal_llama.tokenizer.curve_plot import curve_table, draw_curve

    marked = find_knee(curve, count, config.curve_points) if config.curve_points else None
    curve.at(0), curve.at(count)
    points = [point for point in curve.points() if point.pieces <= count]
    print(curve_table(points, marked), flush=True)
    if config.plot is not None:
        title = f"{Path(config.source_tokenizer_dir).resolve().name} and up to {count:,} pieces"
        draw_curve(Path(config.plot), points, marked, title)
        print(f"curve drawn in {config.plot}")
