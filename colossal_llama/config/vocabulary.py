"""Configurations of the commands that widen a vocabulary."""

import dataclasses

from colossal_llama.config.cli import flag
from colossal_llama.errors import UserError

UNREACHABLE_MODES = ("repair", "drop", "keep", "error")
"""Those of ``tokenizer.reachability``; a test compares the two."""

OVERWRITE_HELP = "replace the output when it exists already"
INIT_METHOD_NAMES = ("mean", "weighted_mean", "global_mean", "gaussian", "random", "focus")
"""The methods that ``colossal_llama.model.new_rows`` registers; a test holds them together."""


@dataclasses.dataclass
class ControlTokenFlags:
    """Flags of both commands: control tokens and a chat template for a base model."""

    special_tokens: list[str] = flag([], help="control tokens to add behind the last id, such as '<|im_start|>'")
    special_tokens_file: str | None = flag(None, help="control tokens to add, one a line of a UTF-8 file")
    chat_template: str | None = flag(
        None,
        help="chat template to set (chatml, llama3, ...), with the control tokens that it needs; its end token becomes "
        "the end-of-sequence token",
    )

    @property
    def adds_control_tokens(self) -> bool:
        """Whether any of them is given."""
        return bool(self.special_tokens or self.special_tokens_file or self.chat_template)


@dataclasses.dataclass(kw_only=True)
class InitTokenizerConfig(ControlTokenFlags):
    """Flags of ``scripts/init_tokenizer.py``."""

    source_tokenizer_dir: str = flag(
        help="tokenizer to widen: a folder with a SentencePiece tokenizer.model (Llama 1/2, Mistral) "
        "or a byte-level tokenizer.json (Llama 3, Qwen, SmolLM2)"
    )
    target_tokenizer_dir: str = flag(help="where the wider tokenizer goes; must not exist")
    expand_tokens_file: str | None = flag(None, help='pieces to add: jsonl, one {"piece": "..."} a line')
    unreachable: str = flag(
        "repair",
        choices=UNREACHABLE_MODES,
        help="pieces that no text would give: add the tokens they lack (repair), leave them out (drop), "
        "add them all the same (keep), or stop (error)",
    )
    check_text: list[str] = flag(
        [],
        help="texts to encode before and after, .jsonl (fields target or text) or plain UTF-8 text: reports what "
        "changed, and stops where the slow and the fast tokenizer would differ",
    )
    overwrite: bool = flag(False, help=OVERWRITE_HELP)

    def __post_init__(self) -> None:
        """Refuse to add nothing, and checks that belong to pieces without any."""
        if self.expand_tokens_file is None and not self.adds_control_tokens:
            raise UserError("nothing to add: give --expand_tokens_file, --special_tokens or --chat_template")
        if self.expand_tokens_file is None and self.check_text:
            raise UserError("--check_text: shows what new pieces change; give --expand_tokens_file too")


@dataclasses.dataclass(kw_only=True)
class InitModelConfig(ControlTokenFlags):
    """Flags of ``scripts/init_model.py``."""

    source_model_and_tokenizer_path: str = flag(help="model and its own tokenizer: a Hugging Face folder")
    target_tokenizer_path: str | None = flag(
        None, help="the wider tokenizer that init_tokenizer.py wrote; left out with --special_tokens or --chat_template"
    )
    target_model_path: str = flag(help="where the wider model goes; may be the same folder as --target_tokenizer_path")
    pad_to_multiple_of: int = flag(
        1, help="round the number of embedding rows up to a multiple of this (tensor parallelism, kernels)"
    )
    init_method: str = flag(
        "weighted_mean",
        help="what a new row starts from: weighted_mean (by length and position) or mean of its old sub-tokens, "
        "global_mean or gaussian of all old rows, random, or similar tokens (focus)",
        choices=INIT_METHOD_NAMES,
    )
    auxiliary_embeddings: str | None = flag(
        None, help="token vectors for --init_method focus: .npz, or .vec as fastText writes it"
    )
    seed: int = flag(42, help="of --init_method gaussian and random")
    overwrite: bool = flag(False, help=OVERWRITE_HELP)

    def __post_init__(self) -> None:
        """Refuse a multiple that is none, and auxiliary embeddings without a use or a use without them."""
        if (self.target_tokenizer_path is None) != self.adds_control_tokens:
            raise UserError(
                "give either --target_tokenizer_path, or --special_tokens or --chat_template to have the tokenizer made"
            )
        if self.pad_to_multiple_of < 1:
            raise UserError(f"--pad_to_multiple_of {self.pad_to_multiple_of}: must be at least 1")
        if self.init_method == "focus" and self.auxiliary_embeddings is None:
            raise UserError("--init_method focus: needs token vectors; give --auxiliary_embeddings FILE.vec")
        if self.init_method != "focus" and self.auxiliary_embeddings is not None:
            raise UserError(f"--auxiliary_embeddings: --init_method {self.init_method} does not use it; give focus")
