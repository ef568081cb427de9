"""Running benchmarks in the field's harness (lm-evaluation-harness) on local files, one subject at a time."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from colossal_llama.errors import UserError
from colossal_llama.evaluation.benchmarks import BENCHMARKS, Splits, harness_tasks_folder
from colossal_llama.evaluation.selection import SelectedSubject
from colossal_llama.evaluation.store import ResultStore

FEWSHOT_SEED = 1234
"""Of the harness, for examples that are drawn at random (gsm8k)."""

Result = dict[str, Any]


def stay_offline() -> None:
    """Keep the libraries from the hub; call it before they are imported."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_EVALUATE_OFFLINE"):
        os.environ[name] = "1"


def _bars_on_terminals_only() -> contextlib.AbstractContextManager[Any]:
    """Keeps the harness's progress bars, which know no switch, out of log files."""
    if sys.stderr.isatty():
        return contextlib.nullcontext()
    return contextlib.redirect_stderr(io.StringIO())


class HarnessRunner:
    """Evaluates subjects; what is finished is on disk and is not evaluated again.

    Args:
        loaded: model and tokenizer.
        identity: what tells this model from others.
        batch_size: questions of one forward pass.
        limit: questions of each subject at most; None for all.
        store: of finished subjects.
        allow_code_execution: run programs that the model writes.
    """

    def __init__(
        self,
        loaded: tuple[Any, Any],
        identity: Mapping[str, str],
        batch_size: int,
        limit: int | None,
        store: ResultStore,
        allow_code_execution: bool,
    ) -> None:
        from lm_eval.models.huggingface import HFLM

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        model, tokenizer = loaded
        # Likelihoods of bf16 logits in bf16 would often be equal for two letters.
        self._lm = HFLM(
            pretrained=model, backend="causal", tokenizer=tokenizer, batch_size=batch_size, softmax_dtype="float32"
        )
        self._identity = dict(identity)
        self._limit = limit
        self._store = store
        self._allow_code_execution = allow_code_execution

    def run(self, selected: SelectedSubject) -> tuple[Result, bool]:
        """The result of a subject, and whether it was on disk already.

        Raises:
            UserError: a file is not as the benchmark has it, or an answer would not fit into the model.
        """
        settings = {**self._identity, **_versions(), **selected.settings(self._limit)}
        known = self._store.load(selected.name, settings)
        if known is not None:
            return known, True
        self._check_room(selected)
        started = time.perf_counter()
        task = build_task(selected)
        answers = self._store.path(selected.name, settings, ".answers")
        scores = self._evaluate(task, answers)
        result = {
            "shots": task.config.num_fewshot,
            "questions": scores["sample_len"],
            "cut_prompts": self._cut_prompts(task),
            "seconds": round(time.perf_counter() - started, 1),
            "metrics": _metrics(selected.benchmark, scores),
        }
        self._store.save(selected.name, settings, result)
        for file in answers.parent.glob(f"{answers.name}*"):
            file.unlink()
        return result, False

    def _check_room(self, selected: SelectedSubject) -> None:
        if selected.answer_tokens is not None and selected.answer_tokens >= self._lm.max_length:
            raise UserError(
                f"--tasks {selected.benchmark}: answers of {selected.answer_tokens} tokens do not fit into the model's "
                f"{self._lm.max_length} positions; give a smaller --max_gen_toks"
            )

    def _evaluate(self, task: Any, answers: Path) -> Mapping[str, Any]:
        """The harness's scores; each answer goes to the disk at once, so that a killed run does not lose them."""
        from lm_eval.api.model import CachingLM
        from lm_eval.evaluator import evaluate

        answers.parent.mkdir(parents=True, exist_ok=True)
        cached = CachingLM(self._lm, str(answers))
        name = task.config.task
        try:
            with _bars_on_terminals_only():
                results = evaluate(
                    cached,
                    {"tasks": {name: task}},
                    limit=self._limit,
                    bootstrap_iters=1,  # 0 would leave out the standard error of a mean, which needs no bootstrap
                    log_samples=False,
                    confirm_run_unsafe_code=self._allow_code_execution,
                )
        finally:
            cached.dbdict.close()
        assert results is not None  # there is one process
        return results["results"][name]

    def _cut_prompts(self, task: Any) -> int:
        """How many questions were too long for the model and lost their beginning."""
        room = self._lm.max_length
        if task.OUTPUT_TYPE == "generate_until":
            room -= task.config.generation_kwargs["max_gen_toks"]
        prompts = {instance.doc_id: instance.args[0] for instance in task.instances}
        return sum(len(self._lm.tok_encode(prompt)) > room for prompt in prompts.values())


def _versions() -> dict[str, str]:
    """Of the programs that pose and score the questions."""
    import lm_eval

    import colossal_llama

    return {"harness": str(lm_eval.__version__), "project": colossal_llama.__version__}


def _metrics(benchmark: str, scores: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Score and standard error of each metric that the benchmark's tables have."""
    metrics: dict[str, dict[str, float | None]] = {}
    for label, name in BENCHMARKS.get(benchmark).metrics.items():
        metric, answer_filter = name.split(",")
        error = scores.get(f"{metric}_stderr,{answer_filter}")
        metrics[label] = {
            "score": float(scores[name]),
            "stderr": float(error) if isinstance(error, (int, float)) else None,
        }
    return metrics


def build_task(selected: SelectedSubject) -> Any:
    """The harness's task with the local files as its data.

    Raises:
        UserError: a file is not as the benchmark has it, or has too few examples.
    """
    benchmark = BENCHMARKS.get(selected.benchmark)
    splits = selected.subject.read(selected.files)
    changes: dict[str, Any] = {
        "custom_dataset": _dataset(splits, selected),
        "num_fewshot": _shots(selected, splits),
        **benchmark.changes,
    }
    if isinstance(selected.subject.task, str):
        # A group's members take changes; a single task would have to be spelt out.
        spec = {"group": "local", "task": [{"task": selected.subject.task, **changes}]}
    else:
        spec = {**selected.subject.task, **changes}
    (task,) = _task_manager(benchmark.harness_folder).load([spec])["tasks"].values()
    if selected.answer_tokens is not None:
        task.set_config("generation_kwargs", {"max_gen_toks": selected.answer_tokens}, update=True)
    task.set_fewshot_seed(FEWSHOT_SEED)
    return task


@functools.cache
def _task_manager(folder: str | None) -> Any:
    """Knows the harness's tasks in one folder; to read all of them would take half a minute."""
    from lm_eval.tasks import TaskManager

    paths = [] if folder is None else [harness_tasks_folder() / folder]
    return TaskManager(include_path=paths, include_defaults=False)


def _shots(selected: SelectedSubject, splits: Splits) -> int:
    """Examples before each question: what was asked for, or what is there.

    Raises:
        UserError: there are fewer, and the benchmark always has them.
    """
    benchmark = BENCHMARKS.get(selected.benchmark)
    sources = [name for name in ("dev", "train", "examples") if name in splits]
    if not selected.shots or not sources:
        return selected.shots
    there = len(splits[sources[0]])
    if there >= selected.shots:
        return selected.shots
    if benchmark.fewer_shots:
        return there
    raise UserError(
        f"{selected.name}: {selected.shots} examples are needed, {selected.files[0]} has {there}; give a smaller "
        "--num_fewshot, or the whole file"
    )


def _dataset(splits: Splits, selected: SelectedSubject) -> Callable[..., Any]:
    """What the harness calls for a task's data; it passes the task's metadata, which says nothing here.

    Raises:
        UserError: a split has no rows.
    """
    import datasets

    for name, rows in splits.items():
        if not rows:
            files = ", ".join(map(str, selected.files))
            raise UserError(f"{selected.name}: no {name} questions of the right kind in {files}")
    tables = {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}

    def load(**_: Any) -> dict[str, Any]:
        return tables

    return load
