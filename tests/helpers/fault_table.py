"""What may be wrong with every file that a command reads or writes, and what must come of it.

The rule: a command ends with an exit code other than 0 and one line ``error: ...`` that names the file, or the folder
that leads to it, without a traceback, and leaves everything as it was. :data:`TOLERATED` holds the exceptions, where a
file is optional or a fault is none, with their reasons.

``python -m tests.helpers.fault_table`` runs the whole product (or ``--commands``, ``--faults`` of it) and prints what
does not keep the rule.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.helpers.fault_commands import COMMANDS, Command
from tests.helpers.fault_inputs import INPUTS, build_inputs, main_of
from tests.helpers.fault_runner import HUNG, Done, Run, import_everything, run_all

OUT = Path("out")


# ---- what may be wrong with a file

Spoil = Callable[[Path], None]
DEEP = b"[" * 100_000


def _replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def _half(path: Path) -> None:
    content = path.read_bytes()
    _replace(path, content[: len(content) // 2])


def _not_utf8(path: Path) -> None:
    content = path.read_bytes()
    place = len(content) // 2
    _replace(path, content[:place] + b"\xff" + content[place:])


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _dangle(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


ANY: dict[str, Spoil] = {
    "missing": Path.unlink,
    "empty": lambda path: _replace(path, b""),
    "half": _half,
    "folder": _folder,
    "unreadable": lambda path: path.chmod(0),
    "dangling link": _dangle,
    "noise": lambda path: _replace(path, bytes(range(256)) * 16),
}
JSON: dict[str, Spoil] = {
    "top is a list": lambda path: _replace(path, b"[1]"),
    "top is text": lambda path: _replace(path, b'"text"'),
    "top is a number": lambda path: _replace(path, b"7"),
    "top is null": lambda path: _replace(path, b"null"),
    "top is an empty object": lambda path: _replace(path, b"{}"),
    "nested deeply": lambda path: _replace(path, DEEP),
    "not UTF-8": lambda path: _not_utf8(path),
}
TEXT: dict[str, Spoil] = {
    "not UTF-8": lambda path: _not_utf8(path),
}
JSON_SUFFIXES = (".json", ".yaml")
TEXT_SUFFIXES = (".jsonl", ".txt", ".csv", ".vec")
MOST_KEYS = 40
STORED_WHOLE = "results/parts/*"
"""Files that only their own program writes, each at once: what is in one that is whole JSON is not looked at again."""


def file_faults(path: Path) -> dict[str, Spoil]:
    """What may be wrong with a whole file of this kind."""
    if path.suffix in JSON_SUFFIXES:
        return ANY | JSON
    if path.suffix in TEXT_SUFFIXES or path.name == "hostfile":
        return ANY | TEXT
    return ANY


def field_faults(path: Path) -> dict[str, Spoil]:
    """What may be wrong with the fields of a JSON file: each missing, null, or of another type."""
    if path.suffix not in JSON_SUFFIXES:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # YAML
        return {}
    faults: dict[str, Spoil] = {}
    for keys, value in _fields(content, ()):
        name = ".".join(map(str, keys))
        for label, change in (("missing", _REMOVE), ("null", None), ("of another type", _other_type(value))):
            if value is not None or change is not None:
                faults[f"{name} {label}"] = _changer(keys, change)
    return faults


_REMOVE = object()


def _other_type(value: Any) -> Any:
    return 7 if isinstance(value, str) else "text"


def _fields(content: Any, keys: tuple) -> Iterator[tuple[tuple, Any]]:
    """Paths to the fields of a document, with their values; of a list only its first entry, of large tables none."""
    if isinstance(content, dict) and len(content) <= MOST_KEYS and len(keys) < 4:
        for key, value in content.items():
            yield (*keys, key), value
            yield from _fields(value, (*keys, key))
    elif isinstance(content, list) and content and len(keys) < 4:
        yield from _fields(content[0], (*keys, 0))


def _changer(keys: tuple, value: Any) -> Spoil:
    def change(path: Path) -> None:
        content = json.loads(path.read_text(encoding="utf-8"))
        holder = content
        for key in keys[:-1]:
            holder = holder[key]
        if value is _REMOVE:
            del holder[keys[-1]]
        else:
            holder[keys[-1]] = value
        _replace(path, json.dumps(content, ensure_ascii=False).encode())

    return change


# ---- what may be wrong with an output


def _block_by_file(out: Path, target: Path) -> None:
    out.rmdir()
    out.write_bytes(b"in the way")


def _block_target(out: Path, target: Path) -> None:
    """Put a file where a folder is to be, and a folder where a file is to be."""
    if target.suffix:
        target.mkdir()
    else:
        target.write_bytes(b"in the way")


BEFORE_WORK = ("unwritable", "below a file")
"""What can be seen before any work is done."""

FULL_AT = (0, 100, 3000, 60_000)
"""Sizes in bytes at which files cannot grow any more."""
OUTPUT_FAULTS: dict[str, Callable[[Path, Path], None]] = {
    "unwritable": lambda out, target: out.chmod(0o555),
    "below a file": _block_by_file,
    "in the way": _block_target,
    **{f"full at {size} bytes": lambda out, target: None for size in FULL_AT},
}


# ---- what must come of it

REFUSED, TAKEN, EITHER = "refused", "taken", "refused or taken"
EMPTY_OBJECT = "top is an empty object"
TOLERATED: tuple[tuple[str, str, str, str], ...] = (
    ("*", "[!r]*/special_tokens_map.json", "missing", "tokenizer_config.json may hold the special tokens"),
    ("*", "[!r]*/special_tokens_map.json", EMPTY_OBJECT, "it names only tokens that tokenizer_config.json does not"),
    ("*", "[!r]*/generation_config.json", "missing", "transformers' defaults take its place"),
    ("*", "[!r]*/generation_config.json", EMPTY_OBJECT, "transformers' defaults take its place"),
    ("prepare_*", "model/tokenizer_config.json", "missing", "config.json says which class the tokenizer has"),
    ("prepare_*", "model/tokenizer_config.json", EMPTY_OBJECT, "config.json says which class the tokenizer has"),
    ("tokenizer_report", "model/tokenizer_config.json", "missing", "config.json says which class the tokenizer has"),
    ("tokenizer_report", "model/tokenizer_config.json", EMPTY_OBJECT, "config.json says which class the tokenizer has"),
    ("*", "adapters/tokenizer_config.json", "missing", "the base model's tokenizer is taken"),
    ("*", "adapters/base_model.json", "missing", "adapters made elsewhere have no fingerprint of their base"),
    ("init_model*", "wide/expansion.json", "missing", "it is for people"),
    ("init_model*", "wide/expansion.json", "[!u]*", "copied, never read: it is for people"),
    ("prepare_*", "texts/*", "missing", "the others in the folder are read"),
    ("prepare_*", "texts/*", "folder", "a subfolder, which the report names as not read"),
    (
        "prepare_*",
        "texts/*.json*",
        "empty",
        "a shard without records is no fault; inputs without any are",
    ),
    ("train_tokenizer", "texts/*.json*", "empty", "as above"),
    ("evaluate", "held_out/*", "empty", "as above"),
    ("init_tokenizer", "held_out/*", "empty", "as above"),
    ("train_tokenizer", "held_out/*", "empty", "as above"),
    ("*", "held_out/text.txt", "half", "half of a plain text is a plain text"),
    ("*", "prompts/prompts.txt", "half", "half of a plain text is a plain text"),
    ("plan --config", "settings/plan.yaml", "empty", "it sets nothing"),
    ("plan --config", "settings/plan.yaml", "top is null", "it sets nothing"),
    ("plan --config", "settings/plan.yaml", EMPTY_OBJECT, "it sets nothing"),
    ("*", "data/arrow/manifest.json", "missing", "datasets of other programs have none"),
    ("inspect_dataset", "data/arrow/manifest.json", EMPTY_OBJECT, "shown as that of another program"),
    ("train --load_checkpoint auto", "run/checkpoints/*", "*", "says so, and goes on from the checkpoint before it"),
    ("train (its own logs)", "run/logs/*", "missing", "begun anew"),
    ("train (its own logs)", "run/logs/*", "empty", "begun anew"),
    ("train (its own logs)", "run/logs/*", "half", "what a kill cut off is left out"),
    ("train (its own logs)", "run/logs/*", "dangling link", "begun anew"),
    ("evaluate (a second time)", "results/parts/*", "[!f]*", "measured again"),
)
"""Command, file and fault (patterns) of what is taken without an error, and why."""


BY_CHANCE = (
    ("init_model (text vectors)", "vectors/vectors.vec", "half", "a number that was cut is a number"),
    ("run_stages*", "settings/hostfile", "half", "half of a host's name may be another's"),
    ("evaluate*", "benchmarks/*", "half", "between two lines; files say nowhere how many they have"),
)
"""Command, file and fault (patterns) of what shows by chance only: where a file is cut at a good place, and why."""


@dataclass(frozen=True)
class Case:
    """One fault of one file of one command.

    Attributes:
        command: its name in :data:`COMMANDS`.
        place: the file below ``in``, or what is written below ``out``.
        fault: its name.
        is_output: whether ``place`` is written.
        is_field: whether it is a field of a file that is wrong: the command need not read it.
    """

    command: str
    place: str
    fault: str
    is_output: bool = False
    is_field: bool = False

    @property
    def expected(self) -> str:
        """What must come of it."""
        if any(self.tolerated_by(entry) for entry in TOLERATED):
            return TAKEN
        # A larger limit than what is written is none.
        is_open = self.is_field or (self.limit or 0) > 0 or any(self.tolerated_by(entry) for entry in BY_CHANCE)
        return EITHER if is_open else REFUSED

    def tolerated_by(self, entry: tuple[str, str, str, str]) -> bool:
        """Whether an entry of :data:`TOLERATED` is about this case."""
        patterns = zip((self.command, self.place, self.fault), entry[:3], strict=True)
        return kind_of(self) == "file" and all(fnmatch.fnmatchcase(name, pattern) for name, pattern in patterns)

    @property
    def limit(self) -> int | None:
        """The size in bytes at which files cannot grow any more; None: they can."""
        full = re.fullmatch(r"full at (\d+) bytes", self.fault)
        return int(full[1]) if full and self.is_output else None

    def __str__(self) -> str:
        return f"{self.command}: {self.place}: {self.fault}"


@dataclass
class Outcome:
    """What came of a case: ``refused``, ``taken``, or what is wrong with it."""

    case: Case
    result: str
    done: Done
    problems: list[str] = field(default_factory=list)


class Laboratory:
    """Whole inputs, and the faults of each command on copies of them.

    Args:
        folder: for everything; must be empty.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._whole = folder / "whole"
        build_inputs(self._whole)
        self._numbers = iter(range(10**9))

    def files(self, command: Command) -> list[str]:
        """The files that a command reads, below ``in``."""
        root = self._whole / INPUTS
        found = []
        for pattern in command.reads:
            names = sorted(path.relative_to(root).as_posix() for path in root.glob(pattern))
            assert names, f"no input {pattern}"
            found += names
        return found

    def cases(self, name: str) -> list[Case]:
        """Every case of a command."""
        command = COMMANDS[name]
        cases = []
        for file in self.files(command):
            path = self._whole / INPUTS / file
            cases += [Case(name, file, fault) for fault in file_faults(path)]
            if not fnmatch.fnmatchcase(file, STORED_WHOLE):
                cases += [Case(name, file, fault, is_field=True) for fault in field_faults(path)]
        cases += [Case(name, place, fault, is_output=True) for place in command.writes for fault in OUTPUT_FAULTS]
        return cases

    def run_whole(self, names: Iterable[str], jobs: int) -> dict[str, Done]:
        """Run commands on whole inputs, and say which files they opened."""
        names = list(names)
        folders = [self._copy(COMMANDS[name]) for name in names]
        runs = [
            Run(main_of(COMMANDS[name].module), tuple(COMMANDS[name].flags.split()), folder, COMMANDS[name].stdin,
                opened_below=folder / INPUTS)
            for name, folder in zip(names, folders, strict=True)
        ]  # fmt: skip
        return {names[number]: done for number, done in run_all(runs, jobs)}

    def run(self, cases: Sequence[Case], jobs: int) -> Iterator[Outcome]:
        """Run cases; yields the outcome of each as it ends."""
        prepared: dict[int, tuple[Path, dict[str, tuple]]] = {}

        def runs() -> Iterator[Run]:
            for number, case in enumerate(cases):
                command = COMMANDS[case.command]
                folder = self._copy(command)
                self._spoil(case, folder)
                prepared[number] = folder, listing(folder)
                main = main_of(command.module)
                yield Run(
                    main, tuple(command.flags.split()), folder, command.stdin, file_limit=case.limit, as_plain_user=True
                )

        for number, done in run_all(runs(), jobs):
            folder, before = prepared.pop(number)
            yield judge(cases[number], done, before, listing(folder))
            remove(folder)

    def _copy(self, command: Command) -> Path:
        folder = self._folder / f"case-{next(self._numbers)}"
        (folder / OUT).mkdir(parents=True)
        (folder / INPUTS).mkdir()
        used = re.findall(r"(?:^|[=, ])in/(\w+)", command.flags)
        names = {*used, *(read.split("/")[0] for read in command.reads)}
        names |= {"staged", "data", "model"} if command.module == "run_stages" else set()
        names |= {"model"} if "adapters" in names else set()
        names |= {"model", "data"} if "--config in/" in command.flags and command.module == "train" else set()
        for name in sorted(names):
            shutil.copytree(self._whole / INPUTS / name, folder / INPUTS / name)
        return folder

    def _spoil(self, case: Case, folder: Path) -> None:
        if case.is_output:
            OUTPUT_FAULTS[case.fault](folder / OUT, folder / OUT / case.place)
            return
        path = folder / INPUTS / case.place
        (file_faults(path) | field_faults(path))[case.fault](path)


def listing(folder: Path) -> dict[str, tuple]:
    """Everything below a folder, with size and time of modification of files."""
    found: dict[str, tuple] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found[path.relative_to(folder).as_posix()] = (
            ("folder",) if path.is_dir() else (status.st_size, status.st_mtime_ns)
        )
    return found


def remove(folder: Path) -> None:
    """Delete a case's folder, whatever its permissions are."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(folder)


def judge(case: Case, done: Done, before: dict[str, tuple], after: dict[str, tuple]) -> Outcome:
    """Compare what came of a case with what must."""
    result = TAKEN if done.code == 0 else REFUSED
    problems = [] if case.expected in (result, EITHER) else [f"{result}, expected {case.expected}"]
    everything = done.stdout + done.stderr
    if "Traceback (most recent call last)" in everything:
        problems.append("a traceback")
    if HUNG in everything or done.code < 0:
        problems.append(f"ended by signal {-done.code}")
    if (
        result == TAKEN
        and case.limit
        and any(kept == (case.limit,) for kept in (entry[:1] for entry in after.values()))
    ):
        problems.append("a file was cut off")
    if result == REFUSED:
        problems += _problems_of_refusal(case, done, before, after)
    return Outcome(case, result, done, problems)


def _problems_of_refusal(case: Case, done: Done, before: dict[str, tuple], after: dict[str, tuple]) -> Iterator[str]:
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    if len(errors) != 1:
        yield f"{len(errors)} error lines"
    elif not any(name in errors[0] for name in _names(case)):
        yield "the error line does not name the file"
    elif case.fault in BEFORE_WORK and not re.search(r"is a file; give|nothing may be written into", errors[0]):
        yield "found out only after the work"
    elif len(errors[0]) > 600:
        yield f"an error line of {len(errors[0])} characters"
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    keeps = COMMANDS[case.command].keeps
    changed = [name for name in changed if not any(fnmatch.fnmatchcase(name, pattern) for pattern in keeps)]
    if changed:
        yield f"left behind: {', '.join(changed[:5])}"


def _names(case: Case) -> list[str]:
    """What may lead a user to the file: its path, or that of a folder that a flag names."""
    if case.is_output:
        # Tokenizers that are tried out are written below the folder for temporary files.
        return [f"{OUT}/", f"{OUT}:", "wider-tokenizer-"]
    path = INPUTS / case.place
    if case.is_field:  # what a changed setting leads to may be said of another file
        return ["--", f"{INPUTS}/"]
    if case.command == "run_stages" and case.place.startswith("model/"):
        return ["the weights it starts from", str(path)]
    return [str(one) for one in (path, *path.parents[:-2])]


def sample(cases: Sequence[Case]) -> list[Case]:
    """A part of a command's cases: all of its outputs, a fifth of the faults of its files, a few of their fields.

    The faults that are left out differ from file to file, so that every file has some and every fault is there.
    """
    files = list(dict.fromkeys(case.place for case in cases))
    chosen = []
    for case, number in zip(cases, _numbers_in_files(cases), strict=True):
        stride = {"output": 1, "file": 5, "field": 25}[kind_of(case)]
        if (number + files.index(case.place)) % stride == 0:
            chosen.append(case)
    return chosen


def _numbers_in_files(cases: Sequence[Case]) -> Iterator[int]:
    counts: Counter[tuple[str, str]] = Counter()
    for case in cases:
        yield counts[case.place, kind_of(case)]
        counts[case.place, kind_of(case)] += 1


def summary_lines(cases: Sequence[Case]) -> list[str]:
    """A Markdown table of the product: how many files of each command have how many faults."""
    lines = ["| command | files read | faults of them | outputs | faults of them |", "|---|---:|---:|---:|---:|"]
    for module in dict.fromkeys(COMMANDS[case.command].module for case in cases):
        own = [case for case in cases if COMMANDS[case.command].module == module]
        columns = []
        for kind in ("file", "output"):
            found = [case for case in own if kind_of(case) == kind]
            columns += [len({case.place for case in found}), len(found)]
        script = "inference_example" if module == "inference" else module
        lines.append(f"| `{script}.py` | " + " | ".join(map(str, columns)) + " |")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the product, or a part of it; returns 1 where something does not keep the rule."""
    parser = argparse.ArgumentParser(description="Damage every input of every command.")
    parser.add_argument("--commands", nargs="+", default=["*"], help="names in COMMANDS, as patterns")
    parser.add_argument("--places", nargs="+", default=["*"], help="files, as patterns")
    parser.add_argument("--faults", nargs="+", default=["*"], help="names of faults, as patterns")
    parser.add_argument("--kinds", nargs="+", default=["file", "field", "output"], help="of cases")
    parser.add_argument("--sample", action="store_true", help="a part of the product only, as the tests run it")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--messages", action="store_true", help="print every error line")
    parser.add_argument("--report", type=Path, help="JSON file for what came of everything")
    options = parser.parse_args(arguments)

    import_everything()
    with tempfile.TemporaryDirectory() as folder:
        report = _run_product(Laboratory(Path(folder)), options)
    if options.report is not None:
        options.report.write_text(json.dumps(report), encoding="utf-8")
    print({name: len(cases) for name, cases in report["kept"].items()})
    broken = [problem for problems in report["broken"].values() for problem in problems]
    print(f"{sum(map(len, report['kept'].values()))} kept the rule, {len(broken)} did not")
    return int(bool(broken))


def _run_product(laboratory: Laboratory, options: argparse.Namespace) -> dict[str, Any]:
    """Run what the options choose; gives for each command the problems of whole inputs, and the cases by outcome."""
    names = [name for name in COMMANDS if _matches(name, options.commands)]
    report: dict[str, Any] = {"whole": {}, "kept": {name: [] for name in names}, "broken": {name: [] for name in names}}
    for name, done in laboratory.run_whole(names, options.jobs).items():
        unlisted = [file for file in done.opened if not is_listed(COMMANDS[name], file)]
        report["whole"][name] = [f"opens {file}, which is not in the table" for file in unlisted]
        if done.code:
            report["whole"][name].append(f"exit code {done.code}: {done.stderr[-2000:]}")
        for problem in report["whole"][name]:
            print(f"WHOLE {name}: {problem}")
    product = [case for name in names for case in laboratory.cases(name)]
    report["product"] = summary_lines(product)
    report["unused"] = [entry for entry in TOLERATED if not any(case.tolerated_by(entry) for case in product)]
    cases = [case for name in names for case in sample(laboratory.cases(name))] if options.sample else product
    cases = [case for case in cases if _matches(case.fault, options.faults) and _matches(case.place, options.places)]
    cases = [case for case in cases if kind_of(case) in options.kinds]
    for outcome in laboratory.run(cases, options.jobs):
        errors = [line for line in outcome.done.stderr.splitlines() if line.startswith("error: ")]
        said = "\n    ".join(errors or outcome.done.stderr.splitlines()[-4:])
        if outcome.problems:
            problem = f"{outcome.case}: {'; '.join(outcome.problems)}\n    {said}"
            report["broken"][outcome.case.command].append(problem)
            print(f"BROKEN {problem}", flush=True)
        else:
            report["kept"][outcome.case.command].append(f"{outcome.case}: {outcome.result}")
            if options.messages:
                print(f"{outcome.result} {outcome.case}\n    {said if outcome.result == REFUSED else ''}", flush=True)
    return report


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def kind_of(case: Case) -> str:
    """``file``, ``field`` or ``output``."""
    return "output" if case.is_output else "field" if case.is_field else "file"


def is_listed(command: Command, file: str) -> bool:
    """Whether the table knows that a command opens ``file``."""
    return any(fnmatch.fnmatchcase(file, pattern) for pattern in (*command.reads, *command.ignores))


if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parents[2])
    raise SystemExit(main())
