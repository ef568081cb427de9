"""Recipes: the stages of a continual pretraining in one YAML file, and the command that runs them.

The keys of a stage are the flags of ``train.py`` without their dashes, and are checked as those are.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from colossal_llama.config.cli import flag, values_from_mapping
from colossal_llama.config.io import read_yaml_mapping
from colossal_llama.config.train import AUTO, TrainConfig
from colossal_llama.config.workload import MODEL_NAMES
from colossal_llama.errors import UserError

C = TypeVar("C")

SET_BY_PLAN = (
    "pretrained", "load_checkpoint", "initial_weights", "save_dir", "tensorboard_dir", "config_file", "overwrite",
    "benchmark",
)  # fmt: skip
"""Flags of train.py that follow from a recipe and must not stand in a stage."""

STAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass
class RunStagesConfig:
    """How a recipe is run."""

    recipe: str = flag(positional=True, help="file of the stages, for example recipes/tiny.yaml")
    dry_run: bool = flag(False, help="print commands, steps, memory and time of each stage; run nothing")
    overwrite: bool = flag(False, help="train stages again whose settings or inputs changed since they were trained")
    peak_tflops: float | None = flag(
        None, help="peak of one device in TFLOP/s, for the time estimate; overrides the recipe"
    )
    mfu: float | None = flag(None, help="share of the peak that training reaches; overrides the recipe")

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            UserError: names the flag.
        """
        check_efficiency(self.peak_tflops, self.mfu, "--")


def check_efficiency(peak_tflops: float | None, mfu: float | None, prefix: str) -> None:
    """Refuse a peak or a share of it that cannot be.

    Raises:
        UserError: names the value, with ``prefix`` in front.
    """
    if peak_tflops is not None and not peak_tflops > 0:
        raise UserError(f"{prefix}peak_tflops must be positive, not {peak_tflops}")
    if mfu is not None and not 0 < mfu <= 1:
        raise UserError(f"{prefix}mfu must be above 0 and at most 1, not {mfu}")


@dataclass
class LauncherSettings:
    """Key ``launcher``: what ``colossalai run`` is started with."""

    nproc_per_node: int = flag(1, help="processes on each host")
    num_nodes: int | None = flag(None, help="hosts; unset: all lines of the hostfile, all of host, or one")
    hostfile: str | None = flag(None, help="file with one host name a line")
    host: str | None = flag(None, help="host names with commas between them, instead of a hostfile")
    master_addr: str | None = flag(None, help="address of the first host; unset: its name")
    master_port: int = flag(0, help="port on the first host; 0: one that is free on this machine")
    ssh_port: int | None = flag(None, help="of the other hosts; unset: ~/.ssh/config's, else 22")

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            UserError: names the key.
        """
        for name in ("nproc_per_node", "num_nodes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, not {value}")
        for name, port, least in (("master_port", self.master_port, 0), ("ssh_port", self.ssh_port, 1)):
            if port is not None and not least <= port <= 65_535:
                raise UserError(f"{name} must be a port, not {port}")
        if self.hostfile is not None and self.host is not None:
            raise UserError("give hostfile or host, not both")
        if self.hostfile is None and self.num_nodes is not None:
            named = len(self.host.split(",")) if self.host else 1
            if self.num_nodes != named:
                raise UserError(f"num_nodes is {self.num_nodes}, but {named} host(s) are named; add a hostfile")


@dataclass
class StageSettings(TrainConfig):
    """A stage: train.py's flags, and what the plan needs beside them."""

    name: str = flag("", help="of the stage's folder below output_dir")
    expected_tokens: float | None = flag(
        None, help="tokens that the data will have, for --dry_run before it is prepared; rows count as full"
    )

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            UserError: names the flag.
        """
        super().__post_init__()
        if self.expected_tokens is not None and not self.expected_tokens >= 1:
            raise UserError(f"expected_tokens must be at least 1, not {self.expected_tokens}")


@dataclass
class RecipeFile:
    """The top level of a recipe."""

    pretrained: str = flag(help="folder of the model and its tokenizer that the first stage starts from")
    output_dir: str = flag(help="everything that stages write goes below it, each stage in a folder of its name")
    model: str | None = flag(None, help="sizes for --dry_run while pretrained does not exist", choices=MODEL_NAMES)
    peak_tflops: float | None = flag(None, help="peak of one device in TFLOP/s, for --dry_run")
    mfu: float = flag(0.4, help="share of the peak that training reaches, for --dry_run")
    launcher: dict | None = flag(None, help="see LauncherSettings")
    defaults: dict | None = flag(None, help="keys of every stage that does not say otherwise")
    stages: list[dict] = flag([], help="see StageSettings; in the order in which they run")


@dataclass(frozen=True)
class StageRecipe:
    """One stage of a recipe.

    Attributes:
        name: of the stage.
        settings: resolved, with the folders that follow from the recipe.
        given: names of the train.py flags that the recipe gives, in the order of train.py.
        expected_tokens: of data that is not prepared yet, or None.
    """

    name: str
    settings: TrainConfig
    given: tuple[str, ...]
    expected_tokens: float | None


@dataclass(frozen=True)
class Recipe:
    """A checked recipe.

    Attributes:
        path: of its file.
        file: its top level.
        launcher: how stages are started.
        stages: in order.
    """

    path: Path
    file: RecipeFile
    launcher: LauncherSettings
    stages: tuple[StageRecipe, ...]


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        UserError: names file, stage and key: unknown keys, wrong types and values, missing or doubled names.
    """
    content = read_yaml_mapping(path, "recipe")
    file = _build(RecipeFile, content, str(path))
    try:
        check_efficiency(file.peak_tflops, file.mfu, "")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    launcher = _build(LauncherSettings, file.launcher or {}, f"{path}: launcher")
    if not file.stages:
        raise UserError(f"{path}: no stages; list at least one below 'stages:' with a name and dataset")
    defaults = _stage_values(file.defaults or {}, f"{path}: defaults")
    if "name" in defaults:
        raise UserError(f"{path}: defaults: name belongs to a stage")
    stages: list[StageRecipe] = []
    for number, mapping in enumerate(file.stages, 1):
        stage = _read_stage(path, file, defaults, mapping, number, stages)
        if stage.name in [other.name for other in stages]:
            raise UserError(f"{path}: two stages are called {stage.name!r}; each needs a folder of its own")
        stages.append(stage)
    return Recipe(path, file, launcher, tuple(stages))


def _build(config_class: type[C], mapping: dict[str, Any], source: str) -> C:
    values = values_from_mapping(config_class, mapping, source)
    missing = [
        field.name
        for field in dataclasses.fields(config_class)  # type: ignore[arg-type]
        if field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
        and field.name not in values
    ]
    if missing:
        raise UserError(f"{source}: missing key {missing[0]!r}")
    try:
        return config_class(**values)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def _stage_values(mapping: dict[str, Any], source: str) -> dict[str, Any]:
    values = values_from_mapping(StageSettings, mapping, source)
    for key in SET_BY_PLAN:
        if key in values:
            raise UserError(f"{source}: {key} follows from the recipe (pretrained, output_dir and the stage's name)")
    return values


def _read_stage(
    path: Path,
    file: RecipeFile,
    defaults: dict[str, Any],
    mapping: dict[str, Any],
    number: int,
    before: list[StageRecipe],
) -> StageRecipe:
    source = f"{path}: stage {mapping.get('name', number)}"
    values = defaults | _stage_values(mapping, source)
    name = values.pop("name", "")
    if not STAGE_NAME.fullmatch(name):
        raise UserError(f"{source}: name is {name!r}; expected letters, digits, '-', '_' and '.', a folder's name")
    folder = Path(file.output_dir) / name
    previous = before[-1] if before else None
    values |= {
        "pretrained": file.pretrained,
        "load_checkpoint": None if previous is None else str(Path(previous.settings.save_dir) / "modeling"),
        "save_dir": str(folder),
        "tensorboard_dir": str(folder / "logs"),
        "config_file": str(folder / "config.json"),
    }
    try:
        settings = StageSettings(**values)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    if previous is not None and previous.settings.lora_rank and not settings.lora_rank:
        raise UserError(
            f"{source}: starts from the adapters of stage {previous.name}; give lora_rank {previous.settings.lora_rank}"
        )
    flags = [field.name for field in dataclasses.fields(TrainConfig)]
    train = TrainConfig(**{key: value for key, value in values.items() if key in flags})
    given = tuple(key for key in flags if key in values)
    return StageRecipe(name, train, given, settings.expected_tokens)


def train_flags(stage: StageRecipe, resume: bool) -> list[str]:
    """The command line of ``train.py`` for a stage: what the recipe gives and the folders that follow from it.

    Args:
        stage: the stage.
        resume: go on from the newest whole checkpoint, and start as a fresh run does if all are damaged.
    """
    start = stage.settings.load_checkpoint
    starting = {"load_checkpoint": AUTO, "initial_weights": start} if resume else {"load_checkpoint": start}
    values_by_name = {name: getattr(stage.settings, name) for name in stage.given} | starting
    arguments: list[str] = []
    for name, value in values_by_name.items():
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        arguments += [f"--{name}", *(str(item).lower() if isinstance(item, bool) else str(item) for item in values)]
    return arguments
