"""What tensors take in host memory, allocation by allocation.

The resident set of a process says little about it: it also holds the libraries, and what malloc has not given back.
PyTorch's profiler is told of every block that the CPU allocator hands out and takes back, inside operators too; their
running sum is what ``torch.cuda.memory_allocated`` is on a GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class MemoryTrace:
    """Bytes of tensors in host memory.

    Attributes:
        peak: the most at any time, known when the trace has ended.
        at_marks: when each mark was set.
    """

    peak: int = 0
    at_marks: dict[str, int] = field(default_factory=dict)


MARK = "colossal_llama.mark."


@contextlib.contextmanager
def traced_memory(enabled: bool) -> Iterator[MemoryTrace]:
    """Trace while the context lasts. What was allocated before and is freed inside is not counted at all.

    Threads other than the calling one are not seen: the loader's (some kilobytes of rows), and gloo's.
    """
    trace = MemoryTrace()
    if not enabled:
        yield trace
        return
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, record_shapes=False) as profiler:
        yield trace
    trace.peak, trace.at_marks = _replay(profiler)


@contextlib.contextmanager
def mark(name: str) -> Iterator[None]:
    """Note what is allocated when the context begins, under ``name``; the last one of a name counts."""
    from torch.profiler import record_function

    with record_function(MARK + name):
        yield


def _replay(profiler: Any) -> tuple[int, dict[str, int]]:
    """Peak and marks from the profiler's events."""
    current = peak = 0
    marks: dict[str, int] = {}
    events = profiler.profiler.kineto_results.events()
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            if "CPU" in str(event.device_type()):
                current += event.nbytes()
                peak = max(peak, current)
        elif event.name().startswith(MARK):
            marks[event.name().removeprefix(MARK)] = current
    return peak, marks
