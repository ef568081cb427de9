"""What the flags of sampling may say, for every command that generates text."""

from typing import Protocol

from colossal_llama.errors import UserError

DTYPE_NAMES = ("auto", "fp32", "bf16", "fp16")
DTYPE_HELP = "dtype of the weights; auto: fp32 on a CPU, bf16 on a GPU (fp16 where it has no bf16)"
BASE_HELP = "base model of LoRA adapters; unset: the folder that they name"
PARSE_SPECIAL_HELP = (
    "control tokens that a text spells out (<|im_end|>, </s>) become tokens; by default they stay letters, as in the "
    "preparation of data"
)


class SamplingFlags(Protocol):
    """The flags that :func:`check_sampling` looks at."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int


def check_text(flag: str, text: str) -> None:
    """Refuse text that no tokenizer takes.

    Raises:
        UserError: bytes of the command line were not UTF-8; names the flag.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{flag}: not UTF-8; give the text in UTF-8") from error


def check_sampling(flags: SamplingFlags) -> None:
    """Refuse values that generation cannot use.

    Raises:
        UserError: names the flag and what was expected.
    """
    if flags.max_new_tokens < 1:
        raise UserError(f"--max_new_tokens must be at least 1, not {flags.max_new_tokens}")
    if not flags.temperature > 0:  # NaN is neither
        raise UserError(f"--temperature must be positive, not {flags.temperature}; use --do_sample false for greedy")
    if not 0 < flags.top_p <= 1:
        raise UserError(f"--top_p must lie above 0 and up to 1, not {flags.top_p}")
    if flags.top_k < 0:
        raise UserError(f"--top_k must be at least 0 (0: no limit), not {flags.top_k}")
    if not -(1 << 63) <= flags.seed < 1 << 64:  # what torch takes
        raise UserError(f"--seed must be an integer of 64 bits, not {flags.seed}")
