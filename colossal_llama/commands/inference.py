"""``inference_example.py``: an answer from a trained model, or the answers to a file of prompts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from colossal_llama.config.cli import parse_config
from colossal_llama.config.inference import InferenceConfig
from colossal_llama.errors import UserError, run_command

DESCRIPTION = "Generate text with a trained model, using nothing but transformers."

MEMORY_ADVICE = "lower --batch_size, --max_new_tokens or --num_beams, give --dtype bf16, or take --device cpu"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command; returns the exit code."""
    return run_command(lambda: infer(parse_config(InferenceConfig, argv, DESCRIPTION)), MEMORY_ADVICE)


def infer(config: InferenceConfig) -> None:
    """Answer one prompt on the terminal, or a file of them.

    Raises:
        UserError: the model, a prompt or the output file will not do.
    """
    if not Path(config.model_path).is_dir():
        raise UserError(f"--model_path {config.model_path}: no such folder")
    if config.input_file is not None:
        answer_file(config, Path(config.input_file))
        return
    from colossal_llama.generation import PromptEncoder, check_room, context_length, generate

    model, tokenizer = load(config)
    prompt = PromptEncoder(tokenizer, config.parse_special).prompt(config.input_txt, config.prompt_style)
    check_room(len(prompt), config.max_new_tokens, context_length(model), "--input_txt")
    answer = generate(model, tokenizer, prompt, sampling_settings(config), config.seed)
    print(f"[prompt]\n{config.input_txt}\n[answer]\n{answer}", flush=True)


def answer_file(config: InferenceConfig, path: Path) -> None:
    """Answer every prompt of a file, into ``--output_file`` or on the terminal.

    Raises:
        UserError: as :func:`infer`.
    """
    from colossal_llama.atomic import refuse_existing_file
    from colossal_llama.generation import PromptEncoder, context_length, generate_batches
    from colossal_llama.generation.prompt_file import encode_prompts, read_prompts, result_lines, write_lines

    output = None if config.output_file is None else Path(config.output_file)
    if output is not None:
        refuse_existing_file(output, "--output_file", config.overwrite)
    prompts = read_prompts(path)
    model, tokenizer = load(config)
    encoder = PromptEncoder(tokenizer, config.parse_special)
    encoded = encode_prompts(encoder, prompts, config.prompt_style, config.max_new_tokens, context_length(model))

    def report(done: int) -> None:
        print(f"{done:,} of {len(encoded):,} prompts answered", file=sys.stderr, flush=True)

    answers = generate_batches(
        model, tokenizer, encoded, sampling_settings(config), config.batch_size, config.seed, report
    )
    lines = result_lines(prompts, answers)
    if output is None:
        print("\n".join(lines), flush=True)
    else:
        write_lines(output, lines)
        print(f"{len(lines):,} answers written to {output}", flush=True)


def load(config: InferenceConfig) -> tuple[Any, Any]:
    """The model and its tokenizer, on the device that the flags mean; says so where that is not the named one."""
    from colossal_llama.generation import choose_device, load_for_generation

    device = choose_device(config.device)
    if device == "cpu" and config.device.startswith("cuda"):
        print(f"--device {config.device}: no such GPU here; running on the CPU", file=sys.stderr, flush=True)
    return load_for_generation(
        Path(config.model_path), device, precision=config.dtype, base_model_path=config.base_model_path
    )


def sampling_settings(config: InferenceConfig) -> Any:
    """The settings of the flags."""
    from colossal_llama.generation import SamplingSettings

    return SamplingSettings(
        config.max_new_tokens, config.do_sample, config.temperature, config.top_k, config.top_p, config.num_beams
    )
