"""Configuration of ``scripts/inspect_dataset.py``."""

from dataclasses import dataclass

from colossal_llama.config.cli import flag
from colossal_llama.errors import UserError


@dataclass
class InspectConfig:
    """What to show of a prepared dataset."""

    dataset: str = flag(
        help="folder of a prepared dataset: its arrow folder or one part of it; may stand first, without the flag"
    )
    tokenizer_dir: str | None = flag(None, help="the tokenizer it was prepared with; without it rows show as ids")
    row: list[int] = flag([0], help="numbers of the rows to show, counted from 0 over all parts")
    color: str = flag(
        "auto",
        help="colours of learned and not learned text; auto: on a terminal only, unless NO_COLOR is set",
        choices=("auto", "always", "never"),
    )

    def __post_init__(self) -> None:
        """Refuse rows that cannot exist.

        Raises:
            UserError: a negative row number.
        """
        for number in self.row:
            if number < 0:
                raise UserError(f"--row {number}: must be at least 0")
