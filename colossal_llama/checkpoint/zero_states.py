"""Optimizer states of the zero2 plugins, gathered in the background.

Colossal-AI gathers the pieces of each state on the training's own process group, and the training waits. Here each rank
copies its pieces to host memory and goes on; a thread gathers them on a group of its own and writes what
``LowLevelZeroCheckpointIO.save_sharded_optimizer`` (colossalai 0.5.0, booster/plugin/low_level_zero_plugin.py) writes:

- ``pytorch_optim-0000N.bin``: ``{index of the parameter: its state}``, up to a size each
- ``pytorch_optim_group.bin``: settings of the parameter groups
- ``pytorch_optim.bin.index.json``: which file holds which parameter
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from colossal_llama.checkpoint.file_writer import FileWriter, HostSnapshots

MIB = 1024 * 1024

Deferred = Callable[["FileWriter", Any], None]
"""What is left to do in the background, given what writes files and a process group of all ranks; collective."""


def gathers_in_background(optimizer: Any) -> bool:
    """Whether a boosted optimizer is one whose pieces :func:`snapshot_states` knows: all ranks share each parameter."""
    import torch.distributed as dist
    from colossalai.zero.low_level import LowLevelZeroOptimizer

    if type(optimizer) is not LowLevelZeroOptimizer:  # 3d's is a subclass with other groups
        return False
    groups = {id(group): group for group in optimizer.param_to_pg.values()}
    return all(
        isinstance(group, dist.ProcessGroup) and group.size() == dist.get_world_size() for group in groups.values()
    )


def snapshot_states(optimizer: Any, folder: Path, snapshots: HostSnapshots, shard_mib: int) -> Deferred:
    """Copy this rank's pieces to host memory.

    Args:
        optimizer: one that :func:`gathers_in_background` knows.
        folder: where its files go.
        snapshots: keeps the copies until the next save.
        shard_mib: largest file, in MiB.

    Returns:
        what gathers and writes them.
    """
    stored = optimizer.optim.state_dict()
    order = [master for group in optimizer.optim.param_groups for master in group["params"]]
    shapes = [optimizer.master_to_working_param[id(master)].shape for master in order]
    states = {index: snapshots.copy(stored["state"][index]) for index in range(len(order)) if index in stored["state"]}
    groups = snapshots.copy(stored["param_groups"])

    def gather_and_write(writer: FileWriter, group: Any) -> None:
        _write(_Pieces(states, shapes, group), groups, folder, shard_mib, writer)

    return gather_and_write


class _Pieces:
    """All ranks' pieces of states. Every method is collective over ``group``; only its first rank gets tensors."""

    def __init__(self, states: dict[int, dict[str, Any]], shapes: list[Any], group: Any) -> None:
        import torch.distributed as dist

        self._states = states
        self._shapes = shapes
        self._group = group
        self.is_first = dist.get_rank(group) == 0

    def files(self, shard_mib: int) -> Iterator[tuple[dict[int, dict[str, Any]], float]]:
        """Content and size in MiB of each file; a parameter's state is never divided."""
        content: dict[int, dict[str, Any]] = {}
        filled = 0.0
        for index, state in self._states.items():
            size = sum(self._shapes[index].numel() * value.element_size() for _, value in _cut(state)) / MIB
            if content and filled + size > shard_mib:
                yield content, filled
                content, filled = {}, 0.0
            content[index] = self._whole(index, state)
            filled += size
        yield content, filled

    def _whole(self, index: int, state: dict[str, Any]) -> dict[str, Any]:
        import torch
        import torch.distributed as dist

        whole = dict(state)
        for name, piece in _cut(state):
            piece = piece.flatten()
            ranks = range(dist.get_world_size(self._group))
            parts = [torch.empty_like(piece) for _ in ranks] if self.is_first else None
            dist.gather(piece, parts, dst=0, group=self._group)
            if parts is not None:
                whole[name] = torch.cat(parts)[: self._shapes[index].numel()].reshape(self._shapes[index])
        return whole


def _cut(state: dict[str, Any]) -> list[tuple[str, Any]]:
    """The tensors of which each rank has a piece: all but the step count, if that is one."""
    import torch

    return [(name, value) for name, value in state.items() if isinstance(value, torch.Tensor) and name != "step"]


def _write(pieces: _Pieces, groups: list[dict], folder: Path, shard_mib: int, writer: FileWriter) -> None:
    from colossalai.checkpoint_io.index_file import CheckpointIndexFile
    from colossalai.checkpoint_io.utils import get_optimizer_base_filenames, get_shard_filename

    states_name, index_name, group_name = get_optimizer_base_filenames()
    index_file = CheckpointIndexFile(str(folder))
    index_file.append_meta_data("param_groups", group_name)
    total = 0.0
    for number, (content, size) in enumerate(pieces.files(shard_mib)):
        name = get_shard_filename(states_name, number)
        total += size
        for index in content:
            index_file.append_weight_map(str(index), name)
        if pieces.is_first:
            writer.write_now(content, folder / name)
    index_file.append_meta_data("total_size", total)
    if pieces.is_first:
        writer.write_now(groups, folder / group_name)
        writer.attempt(lambda: index_file.write_index_file(index_name), folder / index_name)
