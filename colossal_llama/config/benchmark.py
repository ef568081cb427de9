"""Configuration of ``benchmark.py``."""

from dataclasses import dataclass

from colossal_llama.config.cli import flag
from colossal_llama.config.workload import WorkloadConfig
from colossal_llama.errors import UserError

OWN_LOOP = "colossal_llama"
"""The contender that is always measured: this project's loop."""

PEER_NAMES = ("bare_loop", "hf_trainer", "torch_fsdp2")


@dataclass
class BenchmarkConfig(WorkloadConfig):
    """What is measured, and for how long."""

    num_steps: int = flag(5, aliases=("-s",), help="optimizer steps that are timed")
    ignore_steps: int = flag(2, aliases=("-i",), help="optimizer steps before them that are not")
    split_steps: int = flag(
        2, help="further steps in which forward, backward, optimizer, communication and loader are timed apart; 0: none"
    )
    compare: list[str] = flag(
        [],
        help="run the same model, rows and precision through these too, each in processes of its own: "
        + ", ".join(PEER_NAMES),
    )
    output: str | None = flag(None, help="JSON file for the figures")
    trace_memory: bool = flag(
        False, help="without a GPU: measure what tensors take, allocation by allocation; steps become slow"
    )
    check_memory: bool = flag(True, help="refuse what the estimate of plan.py says will not fit")
    seed: int = flag(42, help="seed of the weights and of the rows")

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            UserError: names the flag, the value and what was expected.
        """
        super().__post_init__()
        for name, least in (("num_steps", 1), ("ignore_steps", 0), ("split_steps", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} must be at least {least}, not {getattr(self, name)}")
        self.compare = [name for entry in self.compare for name in entry.split(",") if name]
        for name in self.compare:
            if name not in PEER_NAMES:
                raise UserError(f"--compare {name}: unknown; choose among {', '.join(PEER_NAMES)}")
        if self.compare and self.mixed_precision == "fp16":
            raise UserError("--compare needs --mixed_precision bf16 or fp32: the other loops have no loss scale")
        if self.compare and self.freeze_non_embeds_params:
            raise UserError("--compare trains all weights: leave --freeze_non_embeds_params away")
        if self.trace_memory and self.compare:
            raise UserError("--trace_memory makes steps slow, so that --compare would mean nothing: give one of them")

    @property
    def total_steps(self) -> int:
        """All optimizer steps of this project's loop."""
        return self.ignore_steps + self.num_steps + self.split_steps
