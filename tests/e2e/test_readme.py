"""README.md's five steps and docs/new-language.md, run in order as they stand, on a tiny model and two processes."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.helpers.assets import sanguo_text
from tests.helpers.tiny import english_text, save_tiny_model

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def bash_blocks(text: str) -> list[str]:
    """The commands of each bash block."""
    blocks = re.findall(r"^ *```bash\n.*?^ *```$", text, re.MULTILINE | re.DOTALL)
    return ["\n".join(textwrap.dedent(block).splitlines()[1:-1]) for block in blocks]


def code_blocks() -> list[str]:
    """The bash blocks of the section on the five steps: the variables, then the steps."""
    (section,) = re.findall(r"^## The five steps\n(.*?)^## ", README, re.MULTILINE | re.DOTALL)
    return bash_blocks(section)


def write_records(folder: Path, records: list[dict]) -> Path:
    folder.mkdir()
    lines = (json.dumps(record, ensure_ascii=False) for record in records)
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def with_context(model: Path, length: int) -> Path:
    """Say in the model's configuration that it takes rows as long as the commands train on."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": length}), encoding="utf-8")
    return model


def variables(folder: Path) -> dict[str, Path]:
    """Small values for the variables that the README asks its reader to set."""
    chinese, english = sanguo_text(), english_text()
    texts = [chinese[start : start + 60] for start in range(0, 2400, 60)]
    texts += [english[start : start + 150] for start in range(0, 1500, 150)]
    unseen = [chinese[start : start + 60] for start in range(2400, 3000, 60)]
    conversations = [
        {"messages": [{"from": "human", "content": text[:30]}, {"from": "assistant", "content": text[30:]}]}
        for text in texts[:20]
    ]
    return {
        "BASE": with_context(save_tiny_model(folder / "base"), 1024),
        "TEXT": write_records(folder / "text", [{"source": "", "target": text, "category": "a"} for text in texts]),
        "SFT_TEXT": write_records(folder / "conversations", conversations),
        "HELD_OUT": write_records(
            folder / "held_out", [{"source": "", "target": one, "category": "a"} for one in unseen]
        ),
        "NEW_TOKENS": folder / "new_tokens.jsonl",
        "WORK": folder / "work",
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder ``$WORK`` and what the five steps printed."""
    exports, *steps = code_blocks()
    values = variables(tmp_path_factory.mktemp("readme"))
    assert len(steps) == 5
    return values["WORK"], run_blocks(exports, steps, values)


def run_blocks(exports: str, steps: list[str], values: dict[str, Path]) -> str:
    """Run blocks of commands in one shell that stops at the first failure; returns what they printed.

    Args:
        exports: the block that sets the variables; its names must be those of ``values``.
        steps: the other blocks.
        values: what the variables are set to instead.
    """
    assert re.findall(r"^export (\w+)=", exports, re.MULTILINE) == list(values)
    setting = "\n".join(f"export {name}={shlex.quote(str(value))}" for name, value in values.items())
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join([setting, *steps])],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def ten_steps(run: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder ``$WORK`` of docs/new-language.md and what its commands printed."""
    exports, *steps = bash_blocks((ROOT / "docs" / "new-language.md").read_text(encoding="utf-8"))
    folder, readme = tmp_path_factory.mktemp("new-language"), run[0].parent
    held_out = [
        {"source": "", "target": sanguo_text()[at : at + 100], "category": "zh"} for at in range(5000, 6000, 100)
    ]
    held_out += [
        {"source": "", "target": english_text()[at : at + 200], "category": "en"} for at in range(3000, 5000, 200)
    ]
    english = [english_text()[start : start + 150] for start in range(0, 1500, 150)]
    values = {
        "BASE": readme / "base",
        "TEXT": readme / "text",
        "ENGLISH": write_records(
            folder / "english", [{"source": "", "target": one, "category": "en"} for one in english]
        ),
        "SFT_TEXT": readme / "conversations",
        "HELD_OUT": write_records(folder / "held_out", held_out) / "records.jsonl",
        "WORK": folder / "work",
    }
    return values["WORK"], run_blocks(exports, steps, values)


def test_new_tokens_shorten_the_text_and_have_rows(run: tuple[Path, str]) -> None:
    from transformers import AutoConfig, AutoTokenizer

    work, _ = run
    old = AutoTokenizer.from_pretrained(str(work.parent / "base"))
    new = AutoTokenizer.from_pretrained(str(work / "model"))
    text = sanguo_text()[:2000]
    assert len(new) > len(old)
    assert len(new.encode(text)) < 0.8 * len(old.encode(text))
    rows = AutoConfig.from_pretrained(str(work / "model")).vocab_size
    assert rows >= len(new)
    assert rows % 64 == 0


def test_rows_hold_exactly_the_tokens_of_the_text(run: tuple[Path, str]) -> None:
    work, printed = run
    for name, parts in (("data", 4), ("sft_data", 2)):
        manifest = json.loads((work / name / "arrow" / "manifest.json").read_text(encoding="utf-8"))
        assert len(manifest["parts"]) == parts
        assert f"tokens produced {manifest['tokens']:,}, in rows {manifest['tokens']:,}" in printed


def test_each_stage_trains_and_the_first_one_trains_the_embeddings_only(run: tuple[Path, str]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    work, printed = run
    assert "training the embeddings only" in printed
    folders = [work / "model", *(work / stage / "modeling" for stage in ("stage1", "stage2", "sft"))]
    models = [AutoModelForCausalLM.from_pretrained(str(folder)).state_dict() for folder in folders]
    embeddings = {"model.embed_tokens.weight", "lm_head.weight"}

    def changed(before: dict, after: dict) -> set[str]:
        # The exported weights are bf16, so compare what both can hold.
        return {name for name in before if not torch.equal(before[name].bfloat16(), after[name].bfloat16())}

    assert changed(models[0], models[1]) == embeddings
    assert changed(models[1], models[2]) > embeddings
    assert changed(models[2], models[3]) > embeddings
    for stage in ("stage1", "stage2", "sft"):
        lines = (work / stage / "logs" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, len(lines) + 1))
        assert list((work / stage / "logs").glob("events.out.tfevents.*"))
        assert json.loads((work / stage / "config.json").read_text())["plugin"] == "zero2"


def test_inference_answers_with_plain_transformers(run: tuple[Path, str]) -> None:
    from transformers import AutoTokenizer

    work, printed = run
    assert printed.count("[answer]\n") == 2
    assert "[prompt]\n明月松间照，\n[answer]\n" in printed
    template = AutoTokenizer.from_pretrained(str(work / "sft" / "modeling")).chat_template
    assert template
    assert not AutoTokenizer.from_pretrained(str(work / "stage2" / "modeling")).chat_template


def test_ten_steps_lead_to_a_model_that_is_compared_and_answers(ten_steps: tuple[Path, str]) -> None:
    work, printed = ten_steps
    stages = json.loads((work / "stages" / "stages.json").read_text(encoding="utf-8"))["stages"]
    assert [stage["stage"] for stage in stages] == ["stage1", "stage2", "sft"]
    table = (work / "comparison" / "comparison.md").read_text(encoding="utf-8")
    assert "zh" in table
    assert "en" in table
    assert (work / "comparison" / "comparison.html").is_file()
    assert f"{work}/data/arrow" not in printed.splitlines()[-1]  # the chat's answer is the last that is printed


def test_the_chinese_readme_has_the_same_commands_tables_and_links() -> None:
    chinese = (ROOT / "README_zh.md").read_text(encoding="utf-8")
    assert bash_blocks(chinese) == bash_blocks(README)
    assert set(re.findall(r"\]\((docs/[^)]+)\)", chinese)) == set(re.findall(r"\]\((docs/[^)]+)\)", README))
    assert re.findall(r"-?\d+\.\d+", chinese) == re.findall(r"-?\d+\.\d+", README)


def test_every_linked_file_exists() -> None:
    for name in (*ROOT.glob("README*.md"), ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", name.read_text(encoding="utf-8")):
            assert (name.parent / target).exists(), f"{name.name} links to {target}"


def test_every_flag_in_the_documents_exists() -> None:
    from colossal_llama.config.cli import build_parser
    from tests.unit.test_cli_table import TABLE

    known = {option for one in TABLE for action in build_parser(one, "")._actions for option in action.option_strings}
    launcher = {"--nproc_per_node", "--hostfile", "--master_port", "--host", "--help", "--ssh-port"}
    launcher |= {"--nnodes", "--node_rank", "--master_addr"}
    slurm = {"--nodes", "--ntasks-per-node", "--gpus-per-node", "--time", "--signal", "--requeue"}
    tools = slurm | {"--check", "--fix", "--no-deps", "--standalone"}
    programs = [*(ROOT / "benchmarks").glob("*.py"), ROOT / "tests" / "helpers" / "fault_table.py"]
    benchmarks = "".join(path.read_text(encoding="utf-8") for path in programs)
    tools |= set(re.findall(r'add_argument\(\s*"(--[a-z][\w-]*)"', benchmarks))
    for name in (*ROOT.glob("README*.md"), *(ROOT / "docs").glob("*.md")):
        found = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", name.read_text(encoding="utf-8")))
        assert found <= known | launcher | tools, name.name
