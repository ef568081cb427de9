"""fp32 master weights, which Colossal-AI's checkpoints leave out.

ZeRO, the hybrid plugin and Gemini train in bf16 or fp16 and keep the true weights as fp32 masters in the
optimizer. Their model checkpoints hold the rounded working weights only; a run resumed from those is another
run. Each rank therefore stores its masters beside them, and restores them after everything else is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from colossal_llama.errors import UserError


def master_weights(model: Any, optimizer: Any) -> dict[str, Any]:
    """This rank's fp32 masters by name: tensors that alias the optimizer's, or nothing where there are none.

    Recognised by what the wrapped optimizer has: ``working_to_master_param`` (LowLevelZeroOptimizer),
    ``working_to_master_map`` (HybridParallelAMPOptimizer), ``chunk16_set`` (GeminiOptimizer, whose masters are
    the paired chunks' payloads). fp32 training has none.
    """
    names = {id(param): name for name, param in model.unwrap().named_parameters()}
    if hasattr(optimizer, "chunk16_set"):
        chunks = sorted(optimizer.chunk16_set, key=lambda chunk: chunk.count_id)
        return {f"chunk-{index:05d}": chunk.paired_chunk.payload for index, chunk in enumerate(chunks)}
    if hasattr(optimizer, "working_to_master_param"):
        return {names[param_id]: master for param_id, master in optimizer.working_to_master_param.items()}
    if hasattr(optimizer, "working_to_master_map"):
        return {names[id(param)]: master for param, master in optimizer.working_to_master_map.items()}
    return {}


def masters_path(folder: Path, rank: int, world_size: int) -> Path:
    """File of one rank's masters."""
    return folder / f"rank-{rank:05d}-of-{world_size:05d}.pt"


def save_masters(model: Any, optimizer: Any, folder: Path, rank: int, world_size: int) -> None:
    """Write this rank's masters, if it has any."""
    import torch

    masters = master_weights(model, optimizer)
    if masters:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(
            {name: tensor.detach().cpu() for name, tensor in masters.items()},
            masters_path(folder, rank, world_size),
        )


def load_masters(model: Any, optimizer: Any, folder: Path, rank: int, world_size: int) -> None:
    """Restore this rank's masters in place, and Gemini's working chunks from them.

    Raises:
        UserError: the file is missing or holds other weights: it comes from another layout of ranks.
    """
    import torch

    current = master_weights(model, optimizer)
    if not current:
        return
    path = masters_path(folder, rank, world_size)
    if not path.is_file():
        raise UserError(
            f"{path}: missing; resume with the number of processes and the layout that wrote {folder.parent}"
        )
    stored = torch.load(path, map_location="cpu", weights_only=True)
    if {name: tensor.shape for name, tensor in stored.items()} != {n: t.shape for n, t in current.items()}:
        raise UserError(f"{path}: holds other weights; resume with the plugin and layout that wrote {folder.parent}")
    with torch.no_grad():
        for name, tensor in current.items():
            tensor.copy_(stored[name])
        for chunk in getattr(optimizer, "chunk16_set", ()):
            chunk.payload.copy_(chunk.paired_chunk.payload)
