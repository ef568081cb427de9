"""AGIEval and GAOKAO-Bench in the harness's format: their questions with four options and one right answer.

Only these are in Colossal-LLaMA's published tables. Its tables also count an answer as right whose first letter is in
the text generated next; here the likelihoods of the letters decide alone.
"""

from __future__ import annotations

import ast
import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from colossal_llama.errors import UserError
from colossal_llama.evaluation.benchmark_files import Row, read_examples, read_json_lines, require_fields, require_texts

LETTERS = "ABCD"

_ENGLISH = ("logiqa-en", "sat-math", "sat-en", "sat-en-without-passage", "gaokao-english")
_CHINESE = (
    "logiqa-zh",
    "gaokao-chinese",
    "gaokao-geography",
    "gaokao-history",
    "gaokao-biology",
    "gaokao-chemistry",
)
AGIEVAL_SUBJECTS = (*_ENGLISH, *_CHINESE)
"""Those with four options and one right answer."""

GAOKAO_SUBJECTS = {
    "english": "2010-2013_English_MCQs",
    "biology": "2010-2022_Biology_MCQs",
    "chemistry": "2010-2022_Chemistry_MCQs",
    "history": "2010-2022_History_MCQs",
    "math_1": "2010-2022_Math_I_MCQs",
    "math_2": "2010-2022_Math_II_MCQs",
    "politics": "2010-2022_Political_Science_MCQs",
}
"""Those with four options and one right answer, and their files."""

Reader = Callable[[list[Path]], dict[str, list[Row]]]


def _letter_task(name: str, **fields: Any) -> dict[str, Any]:
    """A task of the harness that chooses among letters; rows hold ``prompt``, ``letters`` and ``gold``."""
    return {
        "task": name,
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "prompt",
        "doc_to_choice": "letters",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        **fields,
    }


def agieval_task(subject: str) -> tuple[Reader, dict[str, Any]]:
    """How to read a subject of AGIEval (its questions, then its examples), and its task."""
    chinese = subject in _CHINESE

    def read(files: list[Path]) -> dict[str, list[Row]]:
        questions, examples = files
        rows = read_json_lines(questions)
        _require_agieval_fields(rows, questions)
        return {
            "test": [row for row in (_agieval_row(raw, chinese) for raw in rows) if row is not None],
            "examples": _agieval_examples(examples, subject, chinese),
        }

    description = (
        "以下是考试中各个问题的答案。\n\n" if chinese else "Here are the answers for the problems in the exam.\n\n"
    )
    return read, _letter_task(
        f"agieval_{subject}",
        fewshot_split="examples",
        fewshot_config={"sampler": "first_n"},
        description=description,
        target_delimiter="" if chinese else " ",
    )


def _require_agieval_fields(rows: list[Row], path: Path) -> None:
    require_fields(rows, ("passage", "options", "label"), path)
    require_texts(rows, ("question",), path)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row["passage"], str | None):
            raise UserError(f"{path}:row {number}: 'passage' must be a string or null")
        options = row["options"] or []
        if not isinstance(options, list) or not all(isinstance(one, str) for one in options):
            raise UserError(f"{path}:row {number}: 'options' must be an array of strings")


def _agieval_row(raw: Row, chinese: bool) -> Row | None:
    """The question as the harness takes it; None where its answer is not one of the four letters."""
    options, label = raw["options"] or [], raw["label"]
    if not isinstance(label, str) or label.strip() not in tuple(LETTERS):
        return None
    if chinese:
        prompt = f"问题：{raw['question']} 从以下选项中选择：{' '.join(options)}\n答案："
    else:
        prompt = f"Question: {raw['question']} Choose from the following options: {' '.join(options)}\nAnswer:"
    if raw["passage"]:
        prompt = f"{raw['passage']}\n\n{prompt}"
    return {"prompt": prompt, "letters": list(LETTERS), "gold": LETTERS.index(label.strip())}


def _agieval_examples(path: Path, subject: str, chinese: bool) -> list[Row]:
    """The examples of a subject in ``few_shot_prompts.csv``: a column for each, questions and explanations in turns."""
    column = "sat-en" if subject == "sat-en-without-passage" else subject
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.reader(file))
        place = lines[0].index(column)
        cells = [line[place] for line in lines[1::2] if line[place].strip()]
        raw = [dict(ast.literal_eval(cell)) for cell in cells]
    except (ValueError, TypeError, SyntaxError, IndexError, csv.Error) as error:
        raise UserError(f"{path}: not AGIEval's table of examples with the column {column!r} ({error})") from error
    if subject == "sat-en-without-passage":
        raw = [{**one, "passage": None} for one in raw]
    _require_agieval_fields(raw, path)
    return [row for row in (_agieval_row(one, chinese) for one in raw) if row is not None]


def gaokao_task(subject: str) -> tuple[Reader, dict[str, Any]]:
    """How to read a subject of GAOKAO-Bench, and its task."""

    def read(files: list[Path]) -> dict[str, list[Row]]:
        examples = read_examples(files[0], "example")
        require_fields(examples, ("answer",), files[0])
        require_texts(examples, ("question",), files[0])
        return {"test": [row for row in map(_gaokao_row, examples) if row is not None]}

    return read, _letter_task(f"gaokao_{subject}", target_delimiter="")


def _gaokao_row(raw: Row) -> Row | None:
    answer = raw["answer"]
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    if not isinstance(answer, str) or answer not in tuple(LETTERS):
        return None
    prompt = f"{raw['question'].strip()}\n答案："
    return {"prompt": prompt, "letters": list(LETTERS), "gold": LETTERS.index(answer)}
