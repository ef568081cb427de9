"""A few numbers of every rank, on every rank."""

from __future__ import annotations

from collections.abc import Sequence


def gather_figures(values: Sequence[float], device: str) -> list[list[float]]:
    """Collect the same figures from all ranks; all ranks call it.

    Args:
        values: this rank's; as many on every rank.
        device: of the collective.

    Returns:
        ``[ranks][figures]``.
    """
    import torch
    import torch.distributed as dist

    mine = torch.tensor(values, dtype=torch.float64).to(device)
    everyones = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyones, mine)
    return torch.stack(everyones).tolist()
