"""Which subjects a run takes, and whether all their files are there, before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colossal_llama.errors import UserError
from colossal_llama.evaluation.benchmarks import BENCHMARKS, Benchmark, Subject, harness_tasks_folder
from colossal_llama.evaluation.store import files_fingerprint

DOCUMENTATION = "docs/evaluation.md"


@dataclass(frozen=True)
class RunSettings:
    """What a user may change of the benchmarks' own settings; None keeps those."""

    num_fewshot: int | None = None
    max_gen_toks: int | None = None
    limit: int | None = None


@dataclass(frozen=True)
class SelectedSubject:
    """A subject to evaluate.

    Attributes:
        benchmark: its name.
        subject: of the benchmark.
        files: that were found for it.
        shots, answer_tokens: settings of this run.
    """

    benchmark: str
    subject: Subject
    files: list[Path]
    shots: int
    answer_tokens: int | None

    @property
    def name(self) -> str:
        """``benchmark:subject``, as a user selects it."""
        return f"{self.benchmark}:{self.subject.name}"

    def settings(self, limit: int | None) -> dict[str, Any]:
        """What the result depends on beside the model."""
        return {
            "files": files_fingerprint(self.files),
            "shots": self.shots,
            "answer_tokens": self.answer_tokens,
            "limit": limit,
        }


def select_subjects(tasks: Sequence[str], data_dir: Path, settings: RunSettings) -> list[SelectedSubject]:
    """The subjects of ``tasks`` in order, each once, with their files.

    Raises:
        UserError: the harness is not installed, an unknown subject, settings that a benchmark cannot have, or a file
            that is missing: the message says where it should be and where it comes from.
    """
    harness_tasks_folder()
    if not data_dir.is_dir():
        raise UserError(f"--data_dir {data_dir}: no such folder; {DOCUMENTATION} says what it should hold")
    selected: dict[str, SelectedSubject] = {}
    for task in tasks:
        name, _, wanted = task.partition(":")
        benchmark = BENCHMARKS.get(name)
        _check_shots(name, benchmark, settings.num_fewshot)
        subjects = benchmark.subjects()
        if wanted:
            subjects = [subject for subject in subjects if subject.name == wanted]
            if not subjects:
                known = ", ".join(subject.name for subject in benchmark.subjects())
                raise UserError(f"--tasks {task}: no such subject; known: {known}")
        for subject in subjects:
            one = _select(name, benchmark, subject, data_dir, settings)
            selected[one.name] = one
    return list(selected.values())


def _check_shots(name: str, benchmark: Benchmark, shots: int | None) -> None:
    if shots is not None and benchmark.most_shots is not None and shots > benchmark.most_shots:
        raise UserError(f"--num_fewshot {shots}: {name} has {benchmark.most_shots} examples; give at most so many")


def _select(
    name: str, benchmark: Benchmark, subject: Subject, data_dir: Path, settings: RunSettings
) -> SelectedSubject:
    folder = data_dir / name
    files = []
    for alternatives in subject.files:
        found = next((folder / path for path in alternatives if (folder / path).is_file()), None)
        if found is None:
            raise UserError(
                f"--tasks {name}: {folder / alternatives[0]} is missing; put the benchmark's own files there as "
                f"{DOCUMENTATION} says"
            )
        files.append(found)
    shots = benchmark.shots if settings.num_fewshot is None else settings.num_fewshot
    answer_tokens = benchmark.answer_tokens
    if answer_tokens is not None and settings.max_gen_toks is not None:
        answer_tokens = settings.max_gen_toks
    return SelectedSubject(name, subject, files, shots, answer_tokens)
