"""How long a training would take, from its floating-point operations."""

from __future__ import annotations


def training_seconds(flops: float, devices: int, peak_tflops: float, mfu: float) -> float:
    """Seconds that ``flops`` take: ``flops / (devices * peak * MFU)``.

    MFU is the model FLOPs utilisation of PaLM (Chowdhery et al. 2022, appendix B): the share of the peak that goes into
    :func:`metrics.flops.flops_per_token`. What gradient checkpointing computes again is no model FLOP, so it lowers the
    MFU instead.

    Args:
        flops: of the whole training, all devices together.
        devices: number of them.
        peak_tflops: peak of one device in 1e12 FLOP/s for the precision that is trained in.
        mfu: between 0 and 1.
    """
    return flops / (devices * peak_tflops * 1e12 * mfu)
