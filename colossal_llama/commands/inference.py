"""``inference_example.py``: one answer from an exported model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from colossal_llama.config.cli import parse_config
from colossal_llama.config.inference import InferenceConfig
from colossal_llama.errors import UserError, run_command

DESCRIPTION = "Generate text with a trained model, using nothing but transformers."


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command; returns the exit code."""
    return run_command(lambda: infer(parse_config(InferenceConfig, argv, DESCRIPTION)))


def infer(config: InferenceConfig) -> None:
    """Print the prompt and the model's answer."""
    if not Path(config.model_path).is_dir():
        raise UserError(f"--model_path {config.model_path}: no such folder")
    from colossal_llama.generation import (
        SamplingSettings,
        build_prompt,
        choose_device,
        generate,
        load_for_generation,
    )

    device = choose_device(config.device)
    if device != config.device:
        print(f"--device {config.device}: no such GPU here; running on the CPU", flush=True)
    model, tokenizer = load_for_generation(Path(config.model_path), device)
    settings = SamplingSettings(config.max_new_tokens, config.do_sample, config.temperature, config.top_k, config.top_p)
    prompt = build_prompt(tokenizer, config.input_txt, config.prompt_style)
    answer = generate(model, tokenizer, prompt, settings, config.seed)
    print(f"[prompt]\n{config.input_txt}\n[answer]\n{answer}", flush=True)
