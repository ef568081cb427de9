"""evaluate.py and compare_models.py on tiny models and small benchmarks in the benchmarks' own file formats.

The commands run in this process, because importing the harness takes as long as everything else here.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
import shlex
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from colossal_llama.commands import compare_models, evaluate
from colossal_llama.comparison.figures import named_models
from colossal_llama.config.cli import parse_config
from colossal_llama.config.evaluate import BENCHMARK_NAMES, CompareConfig, EvaluateConfig
from colossal_llama.evaluation.perplexity import score_texts
from colossal_llama.evaluation.results import show_score
from colossal_llama.generation import SamplingSettings, build_prompt, generate, load_for_generation
from tests.helpers import benchmark_files as files
from tests.helpers.assets import sanguo_text
from tests.helpers.tiny import english_text, save_tiny_model

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
QUESTIONS = 6

SUBJECTS = (
    *("mmlu:anatomy", "mmlu:virology", "cmmlu:agronomy", "ceval:law", "agieval:sat-math", "agieval:logiqa-zh"),
    *("gaokao:biology", "gsm8k", "bbh:navigate", "boolq", "humaneval"),
)


def save_long_model(folder: Path, seed: int) -> Path:
    """A tiny model with room for five examples before a question."""
    save_tiny_model(folder, seed=seed)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2048}), encoding="utf-8")
    return folder


def write_texts(path: Path) -> list[tuple[str, str]]:
    """Records of two categories; returns category and text."""
    chinese, english = sanguo_text(), english_text()
    texts = [("novel", chinese[start : start + 150]) for start in range(0, 1500, 150)]
    texts += [("manual", english[start : start + 700]) for start in range(0, 4200, 700)]
    records = [{"source": "", "target": text, "category": category} for category, text in texts]
    files.write_lines(path, records)
    return texts


class Workplace:
    """Folders of models, data and results, and the commands on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = save_long_model(folder / "base", seed=0)
        self.new = save_long_model(folder / "new", seed=1)
        self.benchmarks = folder / "benchmarks"
        self.texts = write_texts(folder / "held_out.jsonl")
        files.write_mmlu(self.benchmarks, ("anatomy", "virology"), QUESTIONS)
        files.write_cmmlu(self.benchmarks, ("agronomy",), QUESTIONS)
        files.write_ceval(self.benchmarks, ("law",), QUESTIONS)
        files.write_agieval(self.benchmarks, ("sat-math",), ("logiqa-zh",), QUESTIONS)
        files.write_gaokao(self.benchmarks, ("2010-2022_Biology_MCQs",), QUESTIONS)
        files.write_gsm8k(self.benchmarks, 3)
        files.write_bbh(self.benchmarks, ("navigate",), 3)
        files.write_boolq(self.benchmarks, QUESTIONS)
        files.write_humaneval(self.benchmarks, 2)

    @property
    def variables(self) -> dict[str, Path]:
        """What docs/evaluation.md asks its reader to set."""
        return {"BASE": self.base, "NEW": self.new, "BENCHMARKS": self.benchmarks, "WORK": self.folder / "work"} | {
            "HELD_OUT": self.folder / "held_out.jsonl"
        }

    def evaluate(self, *tasks: str, output: str = "out", flags: tuple[str, ...] = ()) -> dict[str, Any]:
        """Run evaluate.py on the first model; returns its ``results.json``."""
        arguments = [str(self.base), "--tasks", *tasks, "--data_dir", str(self.benchmarks)]
        arguments += ["--output_dir", str(self.folder / output), "--max_gen_toks", "8", *flags]
        assert evaluate.main(arguments) == 0
        return json.loads((self.folder / output / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="module")
def results(place: Workplace) -> dict[str, Any]:
    """Every benchmark, evaluated once; also in ``all.json``, which no later run writes over."""
    found = place.evaluate(*SUBJECTS, flags=("--allow_code_execution",))
    (place.folder / "all.json").write_text(json.dumps(found), encoding="utf-8")
    return found


def test_every_benchmark_has_a_score_with_its_error(results: dict[str, Any]) -> None:
    assert set(results["tasks"]) == set(BENCHMARK_NAMES)
    shots = {name: result["shots"] for name, result in results["tasks"].items()}
    assert shots == {
        **{"mmlu": [5], "cmmlu": [5], "ceval": [5], "agieval": [3], "gaokao": [0]},
        **{"gsm8k": [8], "bbh": [3], "boolq": [0], "humaneval": [0]},
    }
    for name, result in results["tasks"].items():
        for figures in result["metrics"].values():
            assert 0 <= figures["score"] <= 1, name
            assert figures["stderr"] >= 0, name
    # Questions with several right answers are left out.
    assert results["tasks"]["agieval"]["questions"] == 2 * QUESTIONS
    assert results["tasks"]["gaokao"]["questions"] == QUESTIONS
    assert set(results["tasks"]["gsm8k"]["metrics"]) == {"strict match", "last number"}


def mmlu_prompt(subject: str, number: int) -> str:
    """The five examples and a question as the paper and its harness put them."""
    parts = [f"The following are multiple choice questions (with answers) about {subject}."]
    for one in (*range(100, 105), number):
        text, options, letter = files.english_question(one)
        lines = [text, *(f"{mark}. {option}" for mark, option in zip(files.LETTERS, options, strict=True))]
        parts.append("\n".join([*lines, f"Answer: {letter}" if one >= 100 else "Answer:"]))
    return "\n\n".join(parts)


def test_the_score_of_mmlu_is_that_of_a_computation_by_hand(place: Workplace, results: dict[str, Any]) -> None:
    import torch

    model, tokenizer = load_for_generation(place.base, "cpu")
    right = []
    for number in range(QUESTIONS):
        prompt = mmlu_prompt("anatomy", number)
        likelihoods = []
        for letter in files.LETTERS:
            ids, start = tokenizer(f"{prompt} {letter}")["input_ids"], len(tokenizer(prompt)["input_ids"])
            with torch.no_grad():
                rows = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)
            likelihoods.append(sum(rows[place - 1, ids[place]].item() for place in range(start, len(ids))))
        best = max(range(4), key=likelihoods.__getitem__)
        right.append(files.LETTERS[best] == files.english_question(number)[2])
    accuracy = sum(right) / QUESTIONS
    found = results["tasks"]["mmlu"]["subjects"]["anatomy"]["metrics"]["accuracy"]
    assert 0 < accuracy < 1  # or the comparison would say little
    assert found["score"] == pytest.approx(accuracy)
    assert found["stderr"] == pytest.approx(math.sqrt(accuracy * (1 - accuracy) / (QUESTIONS - 1)))


def test_a_second_run_takes_everything_from_the_disk(
    place: Workplace, results: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    again = place.evaluate(*SUBJECTS, flags=("--allow_code_execution",))
    printed = capsys.readouterr().out
    assert printed.count("(done before)") == len(SUBJECTS)
    assert again["tasks"] == results["tasks"]
    table = (place.folder / "out" / "results.md").read_text(encoding="utf-8")
    assert "| mmlu (2 of 57 subjects) | accuracy | 5 | 12 |" in table
    assert re.search(r"^mmlu \(2 of 57 subjects\) +accuracy +5 +12 ", printed, re.MULTILINE)


def test_other_settings_are_evaluated_anew(
    place: Workplace, results: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    limited = place.evaluate("mmlu:anatomy", flags=("--limit", "2", "--num_fewshot", "1"))
    assert "(done before)" not in capsys.readouterr().out
    assert limited["tasks"]["mmlu"]["questions"] == 2
    assert limited["tasks"]["mmlu"]["shots"] == [1]


def test_right_answers_score(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a tiny model never writes: one right answer of three sums, No to everything, and one right program."""
    from lm_eval.models.huggingface import HFLM

    def answer(_: Any, requests: list[Any]) -> list[str]:
        beginnings = {"Question": " 0 + 2 = 2\n#### 2", "Given": " No\n", "def": "    return number + 1\n"}
        return [beginnings[re.match(r"\w+", request.args[0])[0]] for request in requests]

    monkeypatch.setattr(HFLM, "generate_until", answer)
    tasks = place.evaluate("gsm8k", "bbh:navigate", "humaneval", output="right", flags=("--allow_code_execution",))[
        "tasks"
    ]
    assert tasks["gsm8k"]["metrics"]["strict match"]["score"] == pytest.approx(1 / 3)
    assert tasks["gsm8k"]["metrics"]["last number"]["score"] == pytest.approx(1 / 3)
    assert tasks["bbh"]["metrics"]["exact match"]["score"] == 1.0
    assert tasks["humaneval"]["metrics"]["pass@1"]["score"] == 0.5


class KilledError(Exception):
    pass


def test_answers_of_a_killed_subject_are_kept(
    place: Workplace, results: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run dies between answering and scoring; the next one scores the answers that are on disk."""
    from lm_eval.models.huggingface import HFLM

    def killed(*_: Any) -> Any:
        raise KilledError

    answer = HFLM.generate_until
    asked = []
    monkeypatch.setattr(
        HFLM, "generate_until", lambda lm, requests: asked.append(len(requests)) or answer(lm, requests)
    )
    with monkeypatch.context() as dying:
        dying.setattr("colossal_llama.evaluation.harness._metrics", killed)
        with pytest.raises(KilledError):
            place.evaluate("gsm8k", output="killed")
    assert asked == [3]
    after = place.evaluate("gsm8k", output="killed")
    assert asked == [3]
    assert after["tasks"]["gsm8k"]["metrics"] == results["tasks"]["gsm8k"]["metrics"]
    assert [file.suffix for file in (place.folder / "killed" / "parts").iterdir()] == [".json"]


def refusal(main: Callable[[list[str]], int], arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command refuses its arguments with."""
    capsys.readouterr()
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_programs_run_only_when_allowed(place: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [str(place.base), "--tasks", "humaneval", "--data_dir", str(place.benchmarks)]
    flags += ["--output_dir", str(place.folder / "refused")]
    line = refusal(evaluate.main, flags, capsys)
    assert "--tasks humaneval: runs programs that the model writes; add --allow_code_execution" in line
    assert not (place.folder / "refused").exists()


def test_missing_files_and_models_are_named_before_a_model_is_loaded(
    place: Workplace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "no_model"
    empty.mkdir()  # loading it would be refused with another message
    start = [str(empty), "--output_dir", str(tmp_path / "out"), "--data_dir", str(place.benchmarks)]
    line = refusal(evaluate.main, [*start, "--tasks", "boolq", "ceval"], capsys)
    missing = place.benchmarks / "ceval" / "dev" / "accountant_dev.csv"
    assert f"{missing} is missing" in line
    assert "docs/evaluation.md" in line
    assert "--tasks ceval:lawn: no such subject; known: accountant" in refusal(
        evaluate.main, [*start, "--tasks", "ceval:lawn"], capsys
    )
    assert "--num_fewshot 5: bbh has 3" in refusal(
        evaluate.main, [*start, "--tasks", "bbh:navigate", "--num_fewshot", "5"], capsys
    )
    assert "no such directory or file" in refusal(evaluate.main, [*start, "--held_out", "no.jsonl"], capsys)
    assert "nothing to evaluate" in refusal(evaluate.main, [str(empty)], capsys)
    assert "no such folder" in refusal(evaluate.main, ["no_folder", "--held_out", "x.jsonl"], capsys)
    assert "--seed -1" in refusal(evaluate.main, [str(empty), "--held_out", "x.jsonl", "--seed", "-1"], capsys)
    assert not (tmp_path / "out").exists()


def test_the_missing_harness_is_named(
    place: Workplace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else find_spec(name))
    arguments = [str(place.base), "--tasks", "boolq", "--data_dir", str(place.benchmarks)]
    assert "pip install '.[eval]'" in refusal(evaluate.main, arguments, capsys)


def test_files_that_are_not_the_benchmarks_are_named(
    place: Workplace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = ["id", "question", *files.LETTERS, "answer"]

    def refused(dev: list[object], val: list[object]) -> str:
        files.write_csv(tmp_path / "ceval" / "dev" / "law_dev.csv", [head, dev])
        files.write_csv(tmp_path / "ceval" / "val" / "law_val.csv", [head, val])
        flags = [str(place.base), "--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "out")]
        return refusal(evaluate.main, [*flags, "--tasks", "ceval:law"], capsys)

    assert "law_dev.csv:row 1: the answer is 'E'" in refused([1, *"qabcdE"], [1, *"qabcdA"])
    assert "law_val.csv:row 2: 6 fields, expected 7" in refused([1, *"qabcdA"], [1, *"qabcd"])
    line = refused([1, *"qabcdA"], [1, *"qabcdA"])
    assert "5 examples are needed" in line
    assert "law_dev.csv has 1" in line


EXAMPLES = "subject,sat-math\n0,{example}\n"
EXAMPLE = "\"{'passage': '', 'question': 'q', 'options': ['(A)1'], 'label': 'A'}\""


@pytest.mark.parametrize(
    ("task", "record", "message"),
    [
        ("boolq", {"question": None, "passage": "p", "answer": True}, "dev.jsonl:row 1: 'question' must be a string"),
        ("gsm8k", {"question": "q", "answer": 5}, "'answer' must be a string, found a number"),
        ("humaneval", {"prompt": "p", "test": None, "entry_point": "f"}, "'test' must be a string, found null"),
        ("gaokao:biology", {"question": 1, "answer": "A"}, "'question' must be a string"),
        (
            "agieval:sat-math",
            {"passage": 5, "question": "q", "options": [], "label": "A"},
            "'passage' must be a string or null",
        ),
        (
            "agieval:sat-math",
            {"passage": None, "question": "q", "options": "ab", "label": "A"},
            "'options' must be an array of strings",
        ),
    ],
)
def test_fields_of_another_type_are_named(
    place: Workplace, task: str, record: dict, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in ("boolq/dev.jsonl", "gsm8k/train.jsonl", "gsm8k/test.jsonl", "humaneval/HumanEval.jsonl"):
        files.write_lines(tmp_path / file, [record])
    files.write_lines(tmp_path / "agieval" / "sat-math.jsonl", [record])
    (tmp_path / "agieval" / "few_shot_prompts.csv").write_text(EXAMPLES.format(example=EXAMPLE), encoding="utf-8")
    (tmp_path / "gaokao").mkdir()
    content = json.dumps({"example": [record]})
    (tmp_path / "gaokao" / "2010-2022_Biology_MCQs.json").write_text(content, encoding="utf-8")
    flags = [str(place.base), "--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "out"), "--tasks", task]
    assert message in refusal(evaluate.main, [*flags, "--allow_code_execution"], capsys)
    (tmp_path / "agieval" / "few_shot_prompts.csv").write_text(EXAMPLES.format(example="5"), encoding="utf-8")
    good = {"passage": None, "question": "q", "options": ["(A)1"], "label": "A"}
    files.write_lines(tmp_path / "agieval" / "sat-math.jsonl", [good])
    line = refusal(evaluate.main, [*flags[:-1], "agieval:sat-math"], capsys)
    assert "few_shot_prompts.csv: not AGIEval's table of examples" in line


def test_bits_per_byte_of_each_category(place: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [str(place.base), "--held_out", str(place.folder / "held_out.jsonl"), "--window_characters", "150"]
    assert evaluate.main([*flags, "--output_dir", str(place.folder / "texts"), "--batch_tokens", "900"]) == 0
    found = json.loads((place.folder / "texts" / "results.json").read_text(encoding="utf-8"))["held_out"]
    assert list(found["categories"]) == ["novel", "manual", "(all)"]
    loaded = load_for_generation(place.base, "cpu")
    for category in ("novel", "manual"):
        pieces = [
            text[start : start + 150]
            for name, text in place.texts
            if name == category
            for start in range(0, len(text), 150)
        ]
        score = score_texts(*loaded, pieces)
        figures = found["categories"][category]
        bits = figures["bits_per_byte"]
        assert bits["value"] == pytest.approx(score.bits_per_byte, rel=1e-5)
        assert bits["low"] < bits["value"] < bits["high"]
        assert figures["perplexity"]["value"] == pytest.approx(math.exp(score.nats / score.tokens), rel=1e-4)
        assert (figures["tokens"], figures["utf8_bytes"]) == (score.tokens, score.utf8_bytes)
    assert "Texts (held_out)" in capsys.readouterr().out


def test_texts_longer_than_the_model_are_refused(place: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    path = place.folder / "long.jsonl"
    files.write_lines(path, [{"text": sanguo_text()[:3000]}])
    flags = [str(place.base), "--held_out", str(path), "--window_characters", "3000"]
    line = refusal(evaluate.main, [*flags, "--output_dir", str(place.folder / "long")], capsys)
    assert re.search(r"--window_characters 3000: gives a piece of \d+ tokens, the model has 2048 positions", line)


def test_an_output_folder_that_cannot_be_is_refused_before_a_model_is_loaded(
    place: Workplace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    held_out = ["--held_out", str(place.folder / "held_out.jsonl"), "--output_dir"]
    for output in (file, file / "below"):
        for main, models in ((evaluate.main, [str(tmp_path)]), (compare_models.main, [str(tmp_path), f"b={tmp_path}"])):
            line = refusal(main, [*models, *held_out, str(output)], capsys)
            what = "is a file" if output == file else f"{file} is a file"
            assert line == f"error: --output_dir {output}: {what}; give another folder"
    long = tmp_path / ("a" * 300)
    assert "File name too long" in refusal(evaluate.main, [str(tmp_path), *held_out, str(long)], capsys)
    assert file.read_text() == "mine"


@pytest.mark.parametrize("content", ["{", "[]", '{"base_model_name_or_path": null}', '{"base_model_name_or_path": ""}'])
def test_adapters_without_a_base_are_named(
    place: Workplace, content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    held_out = ["--held_out", str(place.folder / "held_out.jsonl"), "--output_dir", str(tmp_path / "out")]
    line = refusal(evaluate.main, [str(tmp_path), *held_out], capsys)
    assert line.startswith(f"error: {tmp_path / 'adapter_config.json'}: ")


def test_a_folder_with_an_equals_sign_is_no_name(tmp_path: Path) -> None:
    for name in ("lr=1", "lr=2"):
        (tmp_path / name).mkdir()
    first, second = named_models([str(tmp_path / "lr=1"), f"new={tmp_path / 'lr=2'}"])
    assert (first.name, first.folder) == ("lr=1", tmp_path / "lr=1")
    assert (second.name, second.folder) == ("new", tmp_path / "lr=2")


@pytest.fixture(scope="module")
def comparison(place: Workplace, results: dict[str, Any]) -> dict[str, Any]:
    """Both models compared, the first one's benchmark scores included."""
    arguments = [f"old={place.base}", str(place.new), f"copy={place.base}", "--held_out"]
    arguments += [str(place.folder / "held_out.jsonl"), "--window_characters", "150", "--max_new_tokens", "8"]
    arguments += [
        "--prompts",
        "却说曹操",
        str(place.folder / "prompts.txt"),
        "--results",
        str(place.folder / "all.json"),
    ]
    (place.folder / "prompts.txt").write_text("\ufeffThe <b>class</b> statement\n\n", encoding="utf-8")
    arguments += ["--speed_tokens", "64", "--output_dir", str(place.folder / "comparison")]
    assert compare_models.main(arguments) == 0
    return json.loads((place.folder / "comparison" / "comparison.json").read_text(encoding="utf-8"))


def test_models_are_measured_alike(place: Workplace, comparison: dict[str, Any]) -> None:
    old, new, copy = comparison["models"]
    assert [one["name"] for one in comparison["models"]] == ["old", "new", "copy"]
    model, tokenizer = load_for_generation(place.base, "cpu")
    assert old["size"] == {
        "parameters": model.num_parameters(),
        "weight_bytes": (place.base / "model.safetensors").stat().st_size,
        "vocabulary": len(tokenizer),
    }
    assert all(one["speed"]["forward"] > 0 and one["speed"]["generation"] > 0 for one in comparison["models"])
    assert copy["texts"] == old["texts"]
    assert copy["change"]["novel"]["relative"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    change = new["change"]["novel"]
    bits = [one["texts"]["novel"]["bits_per_byte"]["value"] for one in (old, new)]
    assert change["bits_per_byte"]["value"] == pytest.approx(bits[1] - bits[0])
    assert change["relative"]["value"] == pytest.approx(bits[1] / bits[0] - 1)
    assert change["tokens"] == 0.0
    assert comparison["prompts"] == ["却说曹操", "The <b>class</b> statement"]
    sampling = SamplingSettings(max_new_tokens=8, do_sample=False)
    assert old["continuations"] == [
        generate(model, tokenizer, build_prompt(tokenizer, prompt, "text"), sampling)
        for prompt in comparison["prompts"]
    ]
    assert set(old["tasks"]) == set(BENCHMARK_NAMES)
    assert copy["tasks"] == old["tasks"]
    assert new["tasks"] == {}


class Page(HTMLParser):
    """Collects tags, attributes that could fetch something, and text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_stands_alone_and_shows_everything(place: Workplace, comparison: dict[str, Any]) -> None:
    page = Page()
    page.feed((place.folder / "comparison" / "comparison.html").read_text(encoding="utf-8"))
    assert not page.fetched
    assert not {"script", "link"} & set(page.tags)
    assert "b" not in page.tags  # the prompt's tags are text
    assert "The <b>class</b> statement" in page.text
    assert page.tags.count("svg") == 3  # two categories and all
    markdown = (place.folder / "comparison" / "comparison.md").read_text(encoding="utf-8")
    assert "| text (held_out) | figure | old | new | change | copy | change |" in markdown
    bits = comparison["models"][1]["texts"]["novel"]["bits_per_byte"]
    cell = f"{bits['value']:.3f} [{bits['low']:.3f}, {bits['high']:.3f}]"
    assert cell in page.text
    assert cell in markdown
    # The second model has no results: its cells say so, and the others' scores are there.
    (row,) = re.findall(r"^\| boolq \|.*$", markdown, re.MULTILINE)
    score = show_score(comparison["models"][0]["tasks"]["boolq"]["metrics"]["accuracy"])
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:5] == ["boolq", "accuracy (0-shot)", score, "-", "-"]
    assert cells[5] == score
    assert cells[6].startswith("+0.00")


def test_results_of_another_model_are_refused(
    place: Workplace, results: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = {**results, "identity": {**results["identity"], "model": "other"}}
    (place.folder / "foreign.json").write_text(json.dumps(foreign), encoding="utf-8")
    arguments = [str(place.base), str(place.new), "--measure_speed", "false", "--results"]
    arguments += [str(place.folder / "foreign.json"), "--output_dir", str(place.folder / "foreign")]
    capsys.readouterr()
    assert compare_models.main(arguments) == 2
    assert "measured on" in capsys.readouterr().err
    assert not (place.folder / "foreign" / "comparison.md").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["BASE"], "give at least two models"),
        (["BASE", "nowhere"], "models nowhere: no such folder"),
        (["a=BASE", "a=NEW"], "two models are called 'a'"),
        (["BASE", "NEW", "--prompts", "missing.txt"], "--prompts missing.txt: no such file"),
        (["BASE", "NEW", "--results", "missing.json"], "--results missing.json: no such file"),
        (
            ["BASE", "NEW", "--prompt_format", "sft", "--prompts", "a"],
            "--prompt_format sft: the model base has no chat",
        ),
        (["BASE", "x=NEW", "--prompts", "a", "b " * 2000], "--prompts, number 2, to base: the prompt has"),
        (["BASE", "NEW", "--prompts", "a", " "], "--prompts: one of them is empty"),
        (["BASE", "NEW", "--prompts", "caf\udce9"], "--prompts: not UTF-8"),
        (["BASE", "NEW", "--seed", "-1"], "--seed -1: must be at least 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_compared_is_refused(
    place: Workplace, arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, folder in (("BASE", place.base), ("NEW", place.new)):
        arguments = [one.replace(name, str(folder)) for one in arguments]
    capsys.readouterr()
    assert compare_models.main([*arguments, "--output_dir", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "comparison.json").exists()


def commands_of_the_document() -> list[list[str]]:
    """The words of every ``python scripts/...`` command, continued lines joined."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("python ")]


def test_commands_of_the_document_run(place: Workplace) -> None:
    """Those that need no whole benchmark run as they stand; the others are read."""
    ran = set()
    mains = {"evaluate": (evaluate.main, EvaluateConfig), "compare_models": (compare_models.main, CompareConfig)}
    for _, script, *words in commands_of_the_document():
        if not script.startswith("scripts/"):
            continue
        main, config_class = mains[Path(script).stem]
        for name, value in place.variables.items():
            words = [word.replace(f"${name}", str(value)) for word in words]
        assert not [word for word in words if "$" in word]
        config = parse_config(config_class, words, "")
        if set(getattr(config, "tasks", [])) <= {*SUBJECTS}:
            assert main(words) == 0, words
            ran.add(Path(script).stem)
    assert ran == set(mains)
    assert (place.folder / "work" / "comparison" / "comparison.html").is_file()
