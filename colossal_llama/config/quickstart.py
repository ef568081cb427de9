"""Configuration of the quickstart."""

from dataclasses import dataclass

from colossal_llama.config.cli import flag
from colossal_llama.config.train import PLUGIN_NAMES
from colossal_llama.errors import UserError


@dataclass
class QuickstartConfig:
    """How the main job runs."""

    plugin: str = flag("ddp", help="plugin of all training stages", choices=PLUGIN_NAMES)
    processes: int = flag(2, help="training processes")
    tiny: bool = flag(False, help="the same job on a small model that is made and trained here, in a few minutes")
    measure_on: str = flag(
        "held_out",
        help="texts for the figures; choose the plan's numbers on validation, so that held_out stays unseen",
        choices=("held_out", "validation"),
    )
    output_dir: str = flag("quickstart_output", help="everything is written below it; a second run goes on there")

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            UserError: names the flag.
        """
        if self.processes < 1:
            raise UserError(f"--processes must be at least 1, not {self.processes}")
