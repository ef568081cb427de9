"""Configuration of ``scripts/chat.py``."""

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
class ChatConfig:
    """A chat with one model, on the terminal or in a browser."""

    model_path: str = flag(
        positional=True, help="folder of a model with a chat template and its tokenizer, or of LoRA adapters"
    )
    web: bool = flag(False, help="serve a web page instead of chatting on the terminal")
    host: str = flag("127.0.0.1", help="address that the web page is served on; 0.0.0.0 lets other machines in")
    port: int | None = flag(None, help="port of the web page, 0 for any; unset: the first free one from 7860")
    system: str = flag("", help="system message; empty: none, or the one that the chat template has of its own")
    parse_special: bool = flag(False, help=PARSE_SPECIAL_HELP)
    device: str = flag("auto", help="where to run: cpu, cuda:N, or auto for the first GPU, else the CPU")
    dtype: str = flag("auto", help=DTYPE_HELP, choices=DTYPE_NAMES)
    base_model_path: str | None = flag(None, help=BASE_HELP)
    max_new_tokens: int = flag(512, help="longest answer in tokens")
    do_sample: bool = flag(True, help="sample instead of taking the likeliest token")
    temperature: float = flag(0.3, help="sampling temperature")
    top_k: int = flag(50, help="sample among the k likeliest tokens")
    top_p: float = flag(0.95, help="sample among the likeliest tokens that hold this probability")
    seed: int = flag(42, help="seed of the sampling, set once at the start")

    def __post_init__(self) -> None:
        """Refuse values that chatting cannot use.

        Raises:
            UserError: names the flag and what was expected.
        """
        check_sampling(self)
        check_text("--system", self.system)
        if self.port is not None and not self.web:
            raise UserError("--port is for the web page; add --web")
        if self.port is not None and not 0 <= self.port <= 65535:
            raise UserError(f"--port must lie between 0 and 65535, not {self.port}")
