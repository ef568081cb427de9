"""``run_stages.py``: the stages of a recipe, one ``train.py`` after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from colossal_llama.config.cli import parse_config
from colossal_llama.config.recipe import RunStagesConfig, read_recipe
from colossal_llama.errors import run_command

DESCRIPTION = (
    "Train in stages as a recipe says: each starts from the weights of the one before. Stages that are done are "
    "skipped, and a stage that was killed goes on from its newest checkpoint."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command; returns the exit code."""
    return run_command(lambda: run_stages(parse_config(RunStagesConfig, argv, DESCRIPTION)))


def run_stages(config: RunStagesConfig) -> None:
    """Check the recipe, then run its stages or say what they would need."""
    recipe = read_recipe(Path(config.recipe))

    from colossal_llama.stages.plan import check_launch, make_plan

    plan = make_plan(recipe)
    if config.dry_run:
        from colossal_llama.stages.forecast import describe_plan, forecast_plan

        print(describe_plan(forecast_plan(plan, config.peak_tflops, config.mfu)))
        return

    from colossal_llama.stages.hosts import check_reachable
    from colossal_llama.stages.runner import PlanRunner

    check_launch(plan)
    check_reachable(plan.hosts, plan.launcher.ssh_port)
    summaries = PlanRunner(plan, config.overwrite).run()
    for summary in summaries:
        print(summary.line)
    print(f"summary: {Path(recipe.file.output_dir) / 'stages.md'}")


if __name__ == "__main__":
    raise SystemExit(main())
