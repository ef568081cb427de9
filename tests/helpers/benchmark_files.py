"""Small benchmarks in the benchmarks' own file formats, made of questions invented here."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

LETTERS = "ABCD"
COLOURS = ("red", "blue", "green", "yellow")
CHINESE_COLOURS = ("红色", "蓝色", "绿色", "黄色")


def english_question(number: int) -> tuple[str, list[str], str]:
    """A question, its four options and the letter of the right one."""
    answer = number % 4
    options = [COLOURS[(place + number) % 4] for place in range(4)]
    return (
        f"Box {number} was painted {options[answer]} last week. What colour has box {number}?",
        options,
        LETTERS[answer],
    )


def chinese_question(number: int) -> tuple[str, list[str], str]:
    answer = (3 * number + 1) % 4
    options = [CHINESE_COLOURS[(place + number) % 4] for place in range(4)]
    return (
        f"第{number}号箱子上周被漆成了{options[answer]}。第{number}号箱子是什么颜色？",
        options,
        LETTERS[answer],
    )


def write_csv(path: Path, rows: Sequence[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def write_lines(path: Path, records: Sequence[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode("utf-8")))
    else:
        path.write_text(text, encoding="utf-8")


def write_mmlu(folder: Path, subjects: Sequence[str], questions: int) -> None:
    """Hendrycks' CSV files without a header: question, four options, letter."""
    for subject in subjects:
        for split, numbers in (("dev", range(100, 105)), ("test", range(questions))):
            rows = [[text, *options, letter] for text, options, letter in map(english_question, numbers)]
            write_csv(folder / "mmlu" / "data" / split / f"{subject}_{split}.csv", rows)


def write_cmmlu(folder: Path, subjects: Sequence[str], questions: int) -> None:
    for subject in subjects:
        for split, numbers in (("dev", range(100, 105)), ("test", range(questions))):
            rows = [[n, text, *options, letter] for n, (text, options, letter) in numbered(numbers)]
            write_csv(folder / "cmmlu" / split / f"{subject}.csv", [["", "Question", *LETTERS, "Answer"], *rows])


def numbered(numbers: range) -> Iterator[tuple[int, tuple[str, list[str], str]]]:
    return ((number, chinese_question(number)) for number in numbers)


def write_ceval(folder: Path, subjects: Sequence[str], questions: int) -> None:
    head = ["id", "question", *LETTERS, "answer"]
    for subject in subjects:
        dev = [[n, text, *options, letter, "解析"] for n, (text, options, letter) in numbered(range(100, 105))]
        val = [[n, text, *options, letter] for n, (text, options, letter) in numbered(range(questions))]
        write_csv(folder / "ceval" / "dev" / f"{subject}_dev.csv", [[*head, "explanation"], *dev])
        write_csv(folder / "ceval" / "val" / f"{subject}_val.csv", [head, *val])


def agieval_record(question: tuple[str, list[str], str]) -> dict:
    text, options, letter = question
    marked = [f"({name}){option}" for name, option in zip(LETTERS, options, strict=True)]
    return {"passage": None, "question": text, "options": marked, "label": letter, "answer": None, "other": None}


def write_agieval(folder: Path, english: Sequence[str], chinese: Sequence[str], questions: int) -> None:
    makers = dict.fromkeys(english, english_question) | dict.fromkeys(chinese, chinese_question)
    columns = [name for name in makers if name != "sat-en-without-passage"]
    table: list[list[str]] = [["", *columns]]
    for number in range(100, 103):
        records = [agieval_record(makers[name](number)) for name in columns]
        table.append([f"sample {number}", *map(repr, records)])
        table.append([f"explanation {number}", *("because" for _ in columns)])
    write_csv(folder / "agieval" / "few_shot_prompts.csv", table)
    for name, make in makers.items():
        records = [agieval_record(make(number)) for number in range(questions)]
        records.append({**records[0], "label": ["A", "B"]})  # several right answers: not scored
        write_lines(folder / "agieval" / "v1_1" / f"{name}.jsonl", records)


def write_gaokao(folder: Path, files: Sequence[str], questions: int) -> None:
    for name in files:
        examples = []
        for number in range(questions):
            text, options, letter = chinese_question(number)
            marked = "\n".join(f"{mark}．{option}" for mark, option in zip(LETTERS, options, strict=True))
            examples.append(
                {"year": "2010", "question": f"{number}．{text}\n{marked}\n", "answer": [letter], "score": 6}
            )
        examples.append({**examples[0], "answer": ["A", "B"]})
        path = folder / "gaokao" / "Data" / "Objective_Questions" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"keywords": name, "example": examples}, ensure_ascii=False), encoding="utf-8")


def write_gsm8k(folder: Path, questions: int) -> None:
    for split, numbers in (("train", range(100, 112)), ("test", range(questions))):
        records = [
            {
                "question": f"A shelf has {n} jars and gets 2 more. How many?",
                "answer": f"{n} + 2 = {n + 2}\n#### {n + 2}",
            }
            for n in numbers
        ]
        write_lines(folder / "gsm8k" / f"{split}.jsonl", records)


def write_bbh(folder: Path, subjects: Sequence[str], questions: int) -> None:
    (folder / "bbh").mkdir(parents=True)
    for subject in subjects:
        examples = [{"input": f"Is {n} larger than 3?", "target": "Yes" if n > 3 else "No"} for n in range(questions)]
        content = {"canary": "invented for a test", "examples": examples}
        (folder / "bbh" / f"{subject}.json").write_text(json.dumps(content), encoding="utf-8")


def write_boolq(folder: Path, questions: int) -> None:
    records = [
        {
            "question": f"is box {n} empty",
            "title": "Boxes",
            "passage": f"Box {n} is {'empty' if n % 2 else 'full'}.",
            "answer": bool(n % 2),
        }
        for n in range(questions)
    ]
    write_lines(folder / "boolq" / "dev.jsonl", records)


def write_humaneval(folder: Path, problems: int) -> None:
    records = [
        {
            "task_id": f"Test/{n}",
            "prompt": f'def plus_{n}(number):\n    """Return number plus {n}."""\n',
            "entry_point": f"plus_{n}",
            "canonical_solution": f"    return number + {n}\n",
            "test": f"def check(candidate):\n    assert candidate(1) == {n + 1}\n",
        }
        for n in range(problems)
    ]
    write_lines(folder / "humaneval" / "HumanEval.jsonl.gz", records)
