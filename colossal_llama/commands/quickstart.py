"""The quickstart: the whole job on one machine, with the commands that a large run uses."""

from __future__ import annotations

from collections.abc import Sequence

from colossal_llama.config.cli import parse_config
from colossal_llama.config.quickstart import QuickstartConfig
from colossal_llama.errors import run_command

DESCRIPTION = (
    "Teach a pretrained Llama Chinese on this machine: new tokens, new embedding rows, three training stages and SFT. "
    "Steps that are done are skipped."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command; returns the exit code."""
    return run_command(lambda: quickstart(parse_config(QuickstartConfig, argv, DESCRIPTION)))


def quickstart(config: QuickstartConfig) -> None:
    """Run every step that is not done yet."""
    from colossal_llama.quickstart.job import QuickstartJob

    QuickstartJob(config).run()


if __name__ == "__main__":
    raise SystemExit(main())
