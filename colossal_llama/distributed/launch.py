"""Start of a distributed process: environment, process group, seeds, rank-0 printing."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from colossal_llama.distributed import host, upstream_fixes


@dataclass(frozen=True)
class DistEnv:
    """Where this process stands in the run.

    Attributes:
        rank: 0 to ``world_size`` - 1.
        world_size: number of processes.
        device: ``"cuda:<local rank>"`` or ``"cpu"``.
    """

    rank: int
    world_size: int
    device: str

    @property
    def is_main(self) -> bool:
        """Whether this process prints, logs and writes shared files."""
        return self.rank == 0

    def say(self, message: str) -> None:
        """Print one line on rank 0."""
        if self.is_main:
            print(message, flush=True)


def _fill_single_process_environment() -> None:
    """Let ``python scripts/train.py`` run as one process, as if a launcher had started it."""
    if "RANK" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(
        RANK="0",
        LOCAL_RANK="0",
        WORLD_SIZE="1",
        LOCAL_WORLD_SIZE="1",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )


def world_size_from_environment() -> int:
    """Number of processes the launcher started; readable before anything heavy is imported."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Swallow warnings while colossalai and its dependencies are imported: nothing that a user could act on.

    A filter would not do: torch shows some of them whatever the filters say. bitsandbytes logs one on CPUs, about a
    package for 4-bit inference.
    """
    show = warnings.showwarning
    warnings.showwarning = lambda *args, **kwargs: None
    bitsandbytes = logging.getLogger("bitsandbytes")
    level = bitsandbytes.level
    bitsandbytes.setLevel(logging.ERROR)
    try:
        yield
    finally:
        warnings.showwarning = show
        bitsandbytes.setLevel(level)


def launch(seed: int) -> DistEnv:
    """Join the process group that ``colossalai run`` or ``torchrun`` describes, or be a group of one.

    Chooses the host accelerator where there is no GPU, installs the remedies of ``upstream_fixes`` and seeds
    Python, NumPy and torch with ``seed`` (the same on every rank; what must differ per rank is seeded later).
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # Importing colossalai starts a pool of torch.compile workers per rank; nothing here is compiled.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    _fill_single_process_environment()
    with quiet_imports():
        import numpy as np
        import torch

        on_host = host.is_host_only()
        if on_host:
            host.install_host_accelerator()
        upstream_fixes.apply()
        import colossalai
    warnings.filterwarnings("ignore", message="TypedStorage is deprecated")

    colossalai.launch_from_torch(backend="gloo" if on_host else "nccl", seed=seed, verbose=False)
    colossalai.logging.get_dist_logger().set_level("WARNING")
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    device = "cpu" if on_host else f"cuda:{torch.cuda.current_device()}"
    return DistEnv(rank=torch.distributed.get_rank(), world_size=torch.distributed.get_world_size(), device=device)


def shut_down() -> None:
    """Leave the process group, if there is one."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def leave(code: int) -> NoReturn:
    """End the process at once, without the interpreter's finalization.

    gloo's threads may still hold the tensors of finished collectives, and abort a process that is finalized before they
    let go of them ("terminate called without an active exception", https://github.com/pytorch/pytorch/issues/190489).
    Code of this project keeps such tensors (:mod:`.agreement`); a process that ran others' leaves by this door.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
