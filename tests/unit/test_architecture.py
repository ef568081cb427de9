"""Who may import whom, as docs/architecture.md says."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "colossal_llama"

LAYERS = (
    {"constants", "errors", "registry", "quiet", "atomic", "json_records", "json_files", "html_page", "tables"},
    {"config", "distributed", "schedule", "state"},
    {"checkpoint", "data", "metrics", "model", "optim", "plugins", "tokenizer"},
    {"trainer", "evaluation", "generation", "planning"},
    {"benchmarking", "stages", "chat", "comparison"},
    {"quickstart"},
    {"commands"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
SIDEWAYS = {
    *(("registry", "errors"), ("atomic", "errors"), ("json_records", "errors"), ("data", "tokenizer")),
    *(("json_files", "errors"), ("json_files", "json_records")),
}
"""The imports inside one layer that are allowed."""

MAY_USE_COLOSSALAI = {"distributed", "plugins", "optim", "checkpoint"}
HEAVY = {"torch", "transformers", "datasets", "colossalai"}

FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts)


def imports(file: Path) -> Iterator[tuple[str, bool]]:
    """Every imported module and whether it is imported when the file is; type checking does not count as that."""

    def walk(node: ast.AST, at_import: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, at_import) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{file}: a relative import"
                yield str(child.module), at_import
                if child.module == "colossal_llama":
                    yield from ((f"colossal_llama.{alias.name}", at_import) for alias in child.names)
            lazy = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            lazy |= isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            yield from walk(child, at_import and not lazy)

    yield from walk(ast.parse(file.read_text(encoding="utf-8")), True)


def test_every_module_belongs_to_a_layer() -> None:
    assert {module_name(file).split(".")[0] for file in FILES} - {"__init__"} == set(LEVEL)


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_imports_go_downwards(file: Path) -> None:
    own = module_name(file).split(".")[0]
    for name, _ in imports(file):
        if not name.startswith("colossal_llama."):
            continue
        other = name.split(".")[1]
        if other != own and (own, other) not in SIDEWAYS:
            assert LEVEL[other] < LEVEL[own], f"{module_name(file)} may not import {name}"


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_heavy_libraries_are_imported_where_they_may_be(file: Path) -> None:
    own = module_name(file)
    for name, at_import in imports(file):
        library = name.split(".")[0]
        if library == "colossalai":
            assert {own, own.split(".")[0]} & MAY_USE_COLOSSALAI, f"{own} may not import {name}"
            assert not at_import, f"{own} imports {name} at its top: its import costs seconds"
        if library in HEAVY and own.split(".")[0] in ("config", "commands"):
            assert not at_import, f"{own} imports {name} at its top: --help must not wait for it"


@pytest.mark.parametrize(
    "script", [*sorted((ROOT / "scripts").glob("*.py")), ROOT / "inference_example.py"], ids=lambda path: path.name
)
def test_scripts_are_shims_whose_help_is_light(script: Path) -> None:
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 8
    body = (
        "import runpy, sys\n"
        f"sys.argv = [{str(script)!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(script)!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
        f"print('heavy:', sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.startswith("usage:")
    assert done.stdout.endswith("heavy: []\n")


def test_preparation_does_not_import_colossalai() -> None:
    body = (
        "import sys\n"
        "import colossal_llama.data.pipeline, colossal_llama.tokenizer.expansion, colossal_llama.model.embeddings\n"
        "assert 'colossalai' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", body], check=True, cwd=ROOT)
