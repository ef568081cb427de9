"""Commands in README and docs: parsed by the programs' own parsers, and run by a test unless a comment says why not."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import textwrap
from pathlib import Path

import pytest

from colossal_llama.config.cli import build_parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("README*.md")), *sorted((ROOT / "docs").glob("*.md"))]

RUN_BY_TESTS = {
    "README.md": "tests/e2e/test_readme.py",
    "README_zh.md": "tests/e2e/test_readme.py",
    "new-language.md": "tests/e2e/test_readme.py",
    "chat.md": "tests/e2e/test_chat_docs.py",
    "evaluation.md": "tests/e2e/test_evaluation.py",
    "benchmark.md": "tests/e2e/test_benchmark.py",
    "planner.md": "tests/e2e/test_benchmark.py",
}
"""Pages whose blocks a test runs as they stand; those of the benchmark that need GPUs are parsed there."""

PARSED_ONLY = re.compile(r"<!-- parsed only: (.+) -->")
"""Stands on the line before a block that no test runs, with the reason."""


def bash_blocks(page: Path) -> list[tuple[int, str, str]]:
    """Number of the first line, the line before it, and the text of each bash block."""
    lines = page.read_text(encoding="utf-8").splitlines()
    blocks = []
    for number, line in enumerate(lines):
        if line.strip() == "```bash":
            end = next(at for at in range(number + 1, len(lines)) if lines[at].strip() == "```")
            before = next((text for text in reversed(lines[:number]) if text.strip()), "")
            blocks.append((number + 1, before.strip(), textwrap.dedent("\n".join(lines[number + 1 : end]))))
    return blocks


def config_of(script: str) -> type:
    """The dataclass that a program parses its arguments into, found in its command's source."""
    source = (ROOT / script).read_text(encoding="utf-8")
    name = re.search(r"from (colossal_llama\.commands\.\w+) import main", source)
    assert name is not None, script
    module = importlib.import_module(name[1])
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    (call,) = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "parse_config"
    ]
    assert isinstance(call.args[0], ast.Name)
    return getattr(module, call.args[0].id)


def project_commands(block: str) -> list[tuple[str, list[str]]]:
    """Script and arguments of each command of this project in a block."""
    found = []
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for at, word in enumerate(words):
            if re.fullmatch(r"(scripts/\w+|inference_example)\.py", word) and "python" not in word:
                arguments = words[at + 1 :]
                ends = [place for place, text in enumerate(arguments) if text in ("|", ">", "&&", "||", ";")]
                found.append((word, arguments[: ends[0]] if ends else arguments))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_accepted_by_the_live_parsers(page: Path) -> None:
    for number, _, block in bash_blocks(page):
        for script, arguments in project_commands(block):
            leading = [word for word in arguments[:1] if not word.startswith("-")]
            parser = build_parser(config_of(script), "")
            positional = any(not action.option_strings for action in parser._actions)
            if leading and not positional:  # the command gives them to a flag: see with_leading_values
                arguments = [
                    word for at, word in enumerate(arguments) if any(w.startswith("-") for w in arguments[: at + 1])
                ]
            try:
                parser.parse_args(arguments)
            except Exception as error:
                raise AssertionError(f"{page.name}:{number}: {script} {arguments}: {error}") from error


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_run_by_a_test_or_says_why_not(page: Path) -> None:
    if page.name in RUN_BY_TESTS:
        runner = (ROOT / RUN_BY_TESTS[page.name]).read_text(encoding="utf-8")
        assert page.name in runner, f"{RUN_BY_TESTS[page.name]} does not name {page.name}"
        return
    for number, before, _ in bash_blocks(page):
        assert PARSED_ONLY.fullmatch(before), f"{page.name}:{number}: no test runs this; say why on the line before"
