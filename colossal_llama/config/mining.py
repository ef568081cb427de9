"""Configurations of the commands that find new tokens and compare tokenizers."""

from dataclasses import dataclass

from colossal_llama.config.cli import flag
from colossal_llama.errors import UserError

METHOD_NAMES = ("bpe", "unigram", "ngrams")
"""The entries of ``colossal_llama.tokenizer.candidates.METHODS``, which ``--help`` must not import."""

TEXT_HELP = (
    "text: files, directories or globs; records as the prepare commands take them (.jsonl, .jsonl.gz, .jsonl.zst, "
    ".json, .parquet, a save_to_disk folder), any other file is plain UTF-8 text"
)
FORMAT_HELP = "record format of all files; auto recognises it file by file"
FIELD_HELP = "field that holds the text of plain text records"
OVERWRITE_HELP = "replace outputs that exist already"


def _at_least(name: str, value: float, least: float) -> None:
    if value < least:
        raise UserError(f"--{name} {value}: must be at least {least}")


@dataclass(kw_only=True)
class TrainTokenizerConfig:
    """Flags of ``scripts/train_tokenizer.py``."""

    text_files: list[str] = flag(help=TEXT_HELP, aliases=("--text",))
    source_tokenizer_dir: str = flag(
        help="tokenizer that lacks the pieces: a Hugging Face folder", aliases=("--tokenizer_dir",)
    )
    output_file: str = flag(help='where to write the pieces, one {"piece": "..."} a line, best first')
    method: str | None = flag(
        None,
        help="how candidates are found: BPE of the tokenizer's own family, SentencePiece's unigram model, or runs of "
        "letters outside ASCII; bpe if neither this nor --merge is given",
        choices=METHOD_NAMES,
    )
    merge: list[str] = flag(
        [], help="other vocabularies whose pieces are candidates: SentencePiece .model or tokenizer.json files"
    )
    target_size: int = flag(4000, help="how many pieces to write at most")
    target_compression: float | None = flag(
        None, help="write no more pieces than bring held-out text down to this many tokens per character"
    )
    max_characters: int = flag(8, help="longest piece, in characters")
    ascii_pieces: bool = flag(
        False, help="take pieces that hold ASCII letters, digits or punctuation, too; they change how old text is cut"
    )
    held_out_fraction: float = flag(
        0.4,
        help="share of the text in which no candidate is found: three quarters of it rank, one quarter measures; "
        "0 uses all text for everything",
    )
    sample_characters: int = flag(
        20_000_000, help="size of the random sample that is taken of a larger corpus, in characters"
    )
    seed: int = flag(42, help="seed of the sample and its split")
    curve_points: int = flag(6, help="sizes between 0 and all pieces at which compression is measured; 0: no curve")
    plot: str | None = flag(None, help="PNG file for the curve, with its knee; needs matplotlib")
    data_format: str = flag("auto", help=FORMAT_HELP)
    text_field: str | None = flag(None, help=FIELD_HELP)
    recursive: bool = flag(False, help="read the files in subfolders of directories too")
    overwrite: bool = flag(False, help=OVERWRITE_HELP)

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            UserError: names the flag.
        """
        _at_least("target_size", self.target_size, 1)
        _at_least("sample_characters", self.sample_characters, 1000)
        _at_least("curve_points", self.curve_points, 0)
        if not 1 <= self.max_characters <= 16:
            raise UserError(f"--max_characters {self.max_characters}: must be between 1 and 16")
        if not 0 <= self.held_out_fraction < 1:
            raise UserError(f"--held_out_fraction {self.held_out_fraction}: must be at least 0 and below 1")
        if self.target_compression is not None and not 0 < self.target_compression < 100:
            raise UserError(f"--target_compression {self.target_compression}: must be above 0 (tokens per character)")
        if self.method == "ngrams" and self.ascii_pieces:
            raise UserError("--ascii_pieces: ngrams finds none; choose --method bpe or unigram")
        if self.plot and not self.curve_points:
            raise UserError("--plot: there is no curve with --curve_points 0; give at least 1")


@dataclass(kw_only=True)
class TokenizerReportConfig:
    """Flags of ``scripts/tokenizer_report.py``."""

    tokenizers: list[str] = flag(
        help="tokenizers to compare, the first one with all others: Hugging Face folders, or NAME=FOLDER; "
        "they may also stand before all flags"
    )
    text_files: list[str] = flag(help=TEXT_HELP, aliases=("--text",))
    model: str | None = flag(
        None, help="folder with the config.json that says hidden size and whether the embeddings are tied"
    )
    hidden_size: int | None = flag(None, help="hidden size of the model, instead of --model")
    tied: bool = flag(False, help="with --hidden_size: input and output embeddings are one")
    tokens_per_parameter: float = flag(
        20.0, help="training tokens for each added parameter (rule of thumb: Chinchilla's ratio)"
    )
    markdown: str | None = flag(None, help="Markdown file to write")
    html: str | None = flag(None, help="HTML file to write; it opens offline")
    data_format: str = flag("auto", help=FORMAT_HELP)
    text_field: str | None = flag(None, help=FIELD_HELP)
    recursive: bool = flag(False, help="read the files in subfolders of directories too")
    overwrite: bool = flag(False, help=OVERWRITE_HELP)

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            UserError: names the flag.
        """
        if self.hidden_size is not None:
            _at_least("hidden_size", self.hidden_size, 1)
        _at_least("tokens_per_parameter", self.tokens_per_parameter, 0)
        if self.model and (self.hidden_size is not None or self.tied):
            raise UserError("--model: says hidden size and tying; give it or --hidden_size and --tied, not both")
        if self.tied and self.hidden_size is None:
            raise UserError("--tied: needs --hidden_size")
