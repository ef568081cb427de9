"""The fp16 loss scale inside a boosted optimizer: where each plugin keeps it, and what of it changes."""

from __future__ import annotations

from typing import Any

_FIELDS = ("_scale", "_growth_step", "_hysteresis_step", "_growth_tracker")


def loss_scaler(optimizer: Any) -> Any:
    """The fp16 gradient scaler inside a boosted optimizer, wherever that plugin keeps it, or None."""
    for holder_name in ("mixed_precision_mixin", "mix_precision_mixin", "mixed_precision"):
        scaler = getattr(getattr(optimizer, holder_name, None), "grad_scaler", None)
        if scaler is not None:
            return scaler
    return getattr(optimizer, "scaler", None)


def scaler_state(scaler: Any) -> dict[str, Any]:
    """All that changes in a scaler. Colossal-AI's own state_dict leaves the step counters out."""
    return {name: getattr(scaler, name) for name in _FIELDS if hasattr(scaler, name)}


def copied_scaler_state(scaler: Any) -> dict[str, Any]:
    """:func:`scaler_state` as it is now: torch's scaler changes its tensors in place."""
    return {name: value.clone() if hasattr(value, "clone") else value for name, value in scaler_state(scaler).items()}


def restore_scaler(scaler: Any, state: dict[str, Any]) -> None:
    """Put a scaler back into the state that :func:`scaler_state` or :func:`copied_scaler_state` gave."""
    for name, value in state.items():
        setattr(scaler, name, value)
