"""Which model trains with which plugin and layout, measured.

    python -m benchmarks.model_matrix [--models NAME ...] [--layouts NAME ...] [--output FILE.json] [--document]

Each cell runs train.py's main in two gloo processes on a tiny random model for three steps. It counts where losses,
gradient norms and exported weights agree with plain PyTorch in one process, and the export opens with transformers;
fp32 where Colossal-AI has it (all but gemini), else bf16. What train.py refuses is tried all the same. Cells that
``--output`` has already are not measured again; ``--document`` writes the table into docs/plugins.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from colossal_llama.plugins import PLUGINS, PluginOptions
from colossal_llama.plugins.models import POLICIES
from tests.helpers.model_matrix import GLOBAL_BATCH, LAYOUTS, LR, STEPS, measure_cell
from tests.helpers.model_zoo import ZOO, save_zoo_model
from tests.helpers.reference import Reference, train_reference
from tests.helpers.tiny import save_rows

Cells = dict[str, dict[str, str]]
"""For each model and layout what went wrong, an empty string for nothing."""

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "plugins.md"
MARKERS = ("<!-- model-matrix -->", "<!-- /model-matrix -->")
SPLITS = {
    "3d": PluginOptions("fp32", 1.0),
    "tp2": PluginOptions("fp32", 1.0, tp=2),
    "pp2": PluginOptions("fp32", 1.0, pp=2),
    "split_gather": PluginOptions("fp32", 1.0, tp=2, sp_mode="split_gather"),
    "ring": PluginOptions("fp32", 1.0, tp=2, sp_mode="ring"),
    "all_to_all": PluginOptions("fp32", 1.0, sp=2, sp_mode="all_to_all"),
}
"""The columns of plugin 3d, which plugins/models.py decides on."""

HEADINGS = {
    "3d": "3d, data parallel",
    "tp2": "`--tp`",
    "pp2": "`--pp`",
    "split_gather": "sp `split_gather`",
    "ring": "sp `ring`",
    "all_to_all": "sp `all_to_all`",
}


def measure(models: list[str], layouts: list[str], output: Path | None) -> Cells:
    """Measure what is missing; the file is written after every cell, so that a stopped run goes on."""
    cells: Cells = json.loads(output.read_text(encoding="utf-8")) if output and output.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        rows = save_rows(root / "rows", STEPS * GLOBAL_BATCH)
        prepared: dict[str, tuple[Path, Reference]] = {}
        for layout in layouts:
            for number, model in enumerate(models):
                if layout in cells.get(model, {}):
                    continue
                if model not in prepared:
                    folder = save_zoo_model(root / f"model-{number}", model)
                    prepared[model] = (folder, train_reference(folder, rows, GLOBAL_BATCH, LR))
                folder, reference = prepared[model]
                with tempfile.TemporaryDirectory(dir=root) as run:
                    problem = measure_cell(Path(run), folder, rows, layout, reference, {"UNDO": "policies"})
                cells.setdefault(model, {})[layout] = problem
                print(f"{model}, {layout}: {problem or 'yes'}", flush=True)
                if output:
                    output.write_text(json.dumps(cells, indent=2) + "\n", encoding="utf-8")
    return cells


def markdown(cells: Cells) -> str:
    """The table, with a numbered reason for each cell that does not train."""
    layouts = [layout for layout in LAYOUTS if any(layout in row for row in cells.values())]
    reasons: list[str] = []

    def mark(problem: str | None) -> str:
        if problem is None:
            return ""
        if not problem:
            return "yes"
        if problem not in reasons:
            reasons.append(problem)
        return f"- ({reasons.index(problem) + 1})"

    lines = [
        "| model | " + " | ".join(HEADINGS.get(layout, layout) for layout in layouts) + " |",
        "|---" * (len(layouts) + 1) + "|",
    ]
    for model in [name for name in ZOO if name in cells]:
        lines.append(f"| {model} | " + " | ".join(mark(cells[model].get(layout)) for layout in layouts) + " |")
    return "\n".join([*lines, "", *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1))])


def contradictions(cells: Cells) -> list[str]:
    """What train.py refuses although it was measured to train rightly, and the other way round."""
    found = []
    for model, row in cells.items():
        model_type, _ = ZOO[model]
        for layout in row:
            policy = POLICIES.get(model_type)
            refused = model_type in PLUGINS.get(LAYOUTS[layout][1]).cannot_train
            if layout in SPLITS:
                refused = policy is None or bool(policy.refused(SPLITS[layout]))
            if refused != bool(row[layout]):
                found.append(
                    f"{model}, {layout}: {'refused' if refused else 'not refused'}, but {row[layout] or 'right'}"
                )
    return found


def write_document(table: str) -> None:
    """Put the table between the markers of docs/plugins.md."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, rest = text.split(MARKERS[0])
    _, after = rest.split(MARKERS[1])
    DOCUMENT.write_text(f"{before}{MARKERS[0]}\n{table}\n{MARKERS[1]}{after}", encoding="utf-8")


def main() -> int:
    """Measure, print the table and write it where asked; 1 where plugins/models.py says otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(ZOO), choices=list(ZOO), help="default: all")
    parser.add_argument("--layouts", nargs="+", default=list(LAYOUTS), choices=list(LAYOUTS), help="default: all")
    parser.add_argument("--output", type=Path, help="JSON file of all cells; goes on where it ends")
    parser.add_argument("--document", action="store_true", help="write the table into docs/plugins.md")
    arguments = parser.parse_args()
    cells = measure(arguments.models, arguments.layouts, arguments.output)
    table = markdown(cells)
    print(f"\n{table}")
    if arguments.document:
        write_document(table)
    wrong = contradictions(cells)
    print("\n".join(f"correct colossal_llama/plugins/models.py: {line}" for line in wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
