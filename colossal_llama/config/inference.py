"""Configuration of ``inference_example.py``."""

from dataclasses import dataclass

from colossal_llama.config.cli import flag
from colossal_llama.errors import UserError


@dataclass
class InferenceConfig:
    """One prompt for one model."""

    model_path: str = flag(help="folder of the model and its tokenizer (a modeling folder, for example)")
    input_txt: str = flag("明月松间照，", help="the prompt")
    prompt_style: str = flag(
        "sft",
        help="sft: the prompt is a question put into the model's chat template; pretrained: a text to go on from",
        choices=("sft", "pretrained"),
    )
    device: str = flag("cuda:0", help="where to run; the CPU is used where there is no GPU")
    max_new_tokens: int = flag(512, help="longest answer in tokens")
    do_sample: bool = flag(True, help="sample instead of taking the likeliest token")
    temperature: float = flag(0.3, help="sampling temperature")
    top_k: int = flag(50, help="sample among the k likeliest tokens")
    top_p: float = flag(0.95, help="sample among the likeliest tokens that hold this probability")
    seed: int = flag(42, help="seed of the sampling")

    def __post_init__(self) -> None:
        """Refuse values that generation cannot use.

        Raises:
            UserError: names the flag and what was expected.
        """
        if self.max_new_tokens < 1:
            raise UserError(f"--max_new_tokens must be at least 1, not {self.max_new_tokens}")
        if self.temperature <= 0:
            raise UserError(f"--temperature must be positive, not {self.temperature}; use --do_sample false for greedy")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top_p must lie above 0 and up to 1, not {self.top_p}")
        if self.top_k < 0:
            raise UserError(f"--top_k must be at least 0 (0: no limit), not {self.top_k}")
