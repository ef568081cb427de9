"""Writing and reading an optimizer's state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from colossal_llama.checkpoint.resharding import innermost_optimizer
from colossal_llama.errors import UserError

if TYPE_CHECKING:
    from colossal_llama.checkpoint.file_writer import HostSnapshots
    from colossal_llama.checkpoint.zero_states import Deferred

SHARD_MIB = 1024


class OptimizerStore(Protocol):
    """Keeps the state of a boosted optimizer in a folder; all ranks call it together."""

    def save(self, optimizer: Any, folder: Path, snapshots: HostSnapshots | None = None) -> Deferred | None:
        """Write the state into ``folder``.

        Args:
            optimizer: the boosted optimizer.
            folder: an empty folder.
            snapshots: given where the rest of the work may be left to a thread.

        Returns:
            that rest, if there is any.
        """
        ...

    def load(self, optimizer: Any, folder: Path) -> None:
        """Restore the state from ``folder``.

        Raises:
            UserError: the folder belongs to another layout of ranks or other parameters.
        """
        ...


class BoosterStore:
    """The Booster's own shards: for optimizers whose states are fp32 tensors of the parameter's shape."""

    def __init__(self, booster: Any) -> None:
        self._booster = booster

    def save(self, optimizer: Any, folder: Path, snapshots: HostSnapshots | None = None) -> Deferred | None:
        """See :class:`OptimizerStore`; with the zero2 plugins the gathering is left to the thread."""
        from colossal_llama.checkpoint.zero_states import gathers_in_background, snapshot_states

        stored = _stored(optimizer)
        if snapshots is not None and gathers_in_background(stored):
            return snapshot_states(stored, folder, snapshots, SHARD_MIB)
        self._booster.save_optimizer(stored, str(folder), shard=True, size_per_shard=SHARD_MIB)
        return None

    def load(self, optimizer: Any, folder: Path) -> None:
        """See :class:`OptimizerStore`."""
        self._booster.load_optimizer(_stored(optimizer), str(folder))


class RankStore:
    """A file for each rank with a state of its own, as the optimizer holds it: any dtype, any shape.

    Colossal-AI's checkpoints gather every state tensor as if it were a parameter's shard, and cast it to the
    parameter's dtype. Rows and columns of factored moments, 8-bit states and projections do not survive that.

    Args:
        rank: of this process.
        owner: the rank whose file holds this rank's state: the first of those with the same parameters.
    """

    def __init__(self, rank: int, owner: int) -> None:
        self._rank = rank
        self._owner = owner

    def save(self, optimizer: Any, folder: Path, snapshots: HostSnapshots | None = None) -> None:
        """See :class:`OptimizerStore`."""
        import torch

        if self._rank != self._owner:
            return
        folder.mkdir(parents=True, exist_ok=True)
        inner = innermost_optimizer(optimizer)
        groups = [{key: value for key, value in group.items() if key != "params"} for group in inner.param_groups]
        states = [[inner.state.get(param, {}) for param in group["params"]] for group in inner.param_groups]
        torch.save({"groups": groups, "states": states}, self._path(folder))

    def load(self, optimizer: Any, folder: Path) -> None:
        """See :class:`OptimizerStore`."""
        import torch

        path = self._path(folder)
        inner = innermost_optimizer(optimizer)
        sizes = [len(group["params"]) for group in inner.param_groups]
        if not path.is_file():
            raise UserError(f"{path}: missing; resume with the number of processes and the layout that wrote it")
        # The file is one of our own checkpoints; GaLore's projections are objects.
        stored = torch.load(path, map_location="cpu", weights_only=False)
        if [len(states) for states in stored["states"]] != sizes:
            raise UserError(f"{path}: holds the states of other parameters; resume with the flags that wrote it")
        for group, settings, states in zip(inner.param_groups, stored["groups"], stored["states"], strict=True):
            group.update(settings)
            for param, state in zip(group["params"], states, strict=True):
                if state:
                    inner.state[param] = _on_device(state, param.device)

    def _path(self, folder: Path) -> Path:
        return folder / f"rank-{self._owner:05d}.pt"


def _stored(optimizer: Any) -> Any:
    """The wrapper whose state the Booster can store: under torch's AMP (ddp in fp16) there are two."""
    return optimizer.optim if hasattr(optimizer.optim, "optim") else optimizer


def _on_device(value: Any, device: Any) -> Any:
    """A state with its tensors on ``device``; attributes of objects (GaLore's projector) too."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _on_device(entry, device) for key, entry in value.items()}
    if hasattr(value, "__dict__"):
        vars(value).update({name: _on_device(entry, device) for name, entry in vars(value).items()})
    return value
