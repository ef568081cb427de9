"""Whether an optimizer step changed the weights, and how to keep one that must not from doing so.

Every plugin ends a step by calling ``step`` of the torch optimizer that it wraps, after it has averaged, unscaled,
measured and clipped the gradients, and cleans up afterwards. Torch calls a pre-hook just before: there the gradients
can be taken away. Optimizers pass over parameters without gradient, so that neither weights nor moments nor step
counts change, and the plugin's own cleaning goes its usual way.
"""

from __future__ import annotations

import math
from typing import Any

from colossal_llama.distributed.loss_scale import copied_scaler_state, loss_scaler, restore_scaler

APPLIED = "applied"
OVERFLOW = "overflow"
"""The fp16 loss scaler found its scale too large and left the step out; it does so from time to time."""
NOT_FINITE = "not_finite"
"""The loss or the gradient norm was NaN or infinite."""


class UpdateGuard:
    """Watches the updates of one boosted optimizer.

    Args:
        optimizer: as the Booster returned it.
        drops: drop the update of a step whose loss or gradient norm is not finite.
        device: for the question whether all ranks agree.
    """

    def __init__(self, optimizer: Any, drops: bool, device: str) -> None:
        self._optimizer = optimizer
        self._scaler = loss_scaler(optimizer)
        self._drops = drops
        self._device = device
        self._loss = 0.0
        self._norm: float | None = None
        self._reached = self._dropped = False
        self._scale_before: dict[str, Any] | None = None
        inner = optimizer
        while hasattr(inner, "optim"):
            inner = inner.optim
        inner.register_step_pre_hook(self._before_update)

    def step(self, loss: float, grad_norm: float | None = None) -> tuple[str, float | None]:
        """Let the optimizer step, unless the update has to be dropped. All ranks call it.

        Args:
            loss: of the step, the same on all ranks.
            grad_norm: where the plugin does not measure it itself.

        Returns:
            :data:`APPLIED`, :data:`OVERFLOW` or :data:`NOT_FINITE`, and the norm of the unscaled gradients before
            clipping, None where nothing measured it.
        """
        self._loss, self._norm = loss, grad_norm
        self._reached = self._dropped = False
        scale = self._scale()
        if self._drops and self._scaler is not None and not math.isfinite(loss):
            # A NaN in the loss says nothing about the scale, but the scaler would lower it.
            self._scale_before = copied_scaler_state(self._scaler)
        self._optimizer.step()
        if self._scale_before is not None:
            restore_scaler(self._scaler, self._scale_before)
            self._scale_before = None
        norm = self._norm
        if self._applied and norm is None:
            measured = self._measured_norm()
            norm = None if measured is None else measured / scale
        return self._outcome(), norm

    def _outcome(self) -> str:
        if self._dropped or not math.isfinite(self._loss):
            return NOT_FINITE
        return APPLIED if self._applied else OVERFLOW

    @property
    def _applied(self) -> bool:
        """Only a loss scaler keeps a step from the optimizer."""
        return self._reached or self._scaler is None

    def _scale(self) -> float:
        scale = getattr(self._scaler, "_scale", None)
        return 1.0 if scale is None else float(scale)

    def _measured_norm(self) -> float | None:
        norm = self._optimizer.get_grad_norm() if hasattr(self._optimizer, "get_grad_norm") else None
        return None if norm is None else float(norm)

    def _before_update(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Torch's pre-hook: take the gradients away where the update must be dropped."""
        self._reached = True
        if not self._drops or self._all_finite(optimizer):
            return
        self._dropped = True
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = None

    def _all_finite(self, optimizer: Any) -> bool:
        import torch
        import torch.distributed as dist

        finite = torch.tensor(float(math.isfinite(self._loss) and self._gradients_finite(optimizer)))
        finite = finite.to(self._device)
        # Shards differ, and a rank that updated alone would part from the others for good.
        dist.all_reduce(finite, op=dist.ReduceOp.MIN)
        return bool(finite.item())

    def _gradients_finite(self, optimizer: Any) -> bool:
        import torch

        norm = self._measured_norm() if self._norm is None else self._norm
        if norm is not None:
            return math.isfinite(norm)
        # Without clipping some plugins measure no norm.
        grads = [param.grad for group in optimizer.param_groups for param in group["params"] if param.grad is not None]
        return all(bool(torch.isfinite(grad).all()) for grad in grads)
