"""Configuration of ``inference_example.py``."""

from dataclasses import dataclass

from colossal_llama.config.cli import flag
from colossal_llama.config.sampling import (
    BASE_HELP,
    DTYPE_HELP,
    DTYPE_NAMES,
    PARSE_SPECIAL_HELP,
    check_sampling,
    check_text,
)
from colossal_llama.errors import UserError


@dataclass
class InferenceConfig:
    """One prompt, or a file of them, for one model."""

    model_path: str = flag(
        help="folder of the model and its tokenizer (a modeling folder, for example), or of LoRA adapters"
    )
    input_txt: str = flag("明月松间照，", help="the prompt")
    input_file: str | None = flag(
        None,
        help="file of prompts instead: .txt with one a line, or jsonl with the field prompt, input_txt or messages",
    )
    output_file: str | None = flag(
        None, help="jsonl file for the answers to input_file, in its order; unset: they are printed as jsonl"
    )
    batch_size: int = flag(8, help="prompts of input_file that are answered together")
    prompt_style: str = flag(
        "sft",
        help="sft: the prompt is a question put into the model's chat template; pretrained: a text to go on from",
        choices=("sft", "pretrained"),
    )
    parse_special: bool = flag(False, help=PARSE_SPECIAL_HELP)
    device: str = flag(
        "cuda:0", help="where to run: cpu, cuda:N, or auto; auto and cuda:0 mean the CPU where there is no GPU"
    )
    dtype: str = flag("auto", help=DTYPE_HELP, choices=DTYPE_NAMES)
    base_model_path: str | None = flag(None, help=BASE_HELP)
    max_new_tokens: int = flag(512, help="longest answer in tokens")
    do_sample: bool = flag(True, help="sample instead of taking the likeliest token")
    temperature: float = flag(0.3, help="sampling temperature")
    top_k: int = flag(50, help="sample among the k likeliest tokens")
    top_p: float = flag(0.95, help="sample among the likeliest tokens that hold this probability")
    num_beams: int = flag(1, help="sequences that a beam search keeps (give --do_sample false too); 1: no beam search")
    seed: int = flag(42, help="seed of the sampling")
    overwrite: bool = flag(False, help="replace an existing output_file")

    def __post_init__(self) -> None:
        """Refuse values that generation cannot use.

        Raises:
            UserError: names the flag and what was expected.
        """
        check_sampling(self)
        check_text("--input_txt", self.input_txt)
        if self.num_beams < 1:
            raise UserError(f"--num_beams must be at least 1, not {self.num_beams}")
        if self.batch_size < 1:
            raise UserError(f"--batch_size must be at least 1, not {self.batch_size}")
        if self.output_file is not None and self.input_file is None:
            raise UserError("--output_file takes the answers to --input_file; give that too")
