"""What this project's loop is compared with: the same model, rows, precision and update through other loops."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from colossal_llama.benchmarking.bare_loop import BareLoop, run_bare
from colossal_llama.benchmarking.figures import RunFigures, largest_of_ranks
from colossal_llama.benchmarking.random_model import build_random_model
from colossal_llama.benchmarking.rows import loaded_steps, random_rows
from colossal_llama.config.benchmark import BenchmarkConfig
from colossal_llama.errors import UserError
from colossal_llama.registry import Registry
from colossal_llama.schedule import TrainSchedule

LEARNING_RATE, WEIGHT_DECAY, BETAS, MAX_NORM = 1e-4, 0.1, (0.9, 0.95), 1.0
"""Of the update: what this project's loop is given, see :meth:`config.workload.WorkloadConfig.train_config`."""


@dataclass(frozen=True)
class PeerJob:
    """What every peer is given.

    Attributes:
        config: the benchmark's flags.
        model_config: content of ``config.json``.
        architecture: transformers' configuration of it.
        device: of this process.
        rank, world_size: all ranks are data parallel.
    """

    config: BenchmarkConfig
    model_config: dict[str, Any]
    architecture: Any
    device: str
    rank: int
    world_size: int

    @property
    def schedule(self) -> TrainSchedule:
        """The steps that are run; the same rows for each of them as in this project's loop without tp, pp and sp."""
        config = self.config
        steps = config.ignore_steps + config.num_steps
        one = TrainSchedule(1, self.world_size, config.micro_batch_size, config.accumulation_steps, num_epochs=1)
        return TrainSchedule(
            steps * one.global_batch, self.world_size, config.micro_batch_size, config.accumulation_steps, num_epochs=1
        )

    @property
    def rows(self) -> Any:
        """All rows of the run."""
        config = self.config
        return random_rows(self.model_config, config.max_length, self.schedule.num_samples, config.seed)

    @property
    def autocast_dtype(self) -> Any:
        """Dtype of the forward pass where it is not that of the weights, which are fp32."""
        import torch

        return {"bf16": torch.bfloat16}.get(self.config.mixed_precision)

    def build_model(self) -> Any:
        """The model with fp32 weights, the same as in this project's plugin ddp."""
        attention = "flash_attention_2" if self.config.use_flash_attn else "sdpa"
        model = build_random_model(self.architecture, "fp32", attention, self.config.seed, self.device)
        if self.config.use_grad_checkpoint:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return model

    def build_optimizer(self, model: Any) -> Any:
        """PyTorch's fused AdamW over all parameters."""
        import torch

        return torch.optim.AdamW(
            model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True
        )

    def micro_batches(self) -> list[list[Any]]:
        """This rank's micro-batches of each step."""
        config = self.config
        steps = loaded_steps(self.rows, config.max_length, self.schedule, self.rank, config.seed)
        return [loaded.micro_batches for loaded in steps]


Measured = tuple[list[float], list[float]]
"""Losses and seconds of all steps."""

PEERS: Registry[Callable[[PeerJob], Measured]] = Registry("contender")


def measure_peer(name: str, config: BenchmarkConfig, model_config: dict[str, Any]) -> RunFigures:
    """Run one peer in this process, and with the other ranks where a launcher started several.

    Raises:
        UserError: it cannot run here.
    """
    import torch

    from colossal_llama.metrics.device import peak_memory_bytes
    from colossal_llama.plugins import read_architecture

    run = PEERS.get(name)
    rank, world_size = (int(os.environ.get(key, default)) for key, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    on_gpu = torch.cuda.is_available()
    device = f"cuda:{int(os.environ.get('LOCAL_RANK', '0'))}" if on_gpu else "cpu"
    if on_gpu:
        torch.cuda.set_device(device)
    architecture = read_architecture(config.model, model_config)
    job = PeerJob(config, model_config, architecture, device, rank, world_size)
    with process_group(name, device):
        losses, seconds = run(job)
        peak = largest_of_ranks([peak_memory_bytes(device)], device)[0]
    return RunFigures(
        contender=name,
        losses=losses,
        seconds=seconds[config.ignore_steps :],
        devices=world_size,
        rows_per_step=job.schedule.global_batch,
        tokens_per_step=job.schedule.global_batch * config.max_length,
        peak_memory_bytes=peak,
    )


@contextlib.contextmanager
def process_group(name: str, device: str) -> Iterator[None]:
    """The process group that the launcher's variables describe; none for one process, except for FSDP."""
    import torch.distributed as dist

    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if not several and name != "torch_fsdp2":
        yield
        return
    backend = "gloo" if device == "cpu" else "nccl"
    if several:
        dist.init_process_group(backend)
        yield
    else:
        with tempfile.TemporaryDirectory() as folder:
            dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
            yield
    dist.destroy_process_group()


@PEERS.register("bare_loop")
def measure_bare_loop(job: PeerJob) -> Measured:
    """Forward, backward, clipping and update around DDP."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    model = job.build_model()
    optimizer = job.build_optimizer(model)
    if job.world_size > 1:
        model = DistributedDataParallel(model, device_ids=None if job.device == "cpu" else [torch.device(job.device)])
    return run_bare(BareLoop(model, optimizer, job.device, job.autocast_dtype, MAX_NORM), job.micro_batches())


@PEERS.register("torch_fsdp2")
def measure_fsdp2(job: PeerJob) -> Measured:
    """The same loop around ``fully_shard``: parameters, gradients and states sharded, layer by layer."""
    from colossal_llama.benchmarking.fsdp2 import shard, sync_only_last

    model = shard(job.build_model(), job.autocast_dtype, job.device)
    optimizer = job.build_optimizer(model)
    loop = BareLoop(model, optimizer, job.device, None, MAX_NORM, accumulate=sync_only_last)
    return run_bare(loop, job.micro_batches())


@PEERS.register("hf_trainer")
def measure_hf_trainer(job: PeerJob) -> Measured:
    """Hugging Face's Trainer with its defaults, except for the update and for logging every step, as this project does.

    Raises:
        UserError: accelerate is not installed.
    """
    import importlib.util

    if importlib.util.find_spec("accelerate") is None:
        raise UserError("--compare hf_trainer needs the package accelerate: pip install accelerate")
    from colossal_llama.benchmarking.hf_trainer import run_hf_trainer

    model = job.build_model()
    return run_hf_trainer(job, model, job.build_optimizer(model), MAX_NORM)
