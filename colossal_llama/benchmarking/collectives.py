"""Time and bytes of torch.distributed's collectives, by wrapping its functions.

What calls them in C++ is not seen; the one such caller here is DDP's reducer, to which :mod:`.split` gives a hook in
Python.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import time
from collections.abc import Callable, Iterator
from typing import Any

from colossal_llama.benchmarking.clock import PhaseClock

COMMUNICATION = "communication"

WRAPPED = (
    "all_reduce", "all_gather", "all_gather_into_tensor", "reduce_scatter", "reduce_scatter_tensor", "all_to_all",
    "all_to_all_single", "broadcast", "reduce", "gather", "scatter", "send", "recv", "batch_isend_irecv", "barrier",
    "all_gather_object", "broadcast_object_list",
)  # fmt: skip
"""Functions of torch.distributed. ``isend`` and ``irecv`` stay as they are: P2POp compares them by identity."""


def wait_for(result: Any) -> None:
    """Wait for a collective that runs on.

    Not for what ``batch_isend_irecv`` returns, a list: gloo's sends and receives may be waited for only once, and a
    pipeline does so itself, inside what :mod:`.split` charges to communication.
    """
    if hasattr(result, "wait"):
        result.wait()


@contextlib.contextmanager
def _wrapped_collectives(wrap: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Put what ``wrap`` makes of each function (name, function) in its place in torch.distributed, for a while."""
    import torch.distributed as dist

    originals = {name: getattr(dist, name) for name in WRAPPED}
    try:
        for name, function in originals.items():
            setattr(dist, name, wrap(name, function))
        yield
    finally:
        for name, function in originals.items():
            setattr(dist, name, function)


SETTLING_SECONDS = 0.005


@contextlib.contextmanager
def settled_collectives(enabled: bool) -> Iterator[None]:
    """Let a collective return only when gloo's threads have dropped its tensors, while the context lasts.

    Otherwise they may be the last to hold one, and a block that another thread frees is not seen by
    :func:`.memory_trace.traced_memory`, which would count it for ever.
    """
    if not enabled:
        yield
        return

    def settled(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            wait_for(result)
            time.sleep(SETTLING_SECONDS)
            return result

        return call

    with _wrapped_collectives(settled):
        yield


class CollectiveMeter:
    """Charges collectives to the phase :data:`COMMUNICATION` and counts what this rank sends.

    Every collective is waited for where it is called, also those that would run beside the computation: the time is
    what communication takes when nothing hides it.

    Args:
        clock: that is charged.

    Attributes:
        sent_bytes: since the meter was installed.
        calls: outermost calls, by name.
    """

    def __init__(self, clock: PhaseClock) -> None:
        self.sent_bytes = 0.0
        self.calls: dict[str, int] = {}
        self._clock = clock
        self._depth = 0

    @contextlib.contextmanager
    def installed(self) -> Iterator[CollectiveMeter]:
        """Wrap torch.distributed's functions while the context lasts."""
        with _wrapped_collectives(self._wrapped):
            yield self

    def _wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function)

        def call(*args: Any, **kwargs: Any) -> Any:
            if self._depth:  # one collective made of others, as on the host
                return function(*args, **kwargs)
            self._depth += 1
            try:
                with self._clock.phase(COMMUNICATION):
                    result = function(*args, **kwargs)
                    wait_for(result)
            finally:
                self._depth -= 1
            self.calls[name] = self.calls.get(name, 0) + 1
            self.sent_bytes += sent_bytes(name, signature.bind(*args, **kwargs).arguments)
            return result

        return call


def sent_bytes(name: str, arguments: dict[str, Any]) -> float:
    """Bytes that a rank sends in a collective, by the ring algorithms (Patarasuk and Yuan 2009; as NCCL's tests count).

    With n ranks: an all-reduce sends 2 (n - 1) / n of its tensor, a reduce-scatter (n - 1) / n of its input, an
    all-gather n - 1 times its input, an all-to-all (n - 1) / n of its input. Objects count nothing: they are small.

    Args:
        name: of torch.distributed's function.
        arguments: by its names of parameters.
    """
    import torch.distributed as dist

    if name == "batch_isend_irecv":
        return sum(_bytes(op.tensor) for op in arguments["p2p_op_list"] if op.op is dist.isend)
    ranks = dist.get_world_size(arguments.get("group"))
    share = (ranks - 1) / ranks
    tensor = {
        "all_reduce": ("tensor", 2 * share),
        "all_gather": ("tensor", ranks - 1),
        "all_gather_into_tensor": ("input_tensor", ranks - 1),
        "reduce_scatter": ("input_list", share),
        "reduce_scatter_tensor": ("input", share),
        "all_to_all": ("input_tensor_list", share),
        "all_to_all_single": ("input", share),
        "broadcast": ("tensor", share),
        "reduce": ("tensor", share),
        "gather": ("tensor", 1),
        "send": ("tensor", 1),
    }.get(name)
    return 0.0 if tensor is None else _bytes(arguments[tensor[0]]) * tensor[1]


def _bytes(tensors: Any) -> int:
    if isinstance(tensors, (list, tuple)):
        return sum(_bytes(tensor) for tensor in tensors)
    return tensors.numel() * tensors.element_size()
