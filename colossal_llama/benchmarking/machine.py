"""What a benchmark ran on, and how much memory there is."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "colossalai", "accelerate", "flash-attn")


def describe_machine(device: str) -> dict[str, Any]:
    """Hardware and versions.

    Args:
        device: of this process.
    """
    import torch

    from colossal_llama.metrics.device import device_name

    facts: dict[str, Any] = {
        "device": processor_name() if device == "cpu" else device_name(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
    }
    return facts | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor_name() -> str:
    """What the processor calls itself."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def free_memory_bytes(device: str, processes_here: int) -> int:
    """Memory that one process may still take: of its GPU, or its share of the host's.

    Args:
        device: of this process.
        processes_here: that share the host's memory.
    """
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available // processes_here
