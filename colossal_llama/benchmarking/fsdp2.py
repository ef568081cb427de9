"""PyTorch's FSDP2 (``fully_shard``), from wherever the installed version has it."""

from __future__ import annotations

import contextlib
import importlib
import types
from collections.abc import Iterator
from typing import Any


def shard(model: Any, dtype: Any, device: str) -> Any:
    """Shard each decoder layer and then the rest over all ranks; weights stay fp32 and are gathered in ``dtype``.

    Args:
        model: a causal LM of transformers whose layers are ``model.model.layers``.
        dtype: of the forward and backward pass; None for fp32.
        device: of this process.
    """
    import torch

    fsdp = importlib.import_module("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard"):  # before torch 2.6
        fsdp = importlib.import_module("torch.distributed._composable.fsdp")
        if device == "cpu":
            allow_host()
    policy = fsdp.MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32 if dtype is not None else None)
    for layer in model.model.layers:
        fsdp.fully_shard(layer, mp_policy=policy)
    return fsdp.fully_shard(model, mp_policy=policy)


@contextlib.contextmanager
def sync_only_last(model: Any, is_last: bool) -> Iterator[None]:
    """Gradients are reduced in the last of the accumulated passes only."""
    model.set_requires_gradient_sync(is_last)
    yield


class _Done:
    """Stands for a CUDA stream or event: on the host everything is done on return."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def record(self, *args: Any) -> None:
        pass

    def record_event(self, *args: Any) -> _Done:
        return self

    def wait_event(self, event: Any) -> None:
        pass

    def wait_stream(self, stream: Any) -> None:
        pass


class _HostTorch:
    """torch as FSDP's modules see it: without the streams that it insists on."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self.cuda = types.SimpleNamespace(
            is_available=lambda: True,
            Stream=_Done,
            Event=_Done,
            current_stream=_Done,
            stream=lambda stream: contextlib.nullcontext(),
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, name)


def allow_host() -> None:
    """Let torch 2.5's FSDP2 run on the host, where it refuses (_fsdp_param_group.py:47): "requires CUDA for streams".

    Gloo reduces no mean (ReduceOp.AVG), so gradients are divided before they are summed. And what fills gathered
    weights again for the backward pass must not look to autograd as if it changed them; on a GPU a fused kernel does
    not.
    """
    import torch
    from torch.distributed._composable.fsdp import _fsdp_collectives, _fsdp_param_group, _fsdp_state

    from colossal_llama.distributed.host import override_gloo_collectives

    for module in (_fsdp_collectives, _fsdp_param_group, _fsdp_state):
        module.torch = _HostTorch(torch)  # type: ignore[attr-defined]
    _fsdp_collectives._get_gradient_divide_factors = lambda reduce_group, all_reduce_group, dtype: (  # type: ignore[assignment]
        float(reduce_group.size()),
        1.0,
    )
    _fsdp_param_group.foreach_all_gather_copy_out = _unnoticed(_fsdp_param_group.foreach_all_gather_copy_out)
    override_gloo_collectives()


def _unnoticed(copy_out: Any) -> Any:
    """FSDP's function that fills the gathered weights, without a new version of them."""
    import torch

    def wrapped(gathered: Any, params: Any, group: Any) -> None:
        with contextlib.ExitStack() as stack:
            for param in params:
                for output in getattr(param, "all_gather_outputs", []):
                    stack.enter_context(torch.autograd._unsafe_preserve_version_counter(output))
            copy_out(gathered, params, group)

    return wrapped
