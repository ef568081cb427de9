"""Configuration of ``plan.py``."""

from dataclasses import dataclass

from colossal_llama.config.cli import flag
from colossal_llama.config.workload import WorkloadConfig
from colossal_llama.errors import UserError


@dataclass
class PlanConfig(WorkloadConfig):
    """A training, the machines it would run on, and what is assumed of them."""

    gpus: int = flag(8, help="GPUs of the whole training")
    gpus_per_node: int = flag(8, help="GPUs of one machine")
    gpu_memory: float = flag(80.0, help="memory of one GPU in GiB")
    usable_memory: float = flag(
        0.9, help="share of it that tensors may take; the rest is for CUDA, NCCL and the allocator's gaps"
    )
    gpu: str = flag("H100", help="name of the GPU, for its peak TFLOP/s where --peak_tflops is not given")
    efficiency: float = flag(0.5, help="share of the peak that computing reaches while nothing is waited for")
    node_bandwidth: float = flag(200.0, help="GB/s that a GPU sends in a collective inside its machine")
    network_bandwidth: float = flag(20.0, help="GB/s that a GPU sends in a collective between machines")
    tokens: float | None = flag(None, help="tokens of the whole training, for its duration")
    suggest: bool = flag(
        False, help="list the layouts that fit, fastest first, with as many rows per optimizer step as the flags say"
    )
    top: int = flag(10, help="layouts that --suggest lists at most")
    output: str | None = flag(None, help="JSON file for the figures")

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            UserError: names the flag, the value and what was expected.
        """
        super().__post_init__()
        for name in ("gpus", "gpus_per_node", "top"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, not {getattr(self, name)}")
        for name in ("gpu_memory", "node_bandwidth", "network_bandwidth", "tokens"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"--{name} must be positive, not {value}")
        for name in ("efficiency", "usable_memory"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"--{name} must lie above 0 and up to 1, not {getattr(self, name)}")
