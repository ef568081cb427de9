"""``scripts/evaluate.py``: benchmarks and held-out texts for one model."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colossal_llama.config.cli import parse_config
from colossal_llama.config.evaluate import EvaluateConfig
from colossal_llama.errors import UserError, run_command

if TYPE_CHECKING:
    from colossal_llama.evaluation.measured_texts import HeldOutTexts
    from colossal_llama.evaluation.selection import SelectedSubject
    from colossal_llama.evaluation.store import ResultStore
    from colossal_llama.tables import Table

DESCRIPTION = (
    "Evaluate a model: benchmarks from local files in the field's harness, and bits per byte of held-out texts. "
    "A killed run goes on where it was."
)

MEMORY_ADVICE = "lower --batch_size, --batch_tokens or --max_gen_toks, or take --device cpu; what is finished stays"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command; returns the exit code."""
    return run_command(lambda: evaluate(parse_config(EvaluateConfig, argv, DESCRIPTION)), MEMORY_ADVICE)


def evaluate(config: EvaluateConfig) -> None:
    """Check all inputs, load the model, measure what is not on disk, write ``results.json`` and ``results.md``.

    Raises:
        UserError: an input is missing or wrong; before the model is loaded where that can be told.
    """
    from colossal_llama.atomic import refuse_unwritable
    from colossal_llama.evaluation.harness import stay_offline

    stay_offline()
    if not Path(config.model).is_dir():
        raise UserError(f"model {config.model}: no such folder")
    refuse_unwritable(Path(config.output_dir), "--output_dir")
    selected = _selected(config)
    texts = _texts(config)

    from colossal_llama.evaluation.measured_texts import model_identity
    from colossal_llama.evaluation.store import ResultStore, model_fingerprint
    from colossal_llama.generation import choose_device, load_for_generation

    fingerprint = model_fingerprint(Path(config.model))
    loaded = load_for_generation(Path(config.model), choose_device(config.device), "model")
    store = ResultStore(Path(config.output_dir) / "parts")
    identity = model_identity(fingerprint, loaded[0], config.parse_special)
    results: dict[str, Any] = {"model": config.model, "identity": identity, "limit": config.limit}
    tables: list[Table] = []
    if texts is not None:
        results["held_out"], table = _measure_texts(config, loaded, identity, texts, store)
        tables.append(table)
    if selected:
        results["tasks"], table = _run_benchmarks(config, loaded, identity, selected, store)
        tables.append(table)
    _write(config, results, tables)


def _selected(config: EvaluateConfig) -> list[SelectedSubject]:
    if not config.tasks:
        return []
    from colossal_llama.evaluation.selection import RunSettings, select_subjects

    settings = RunSettings(config.num_fewshot, config.max_gen_toks, config.limit)
    return select_subjects(config.tasks, Path(str(config.data_dir)), settings)


def _texts(config: EvaluateConfig) -> HeldOutTexts | None:
    if not config.held_out:
        return None
    from colossal_llama.evaluation.measured_texts import read_held_out

    return read_held_out(config.held_out, config.data_format, config.text_field, config.recursive)


def _measure_texts(
    config: EvaluateConfig,
    loaded: tuple[Any, Any],
    identity: dict[str, str],
    texts: HeldOutTexts,
    store: ResultStore,
) -> tuple[dict[str, Any], Table]:
    from colossal_llama.evaluation.documents import Windows, figures_by_category
    from colossal_llama.evaluation.measured_texts import measure_texts
    from colossal_llama.evaluation.results import text_table

    windows = Windows(config.window_characters, config.batch_tokens, config.parse_special)
    scores = measure_texts(loaded, identity, texts, windows, store)
    figures = figures_by_category(scores, config.resamples, config.seed)
    content = {
        "label": texts.label,
        "files": config.held_out,
        "window_characters": config.window_characters,
        "categories": {name: one.as_json() for name, one in figures.items()},
    }
    return content, text_table(texts.label, figures)


def _run_benchmarks(
    config: EvaluateConfig,
    loaded: tuple[Any, Any],
    identity: dict[str, str],
    selected: list[SelectedSubject],
    store: ResultStore,
) -> tuple[dict[str, Any], Table]:
    from colossal_llama.evaluation.benchmarks import BENCHMARKS
    from colossal_llama.evaluation.harness import HarnessRunner
    from colossal_llama.evaluation.results import benchmark_results, show_score, task_table
    from colossal_llama.tokenizer.plain_text import plain_tokenizer

    if not config.parse_special:
        loaded = loaded[0], plain_tokenizer(loaded[1])
    runner = HarnessRunner(loaded, identity, config.batch_size, config.limit, store, config.allow_code_execution)
    subjects = {}
    for number, one in enumerate(selected, start=1):
        result, known = runner.run(one)
        subjects[one.name] = result
        metric, figures = next(iter(result["metrics"].items()))
        when = "done before" if known else f"{result['seconds']} s"
        print(f"[{number}/{len(selected)}] {one.name}: {metric} {show_score(figures)} ({when})", flush=True)
    counts = Counter(one.benchmark for one in selected)
    tasks = benchmark_results(subjects)
    return tasks, task_table(tasks, {name: len(BENCHMARKS.get(name).subjects()) for name in counts})


def _write(config: EvaluateConfig, results: dict[str, Any], tables: list[Table]) -> None:
    from colossal_llama.evaluation.store import write_json, write_text
    from colossal_llama.json_records import describe_not_finite
    from colossal_llama.tables import markdown_text, terminal_text

    folder = Path(config.output_dir)
    results["settings"] = dataclasses.asdict(config)
    warning = describe_not_finite(results)
    write_json(folder / "results.json", results)
    parts = [f"# {config.model}", *filter(None, [warning]), *map(markdown_text, tables)]
    write_text(folder / "results.md", "\n\n".join(parts) + "\n")
    print("\n\n".join(map(terminal_text, tables)))
    if warning is not None:
        print(f"\nwarning: {warning}", flush=True)
    print(f"\nwritten to {folder / 'results.json'} and {folder / 'results.md'}", flush=True)
