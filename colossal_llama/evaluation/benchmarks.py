"""The benchmarks: their files, their settings in the published tables, and how the harness poses their questions.

Shots and lengths of answers are those of the tables of Colossal-LLaMA (mmlu, cmmlu, agieval, gaokao, ceval, gsm8k)
and ModelLink (bbh, boolq, humaneval). Questions with options are scored by the likelihoods of the options' letters
after the question, which is what those tables call the logits of the first token; the others by greedy generation.
Where the harness has the benchmark, its own prompts and scoring are used, and only the data come from local files.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colossal_llama.errors import UserError
from colossal_llama.evaluation.benchmark_files import (
    Row,
    read_csv,
    read_examples,
    read_json_lines,
    require_fields,
    require_texts,
)
from colossal_llama.evaluation.exams import AGIEVAL_SUBJECTS, GAOKAO_SUBJECTS, agieval_task, gaokao_task
from colossal_llama.evaluation.programs import humaneval_task
from colossal_llama.registry import Registry

Splits = dict[str, list[Row]]
LETTERS = ("A", "B", "C", "D")


@dataclass(frozen=True)
class Subject:
    """One task of the harness with its local files.

    Attributes:
        name: of the subject; the benchmark's own where it has only one.
        files: alternatives for each file that is needed, below the benchmark's folder.
        read: from the files found to the splits.
        task: name of the harness's task, or a whole task of its format where it has none.
    """

    name: str
    files: tuple[tuple[str, ...], ...]
    read: Callable[[list[Path]], Splits]
    task: str | dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """A set of subjects that share settings.

    Attributes:
        subjects: makes the subjects, in order.
        shots: examples before each question.
        most_shots: how many there are to take; None where the files decide.
        metrics: names of the harness's metrics and filters, by the label that the tables give them.
        harness_folder: where the harness keeps the tasks, below its folder of tasks; None for own tasks.
        changes: fields of the harness's task that are not as in its file, for one the splits of :attr:`Subject.read`
            that questions and examples are taken from.
        answer_tokens: longest generated answer; None where nothing is generated.
        fewer_shots: a subject with fewer examples than ``shots`` takes what it has.
    """

    subjects: Callable[[], list[Subject]]
    shots: int
    metrics: Mapping[str, str]
    harness_folder: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    answer_tokens: int | None = None
    most_shots: int | None = None
    fewer_shots: bool = False


BENCHMARKS: Registry[Benchmark] = Registry("benchmark")

ACCURACY = {"accuracy": "acc,none"}
EXACT = {"exact match": "exact_match,none"}


def harness_tasks_folder() -> Path:
    """The folder with the harness's tasks, found without importing it.

    Raises:
        UserError: the harness is not installed; says how to install it.
    """
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("--tasks needs the package lm-eval; run: pip install '.[eval]'")
    return Path(next(iter(spec.submodule_search_locations))) / "tasks"


def _harness_subjects(folder: str, prefix: str) -> list[str]:
    """Names behind ``prefix`` of the harness's task files in ``folder``."""
    files = sorted((harness_tasks_folder() / folder).glob(f"{prefix}*.yaml"))
    return [file.stem.removeprefix(prefix) for file in files if not file.stem.startswith("_")]


def _mmlu() -> list[Subject]:
    columns = ("question", *LETTERS, "answer")

    def row(raw: Row) -> Row:
        return {
            "question": raw["question"],
            "choices": [raw[letter] for letter in LETTERS],
            "answer": LETTERS.index(raw["answer"].strip()),
        }

    def read(files: list[Path]) -> Splits:
        tables = []
        for path in files:
            table = read_csv(path, columns)
            _require_letters(table, "answer", path)
            tables.append([row(raw) for raw in table])
        return dict(zip(("dev", "test"), tables, strict=True))

    return [
        Subject(name, _in_folders(f"dev/{name}_dev.csv", f"test/{name}_test.csv"), read, f"mmlu_{name}")
        for name in _harness_subjects("mmlu/default", "mmlu_")
    ]


def _chinese_exam(
    harness_folder: str, prefix: str, paths: tuple[str, str], columns: tuple[str, str], splits: tuple[str, str]
) -> list[Subject]:
    """Subjects of C-Eval and CMMLU: CSV files with a header, ``{}`` in their paths stands for the subject."""
    question, answer = columns

    def read(files: list[Path]) -> Splits:
        tables = []
        for path in files:
            table = read_csv(path)
            require_fields(table, (question, *LETTERS, answer), path)
            _require_letters(table, answer, path)
            tables.append([{name: row[name] for name in (question, *LETTERS, answer)} for row in table])
        return dict(zip(splits, tables, strict=True))

    return [
        Subject(name, _in_folders(*(path.format(name) for path in paths)), read, f"{prefix}{name}")
        for name in _harness_subjects(harness_folder, prefix)
    ]


def _require_letters(table: list[Row], name: str, path: Path) -> None:
    for number, row in enumerate(table, start=1):
        if str(row[name]).strip() not in LETTERS:
            raise UserError(f"{path}:row {number}: the answer is {row[name]!r}, expected one of {', '.join(LETTERS)}")


def _in_folders(*paths: str) -> tuple[tuple[str, ...], ...]:
    """Each file in the benchmark's folder, or in the folder ``data`` that its archive unpacks to."""
    return tuple((path, f"data/{path}") for path in paths)


def _bbh() -> list[Subject]:
    def read(files: list[Path]) -> Splits:
        examples = read_examples(files[0], "examples")
        require_fields(examples, ("input", "target"), files[0])
        return {"test": [{name: str(one[name]) for name in ("input", "target")} for one in examples]}

    return [
        Subject(name, ((f"{name}.json", f"bbh/{name}.json"),), read, f"bbh_fewshot_{name}")
        for name in _harness_subjects("bbh/fewshot", "")
    ]


def _gsm8k() -> list[Subject]:
    def read(files: list[Path]) -> Splits:
        splits = {}
        for name, path in zip(("train", "test"), files, strict=True):
            rows = read_json_lines(path)
            require_texts(rows, ("question", "answer"), path)
            splits[name] = [{key: row[key] for key in ("question", "answer")} for row in rows]
        return splits

    return [Subject("gsm8k", (("train.jsonl",), ("test.jsonl",)), read, "gsm8k")]


def _boolq() -> list[Subject]:
    def read(files: list[Path]) -> Splits:
        rows = read_json_lines(files[0])
        require_texts(rows, ("question", "passage"), files[0])
        for row in rows:
            row["label"] = row.get("answer", row.get("label"))  # the second is SuperGLUE's name for it
        require_bools = [number for number, row in enumerate(rows, start=1) if not isinstance(row["label"], bool)]
        if require_bools:
            raise UserError(f"{files[0]}:row {require_bools[0]}: 'answer' must be true or false")
        names = ("question", "passage")
        return {"validation": [{**{key: row[key] for key in names}, "label": int(row["label"])} for row in rows]}

    return [Subject("boolq", (("dev.jsonl", "val.jsonl"),), read, "boolq")]


def _agieval() -> list[Subject]:
    folders = ("v1_1", "v1", ".")
    return [
        Subject(
            name,
            (tuple(f"{folder}/{name}.jsonl" for folder in folders), ("few_shot_prompts.csv",)),
            *agieval_task(name),
        )
        for name in AGIEVAL_SUBJECTS
    ]


def _gaokao() -> list[Subject]:
    folders = ("Data/Objective_Questions", "Objective_Questions", "data/Multiple-choice_Questions", ".")
    return [
        Subject(name, (tuple(f"{folder}/{file}.json" for folder in folders),), *gaokao_task(name))
        for name, file in GAOKAO_SUBJECTS.items()
    ]


def _humaneval() -> list[Subject]:
    return [Subject("humaneval", (("HumanEval.jsonl.gz", "HumanEval.jsonl"),), *humaneval_task())]


BENCHMARKS.add(
    "mmlu",
    Benchmark(_mmlu, 5, ACCURACY, "mmlu/default", {"test_split": "test", "fewshot_split": "dev"}),
)
BENCHMARKS.add(
    "cmmlu",
    Benchmark(
        lambda: _chinese_exam(
            "cmmlu", "cmmlu_", ("dev/{}.csv", "test/{}.csv"), ("Question", "Answer"), ("dev", "test")
        ),
        5,
        ACCURACY,
        "cmmlu",
        {"test_split": "test", "fewshot_split": "dev"},
    ),
)
BENCHMARKS.add(
    "ceval",
    Benchmark(
        lambda: _chinese_exam(
            "ceval", "ceval-valid_", ("dev/{0}_dev.csv", "val/{0}_val.csv"), ("question", "answer"), ("dev", "val")
        ),
        5,
        ACCURACY,
        "ceval",
        {"validation_split": "val", "fewshot_split": "dev"},
    ),
)
BENCHMARKS.add("agieval", Benchmark(_agieval, 5, ACCURACY, fewer_shots=True))
BENCHMARKS.add("gaokao", Benchmark(_gaokao, 0, ACCURACY, most_shots=0))
BENCHMARKS.add(
    "gsm8k",
    Benchmark(
        _gsm8k,
        8,
        {"strict match": "exact_match,strict-match", "last number": "exact_match,flexible-extract"},
        "gsm8k",
        {"test_split": "test", "training_split": "train", "fewshot_split": "train"},
        200,
    ),
)
# Byte-level tokenizers put the space before an answer into its first token, and the harness would compare it too.
STRIPPED = [{"name": "none", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}]
BENCHMARKS.add(
    "bbh",
    Benchmark(_bbh, 3, EXACT, "bbh/fewshot", {"test_split": "test", "filter_list": STRIPPED}, 32, most_shots=3),
)
BENCHMARKS.add(
    "boolq",
    Benchmark(
        _boolq,
        0,
        ACCURACY,
        "super_glue/boolq",
        {"validation_split": "validation", "training_split": None},
        most_shots=0,
    ),
)
BENCHMARKS.add("humaneval", Benchmark(_humaneval, 0, {"pass@1": "pass@1,none"}, answer_tokens=200, most_shots=0))
