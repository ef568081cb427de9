"""Colossal-AI's plugins on a machine without a GPU: gloo collectives, host memory, PyTorch's own Adam.

Colossal-AI 0.5.0 ships a CPU accelerator that only its DDP plugin can use. This module completes it so that
every plugin trains on gloo processes with the results it gives on GPUs: people develop on a laptop and launch
on a cluster. :func:`install_host_accelerator` is called by ``distributed.launch`` only where there is no GPU;
where there is one, nothing in this file runs.

Each override stands in one function that names the upstream location (files of colossalai 0.5.0) and the
reason. Overrides replace attributes of colossalai's (and, for two collectives, torch.distributed's) modules
in memory; nothing on disk is touched.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_installed = False


def is_host_only() -> bool:
    """Whether this machine has no usable GPU, so that the host accelerator is needed."""
    import torch

    return not torch.cuda.is_available()


def install_host_accelerator() -> None:
    """Make every Colossal-AI plugin usable in this process; call it before ``colossalai.launch``.

    Does nothing the second time.
    """
    global _installed
    if _installed:
        return
    from colossalai.accelerator import set_accelerator

    set_accelerator(_host_accelerator_class()())
    for override in OVERRIDES:
        override()
    _installed = True


class _NoWait:
    """Stands for a stream, an event or a finished collective: on the host everything is done on return."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __enter__(self) -> _NoWait:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def record(self, stream: Any = None) -> None:
        pass

    def record_event(self, event: Any = None) -> Any:
        return event or _NoWait()

    def wait(self, *args: Any, **kwargs: Any) -> bool:
        return True

    def wait_event(self, event: Any) -> None:
        pass

    def wait_stream(self, stream: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True

    def is_completed(self) -> bool:
        return True

    def elapsed_time(self, other: Any) -> float:
        return 0.0


def _host_accelerator_class() -> type:
    """The accelerator; built on call because importing colossalai costs seconds.

    Upstream: accelerator/cpu_accelerator.py raises RuntimeError for each of these methods, which the ZeRO,
    Gemini and hybrid plugins all call.
    """
    import psutil
    import torch
    from colossalai.accelerator.cpu_accelerator import CpuAccelerator

    class HostAccelerator(CpuAccelerator):
        def current_device(self) -> Any:
            return torch.device("cpu")

        def set_device(self, device: Any = None) -> None:
            pass

        def get_device_name(self, device: Any = None) -> str:
            return "cpu"

        def get_device_capability(self, device: Any = None) -> tuple[int, int]:
            return (0, 0)

        def device_count(self) -> int:
            return 1

        def synchronize(self, device: Any = None) -> None:
            pass

        def get_rng_state(self, device: Any = None) -> torch.Tensor:
            return torch.get_rng_state()

        def set_rng_state(self, new_state: torch.Tensor, device: Any = None) -> None:
            torch.set_rng_state(new_state)

        def get_rng_state_all(self) -> list[torch.Tensor]:
            return [torch.get_rng_state()]

        def set_rng_state_all(self, new_states: list[torch.Tensor]) -> None:
            torch.set_rng_state(new_states[0])

        def manual_seed(self, seed: int) -> None:
            torch.manual_seed(seed)

        def manual_seed_all(self, seed: int) -> None:
            torch.manual_seed(seed)

        def seed(self) -> None:
            torch.seed()

        def seed_all(self) -> None:
            torch.seed()

        def initial_seed(self) -> int:
            return torch.initial_seed()

        def empty_cache(self) -> None:
            pass

        def memory_allocated(self, device: Any = None) -> int:
            return psutil.Process().memory_info().rss

        def max_memory_allocated(self, device: Any = None) -> int:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

        def reset_peak_memory_stats(self, device: Any = None) -> None:
            pass

        def reset_max_memory_allocated(self, device: Any = None) -> None:
            pass

        def Stream(self, *args: Any, **kwargs: Any) -> _NoWait:  # noqa: N802 (upstream's name)
            return _NoWait()

        def Event(self, *args: Any, **kwargs: Any) -> _NoWait:  # noqa: N802 (upstream's name)
            return _NoWait()

        def current_stream(self, device: Any = None) -> _NoWait:
            return _NoWait()

        def default_stream(self, device: Any = None) -> _NoWait:
            return _NoWait()

        def set_stream(self, stream: Any) -> None:
            pass

        def stream(self, stream: Any) -> contextlib.nullcontext:
            return contextlib.nullcontext()

        def autocast(self, enabled: bool = True, dtype: torch.dtype = torch.float16, cache_enabled: bool = True) -> Any:
            return torch.autocast("cpu", dtype=dtype, enabled=enabled, cache_enabled=cache_enabled)

    return HostAccelerator


def _override_zero_device_check() -> None:
    """zero/low_level/low_level_optim.py:254 asserts that the accelerator is cuda or npu.

    The dtype check of the same method is kept.
    """
    from colossalai.zero.low_level.low_level_optim import LowLevelZeroOptimizer

    def check_dtypes(self: Any) -> None:
        for group in self.optim.param_groups:
            for param in group["params"]:
                if not getattr(param, "skip_zero_check", False) and param.dtype != self._dtype:
                    raise TypeError(f"parameters must all be {self._dtype}, found {param.dtype}")

    LowLevelZeroOptimizer._sanity_checks = check_dtypes


def _override_record_stream() -> None:
    """zero/low_level/low_level_optim.py:337 records gradients on a stream; host tensors have none."""
    import torch

    on_device = torch.Tensor.record_stream

    def record_stream(self: torch.Tensor, stream: Any) -> None:
        if self.device.type != "cpu":
            on_device(self, stream)

    torch.Tensor.record_stream = record_stream  # type: ignore[method-assign,assignment]


def override_gloo_collectives() -> None:
    """Gloo has no reduce_scatter, reduce_scatter_tensor and list all_to_all (torch 2.5); ZeRO-2, Gemini and
    sequence parallelism use them. Built here from all_reduce and all_gather, for gloo groups only.
    """
    import torch
    import torch.distributed as dist

    def finished(async_op: bool) -> _NoWait | None:
        return _NoWait() if async_op else None

    def reduce_scatter_tensor(
        output: torch.Tensor,
        input: torch.Tensor,
        op: Any = dist.ReduceOp.SUM,
        group: Any = None,
        async_op: bool = False,
    ) -> _NoWait | None:
        total = input.detach().clone()
        dist.all_reduce(total, op=op, group=group)
        output.copy_(total.view(-1).chunk(dist.get_world_size(group))[dist.get_rank(group)].view_as(output))
        return finished(async_op)

    def reduce_scatter(
        output: torch.Tensor,
        input_list: list[torch.Tensor],
        op: Any = dist.ReduceOp.SUM,
        group: Any = None,
        async_op: bool = False,
    ) -> _NoWait | None:
        total = torch.stack([part.detach().contiguous() for part in input_list])
        dist.all_reduce(total, op=op, group=group)
        output.copy_(total[dist.get_rank(group)])
        return finished(async_op)

    def all_to_all(
        output_tensor_list: list[torch.Tensor],
        input_tensor_list: list[torch.Tensor],
        group: Any = None,
        async_op: bool = False,
    ) -> _NoWait | None:
        mine = torch.stack([part.detach().contiguous() for part in input_tensor_list])
        everyones = [torch.empty_like(mine) for _ in output_tensor_list]
        dist.all_gather(everyones, mine, group=group)
        for output, theirs in zip(output_tensor_list, everyones, strict=True):
            output.copy_(theirs[dist.get_rank(group)])
        return finished(async_op)

    dist.reduce_scatter_tensor = reduce_scatter_tensor
    dist.reduce_scatter = reduce_scatter
    dist.all_to_all = all_to_all


def _override_pipeline_backend_check() -> None:
    """pipeline/p2p.py:159 asks for torch.distributed.is_hccl_available and Backend.HCCL, which do not exist."""
    import torch.distributed as dist
    from colossalai.pipeline import p2p

    p2p._check_for_nccl_hccl_backend = lambda group: dist.get_backend(group) == "nccl"


def _override_adam_kernel() -> None:
    """kernel/kernel_loader.py:75: CPUAdam and HybridAdam compile a C++ kernel when they are made.

    PyTorch's fused CPU AdamW computes the same update (decoupled decay, bias correction, eps outside the
    corrected square root) in one pass over memory and needs no compiler.
    """
    from colossalai.nn.optimizer import cpu_adam

    class KernelLoader:
        def load(self) -> type:
            return KernelModule

    class KernelModule:
        CPUAdamOptimizer = _FusedTorchAdam

    cpu_adam.CPUAdamLoader = KernelLoader


class _FusedTorchAdam:
    """The interface of Colossal-AI's CPU Adam kernel on torch.optim's fused functional Adam and AdamW."""

    def __init__(
        self, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, adamw_mode: bool
    ) -> None:
        self._decoupled_decay = adamw_mode

    def step(
        self,
        step: int,
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        bias_correction: bool,
        param: torch.Tensor,
        grad: torch.Tensor,
        exp_avg: torch.Tensor,
        exp_avg_sq: torch.Tensor,
        div_scale: float,
    ) -> None:
        """Update ``param``, ``exp_avg`` and ``exp_avg_sq`` in place; ``step`` counts from 1.

        ``div_scale`` > 0 divides the gradient first (loss scale times clipping factor).
        """
        import torch
        from torch.optim.adam import adam
        from torch.optim.adamw import adamw

        if not bias_correction:
            raise ValueError("Adam without bias correction is not available on the host")
        scale = torch.tensor(float(div_scale)) if div_scale > 0 else None
        (adamw if self._decoupled_decay else adam)(
            [param],
            [grad.to(param.dtype)],
            [exp_avg],
            [exp_avg_sq],
            [],
            [torch.tensor(float(step - 1))],
            fused=True,
            grad_scale=scale,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=lr,
            weight_decay=weight_decay,
            eps=eps,
            maximize=False,
        )


def _override_gemini_memory_tiers() -> None:
    """zero/gemini/chunk/chunk.py books chunks under "cuda" or "cpu" by the device type of their tensors.

    On the host both tiers are the same memory, so there is one tier, booked as "cuda", and nothing is ever
    offloaded: offload fractions have no effect here, and the offload path runs on GPUs only.
    """
    import torch
    from colossalai.zero.gemini.chunk.chunk import Chunk
    from colossalai.zero.gemini.chunk.manager import ChunkManager

    original_init = Chunk.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original_init(self, *args, **(kwargs | {"pin_memory": False, "cpu_shard_init": False}))
        # close_chunk() drops the shard it is to keep when this says "cpu"; any other device type will do.
        self.shard_device = torch.device("meta")

    def memory_usage(self: Any) -> dict[str, int]:
        if self.chunk_temp is not None:
            held = self.chunk_mem
        else:
            held = self.chunk_mem * self.is_gathered + self.shard_mem * (self.cuda_shard is not None)
        return {"cuda": held, "cpu": 0}

    def shard_move(self: Any, device: Any, force_copy: bool = False, non_blocking: bool = False) -> None:
        assert not self.is_gathered

    def add_extern_static_tensor(self: Any, tensor: torch.Tensor) -> None:
        self.total_mem["cuda"] += tensor.numel() * tensor.element_size()

    Chunk.__init__ = init
    Chunk.memory_usage = property(memory_usage)
    Chunk.device_type = property(lambda self: "cuda")
    Chunk.shard_move = shard_move
    ChunkManager.add_extern_static_tensor = add_extern_static_tensor


def _override_gemini_memory_monitor() -> None:
    """zero/gemini/memory_tracer/memory_monitor.py:137 reads torch.cuda's peak memory.

    With one memory tier nothing is placed by it, so the figure is zero.
    """
    from colossalai.zero.gemini.memory_tracer.memory_monitor import SyncCudaMemoryMonitor

    def finish(self: Any) -> int:
        self.time_stamps.append(time.time())
        self.mem_stats.append(0)
        return 0

    SyncCudaMemoryMonitor.start = lambda self: None
    SyncCudaMemoryMonitor.finish = finish


def _override_memory_capacity() -> None:
    """legacy/utils/memory.py:113 divides by a process count that is -1 outside the legacy launcher.

    gemini_auto would see a negative capacity.
    """
    import psutil
    from colossalai.legacy.utils import memory

    def capacity(device: Any) -> float:
        return psutil.virtual_memory().total / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    memory.colo_device_memory_capacity = capacity


def _override_pinned_memory() -> None:
    """checkpoint_io/utils.py:967 and zero/low_level/low_level_optim.py:812 pin host memory while loading,
    which fails without a GPU driver. On the host pageable memory serves.
    """
    import torch

    def without_pinning(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def allocate_pageable(*args: Any, **kwargs: Any) -> torch.Tensor:
            kwargs.pop("pin_memory", None)
            return allocate(*args, **kwargs)

        return allocate_pageable

    for name in ("empty", "empty_like"):
        setattr(torch, name, without_pinning(getattr(torch, name)))
    torch.Tensor.pin_memory = lambda self, *args: self  # type: ignore[method-assign,misc,assignment]


OVERRIDES: tuple[Callable[[], None], ...] = (
    _override_zero_device_check,
    _override_record_stream,
    override_gloo_collectives,
    _override_pipeline_backend_check,
    _override_adam_kernel,
    _override_gemini_memory_tiers,
    _override_gemini_memory_monitor,
    _override_memory_capacity,
    _override_pinned_memory,
)
