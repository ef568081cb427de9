"""Configuration of ``scripts/evaluate.py`` and ``scripts/compare_models.py``."""

from dataclasses import dataclass

from colossal_llama.config.cli import flag
from colossal_llama.config.sampling import PARSE_SPECIAL_HELP
from colossal_llama.errors import UserError

BENCHMARK_NAMES = (
    "mmlu",
    "cmmlu",
    "ceval",
    "agieval",
    "gaokao",
    "gsm8k",
    "bbh",
    "boolq",
    "humaneval",
)
"""The benchmarks of ``--tasks``."""

RUNS_CODE = ("humaneval",)
"""Benchmarks that run what the model writes."""

PROMPT_FORMATS = ("auto", "text", "pretrained", "sft")

TEXT_HELP = (
    "texts to measure on: files, folders or globs as --data_input_dirs takes them, or .txt files whose lines are texts"
)
OUTPUT_HELP = "folder for results; what is finished there is not measured again"
WINDOW_HELP = "longer texts are cut into pieces of so many characters, which are scored on their own"
BATCH_TOKENS_HELP = "tokens (padding included) of one forward pass over texts"
RESAMPLES_HELP = "bootstrap samples of the texts behind each 95 % confidence interval"
DEVICE_HELP = "where to run; the CPU is used where there is no GPU"
FORMAT_HELP = "record format of all --held_out files; auto recognises it file by file"
FIELD_HELP = "field that holds the text of plain text records"


def _at_least(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise UserError(f"--{name} {value}: must be at least {least}")


@dataclass(kw_only=True)
class EvaluateConfig:
    """Flags of ``scripts/evaluate.py``."""

    model: str = flag(help="folder of the model (or of LoRA adapters) and its tokenizer", positional=True)
    tasks: list[str] = flag(
        [],
        help="benchmarks, of " + " ".join(BENCHMARK_NAMES) + "; NAME:SUBJECT takes one subject, as in ceval:law",
    )
    data_dir: str | None = flag(None, help="folder with the benchmarks' files, as docs/evaluation.md lays them out")
    held_out: list[str] = flag([], help=TEXT_HELP + "; gives bits per byte and perplexity by category")
    output_dir: str = flag("evaluation_output", help=OUTPUT_HELP)
    num_fewshot: int | None = flag(None, help="examples before each question; each benchmark has its own number")
    max_gen_toks: int | None = flag(None, help="longest generated answer in tokens; each benchmark has its own")
    limit: int | None = flag(None, help="questions of each subject at most, for trying things out")
    batch_size: int = flag(8, help="questions of one forward pass")
    batch_tokens: int = flag(4096, help=BATCH_TOKENS_HELP)
    window_characters: int = flag(1000, help=WINDOW_HELP)
    resamples: int = flag(1000, help=RESAMPLES_HELP)
    data_format: str = flag("auto", help=FORMAT_HELP)
    text_field: str | None = flag(None, help=FIELD_HELP)
    recursive: bool = flag(False, help="read the files in subfolders of directories too")
    allow_code_execution: bool = flag(
        False, help="run the programs that the model writes (humaneval), on this machine and with your rights"
    )
    parse_special: bool = flag(False, help=PARSE_SPECIAL_HELP)
    device: str = flag("cuda:0", help=DEVICE_HELP)
    seed: int = flag(42, help="seed of the bootstrap")

    def __post_init__(self) -> None:
        """Refuse what cannot be evaluated.

        Raises:
            UserError: names the flag and what was expected.
        """
        if not self.tasks and not self.held_out:
            raise UserError("nothing to evaluate; give --tasks with --data_dir, or --held_out")
        for task in self.tasks:
            name = task.split(":", 1)[0]
            if name not in BENCHMARK_NAMES:
                raise UserError(f"--tasks {task}: unknown; known: {', '.join(BENCHMARK_NAMES)}, or NAME:SUBJECT")
            if name in RUNS_CODE and not self.allow_code_execution:
                raise UserError(
                    f"--tasks {task}: runs programs that the model writes; add --allow_code_execution, best in a "
                    "container without network"
                )
        if self.tasks and self.data_dir is None:
            raise UserError("--tasks needs --data_dir, the folder with the benchmarks' files")
        _at_least("num_fewshot", self.num_fewshot, 0)
        _at_least("seed", self.seed, 0)
        for name in ("max_gen_toks", "limit", "batch_size", "batch_tokens", "window_characters", "resamples"):
            _at_least(name, getattr(self, name), 1)


@dataclass(kw_only=True)
class CompareConfig:
    """Flags of ``scripts/compare_models.py``."""

    models: list[str] = flag(
        help="models to compare, the first one with all others: folders, or NAME=FOLDER", positional=True
    )
    held_out: list[str] = flag([], help=TEXT_HELP)
    prompts: list[str] = flag([], help='prompts to go on from, or .txt (one a line) and .jsonl ({"prompt"}) files')
    prompt_format: str = flag(
        "auto",
        help="text: the prompt as it is; pretrained: with upstream's separator; sft: in the chat template; auto: sft "
        "where a model has a chat template, else text",
        choices=PROMPT_FORMATS,
    )
    results: list[str] = flag([], help="results.json files or output folders of evaluate.py, for the task scores")
    output_dir: str = flag("comparison_output", help=OUTPUT_HELP)
    max_new_tokens: int = flag(64, help="longest continuation of a prompt in tokens")
    measure_speed: bool = flag(True, help="measure tokens per second of forward passes and of generation")
    speed_tokens: int = flag(1024, help="tokens of one forward pass of the speed measurement")
    batch_tokens: int = flag(4096, help=BATCH_TOKENS_HELP)
    window_characters: int = flag(1000, help=WINDOW_HELP)
    resamples: int = flag(1000, help=RESAMPLES_HELP)
    data_format: str = flag("auto", help=FORMAT_HELP)
    text_field: str | None = flag(None, help=FIELD_HELP)
    parse_special: bool = flag(False, help=PARSE_SPECIAL_HELP)
    recursive: bool = flag(False, help="read the files in subfolders of directories too")
    device: str = flag("cuda:0", help=DEVICE_HELP)
    seed: int = flag(42, help="seed of the bootstrap")

    def __post_init__(self) -> None:
        """Refuse what cannot be compared.

        Raises:
            UserError: names the flag and what was expected.
        """
        if len(self.models) < 2:
            raise UserError("give at least two models: the base model, then the new ones")
        _at_least("seed", self.seed, 0)
        for name in ("max_new_tokens", "speed_tokens", "batch_tokens", "window_characters", "resamples"):
            _at_least(name, getattr(self, name), 1)
