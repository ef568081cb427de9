"""The device that a process computes on: its name, and how much memory it has taken at most."""

from __future__ import annotations

import resource
import sys


def device_name(device: str) -> str:
    """What the driver calls a GPU; ``cpu`` for the host."""
    if not device.startswith("cuda"):
        return "cpu"
    import torch

    return torch.cuda.get_device_name(device)


def peak_memory_bytes(device: str) -> int:
    """The most memory that tensors have taken on a GPU since the process began; on the host, the whole process."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
