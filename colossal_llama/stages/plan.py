"""From a recipe to stages that can be launched, with everything refused that could never run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colossal_llama.config.recipe import LauncherSettings, Recipe, StageRecipe
from colossal_llama.errors import UserError
from colossal_llama.model.model_folder import read_model_config
from colossal_llama.optim import check_optimizer
from colossal_llama.planning.shapes import KNOWN_SHAPES
from colossal_llama.plugins import PLUGINS, build_options, check_model, read_architecture
from colossal_llama.stages.hosts import Host, parse_hosts, read_hostfile
from colossal_llama.stages.launcher import Launcher


@dataclass(frozen=True)
class StagePlan:
    """A recipe that can be launched.

    Attributes:
        recipe: the checked file.
        launcher: how each stage is started.
        hosts: the hosts that take part, as far as they are known; empty for this machine alone.
        missing_hostfile: the hostfile does not exist yet, which only a dry run accepts.
    """

    recipe: Recipe
    launcher: Launcher
    hosts: tuple[Host, ...]
    missing_hostfile: Path | None


def make_plan(recipe: Recipe) -> StagePlan:
    """Count the hosts and let each stage's plugin refuse what it cannot run with so many processes.

    Raises:
        UserError: names recipe, stage and flag; or the hostfile's line.
    """
    settings = recipe.launcher
    hosts, missing = _hosts(recipe.path, settings)
    launcher = Launcher(
        nproc_per_node=settings.nproc_per_node,
        num_nodes=settings.num_nodes or max(1, len(hosts)),
        hostfile=settings.hostfile,
        host=settings.host,
        master_addr=settings.master_addr,
        master_port=settings.master_port,
        ssh_port=settings.ssh_port,
    )
    for stage in recipe.stages:
        check_stage(recipe.path, stage, launcher.processes)
    check_models(recipe)
    return StagePlan(recipe, launcher, hosts[: launcher.num_nodes], missing)


def _hosts(path: Path, settings: LauncherSettings) -> tuple[tuple[Host, ...], Path | None]:
    if settings.host is not None:
        return tuple(parse_hosts(settings.host)), None
    if settings.hostfile is None:
        return (), None
    hostfile = Path(settings.hostfile)
    if not hostfile.exists() and settings.num_nodes is not None:
        return (), hostfile
    hosts = read_hostfile(hostfile)
    if settings.num_nodes is not None and len(hosts) < settings.num_nodes:
        raise UserError(
            f"{path}: launcher: num_nodes is {settings.num_nodes}, but {hostfile} names {len(hosts)} host(s)"
        )
    return tuple(hosts), None


def check_stage(path: Path, stage: StageRecipe, processes: int) -> None:
    """Let a stage's plugin refuse options that it cannot run with.

    Raises:
        UserError: names recipe, stage and flag.
    """
    try:
        spec = PLUGINS.get(stage.settings.plugin)
        options = build_options(stage.settings, on_host=False, flash_attention=False)
        spec.check(options, processes)
        check_optimizer(stage.settings.optimizer, spec.weight_form(options), stage.settings.plugin)
    except UserError as error:
        raise UserError(f"{path}: stage {stage.name}: {error}") from None


def check_launch(plan: StagePlan) -> None:
    """Refuse to launch without the model, the data of every stage, or the hostfile.

    Raises:
        UserError: names what is missing and the key that names it.
    """
    recipe = plan.recipe
    if plan.missing_hostfile is not None:
        raise UserError(f"{recipe.path}: launcher: hostfile {plan.missing_hostfile} does not exist")
    for stage in recipe.stages:
        for missing in missing_inputs(stage):
            raise UserError(
                f"{recipe.path}: stage {stage.name}: {missing}; make it first (init_model.py, prepare_*_dataset.py)"
            )


def missing_inputs(stage: StageRecipe) -> list[str]:
    """What a stage names and is not there: the model and data."""
    named = [("pretrained", stage.settings.pretrained), *(("dataset", folder) for folder in stage.settings.dataset)]
    return [f"{key} {folder}: no such folder" for key, folder in named if not Path(folder).is_dir()]


def model_config(recipe: Recipe) -> tuple[dict[str, Any] | None, str]:
    """The model's ``config.json`` or the recipe's known sizes, and which of them.

    Raises:
        UserError: ``pretrained`` exists and is no model folder.
    """
    folder = Path(recipe.file.pretrained)
    if folder.exists():
        return read_model_config(folder, f"{recipe.path}: pretrained"), str(folder)
    if recipe.file.model is not None:
        return KNOWN_SHAPES[recipe.file.model], f"known sizes of {recipe.file.model}"
    return None, ""


def check_models(recipe: Recipe) -> None:
    """Refuse a model that a stage's plugin and layout cannot train, as far as the recipe says what it is.

    Raises:
        UserError: names recipe, stage and flag.
    """
    model, source = model_config(recipe)
    if model is None:
        return
    try:
        architecture = read_architecture(source, model)
        for stage in recipe.stages:
            settings = stage.settings
            options = build_options(settings, on_host=False, flash_attention=settings.use_flash_attn)
            spec = PLUGINS.get(settings.plugin)
            check_model(settings.plugin, spec, options, source, architecture, settings.max_length)
    except UserError as error:
        raise UserError(f"{recipe.path}: {error}") from None
