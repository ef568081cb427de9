"""``scripts/compare_models.py``: models side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from colossal_llama.config.cli import parse_config
from colossal_llama.config.evaluate import CompareConfig
from colossal_llama.errors import run_command

if TYPE_CHECKING:
    from colossal_llama.comparison.figures import NamedModel, Plan
    from colossal_llama.comparison.report import Comparison

DESCRIPTION = (
    "Compare models with a base model: bits per byte and tokens per character of texts, benchmark scores, what they "
    "write, size and speed."
)

MEMORY_ADVICE = "lower --batch_tokens, --speed_tokens or --max_new_tokens, or take --device cpu; what is finished stays"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command; returns the exit code."""
    return run_command(lambda: compare_models(parse_config(CompareConfig, argv, DESCRIPTION)), MEMORY_ADVICE)


def compare_models(config: CompareConfig) -> None:
    """Measure every model, print the tables, write them as Markdown, HTML and JSON.

    Raises:
        UserError: an input is missing or wrong; before a model is loaded where that can be told.
    """
    from colossal_llama.atomic import refuse_unwritable
    from colossal_llama.comparison.figures import named_models
    from colossal_llama.comparison.inputs import read_results
    from colossal_llama.comparison.page import to_html
    from colossal_llama.comparison.report import to_markdown, to_terminal
    from colossal_llama.evaluation.store import write_json, write_text
    from colossal_llama.generation.loading import check_for_generation
    from colossal_llama.json_records import describe_not_finite

    models = named_models(config.models)
    results = read_results(config.results)
    refuse_unwritable(Path(config.output_dir), "--output_dir")
    for model in models:
        check_for_generation(model.folder, "models")
    comparison = _measure(config, models, _plan(config), results)
    folder = Path(config.output_dir)
    write_json(folder / "comparison.json", comparison.as_json())
    write_text(folder / "comparison.md", to_markdown(comparison))
    write_text(folder / "comparison.html", to_html(comparison))
    print(to_terminal(comparison))
    warning = describe_not_finite(comparison.as_json())
    if warning is not None:
        print(f"\nwarning: {warning}", flush=True)
    print(f"\nwritten to {folder / 'comparison.md'}, .html and .json", flush=True)


def _plan(config: CompareConfig) -> Plan:
    from colossal_llama.comparison.figures import Plan
    from colossal_llama.comparison.inputs import read_prompts
    from colossal_llama.evaluation.documents import Windows
    from colossal_llama.evaluation.measured_texts import read_held_out
    from colossal_llama.generation import choose_device

    texts = (
        read_held_out(config.held_out, config.data_format, config.text_field, config.recursive)
        if config.held_out
        else None
    )
    return Plan(
        device=choose_device(config.device),
        texts=texts,
        windows=Windows(config.window_characters, config.batch_tokens, config.parse_special),
        prompts=read_prompts(config.prompts),
        prompt_format=config.prompt_format,
        max_new_tokens=config.max_new_tokens,
        speed_tokens=config.speed_tokens if config.measure_speed else None,
    )


def _measure(config: CompareConfig, models: list[NamedModel], plan: Plan, results: list) -> Comparison:
    from colossal_llama.comparison.figures import measure_model
    from colossal_llama.comparison.inputs import tasks_by_model
    from colossal_llama.comparison.report import Comparison
    from colossal_llama.evaluation.store import ResultStore, model_fingerprint

    fingerprints = [model_fingerprint(model.folder) for model in models]
    tasks = tasks_by_model(results, fingerprints)
    store = ResultStore(Path(config.output_dir) / "parts")
    figures = []
    for number, (model, fingerprint) in enumerate(zip(models, fingerprints, strict=True), start=1):
        print(f"[{number}/{len(models)}] {model.name}: {model.folder}", flush=True)
        figures.append(measure_model(model, fingerprint, plan, store))
        figures[-1].tasks = tasks[fingerprint]
    return Comparison(figures, plan, config.resamples, config.seed)
