"""Writing and reading an optimizer's states.

Colossal-AI's own checkpoints gather every state on one rank while the training waits, and take all of them for fp32
tensors. Here each rank writes what it holds. The parameter groups are not stored: their settings come from the flags.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from colossal_llama.checkpoint.masters import MODELING
from colossal_llama.checkpoint.piece_files import PIECE_FILES, NamedPiece, StoredPieces, write_pieces
from colossal_llama.checkpoint.safe_load import load_safely
from colossal_llama.checkpoint.weight_pieces import Piece, names_of, pieces_to_write, weight_pieces
from colossal_llama.errors import UserError

if TYPE_CHECKING:
    from colossal_llama.checkpoint.file_writer import FileWriter


def innermost_optimizer(optimizer: Any) -> Any:
    """The optimizer itself, without Colossal-AI's wrappers."""
    while hasattr(optimizer, "optim"):
        optimizer = optimizer.optim
    return optimizer


class OptimizerStore(Protocol):
    """Keeps the states of the run's optimizer in a folder; all ranks call it together."""

    def save(self, folder: Path, writer: FileWriter) -> None:
        """Write the states into ``folder``, through ``writer`` or with ``torch.save``, which it has taken over."""
        ...

    def load(self, folder: Path, same_layout: bool) -> None:
        """Restore the states from ``folder``.

        Args:
            folder: what :meth:`save` filled.
            same_layout: on the layout of ranks that this run has too.

        Raises:
            UserError: they cannot be restored on this layout, belong to other parameters, or are of a version that
                stored them in another way.
        """
        ...


class PieceStore:
    """For states with an entry for each element of a parameter: stored in pieces, read on any layout.

    A file's keys are ``<state>/<parameter>``; single numbers (step counts) stand in the files' metadata.

    Args:
        model, optimizer: as boosted.
        rank, world_size: of this process.
    """

    def __init__(self, model: Any, optimizer: Any, rank: int, world_size: int) -> None:
        self._model = model
        self._optimizer = optimizer
        self._rank = rank
        self._world_size = world_size

    def save(self, folder: Path, writer: FileWriter) -> None:
        """See :class:`OptimizerStore`."""
        import torch

        states = innermost_optimizer(self._optimizer).state
        tensors: list[NamedPiece] = []
        scalars: dict[str, dict[str, Any]] = {}
        for piece in pieces_to_write(weight_pieces(self._model, self._optimizer), self._rank):
            for name, value in states.get(piece.owner, {}).items():
                if isinstance(value, torch.Tensor):
                    tensors.append(
                        NamedPiece(f"{name}/{piece.name}", piece.place, value.reshape(-1)[: piece.place.numel])
                    )
                else:
                    scalars.setdefault(piece.name, {})[name] = value
        # A folder without files is one that lost them: before the first update there is at least an empty file.
        is_first = self._rank == 0
        write_pieces(tensors, folder, self._rank, self._world_size, writer, scalars if tensors or is_first else None)

    def load(self, folder: Path, same_layout: bool) -> None:
        """See :class:`OptimizerStore`."""
        paths = sorted(folder.glob(PIECE_FILES))
        if not paths:
            raise UserError(
                f"{folder}: no file that this version can read; start a new run from the weights with "
                f"--load_checkpoint {folder.parent / MODELING}"
            )
        stored = StoredPieces(paths)
        kinds: dict[str, list[str]] = {}
        for key in stored.keys:
            kind, _, name = key.partition("/")
            kinds.setdefault(name, []).append(kind)
        inner = innermost_optimizer(self._optimizer)
        for piece in weight_pieces(self._model, self._optimizer):
            known = [name for name in names_of(piece.name, folder.parent / MODELING) if name in kinds]
            if known:  # what was never updated has no states
                tensors = {kind: stored.piece(f"{kind}/{known[0]}", piece.place) for kind in kinds[known[0]]}
                restored = {kind: _as_state(tensor, piece) for kind, tensor in tensors.items()}
                inner.state[piece.owner] = stored.scalars.get(known[0], {}) | restored


def _as_state(values: Any, piece: Piece) -> Any:
    """A state of the shape that the optimizer gave it, padded with zeros as ZeRO pads its pieces."""
    import torch

    shape = piece.owner.shape if piece.owner.numel() else values.shape
    state = torch.zeros(shape, dtype=values.dtype, device=piece.owner.device)
    state.view(-1)[: values.numel()] = values
    return state


class RankStore:
    """A file for each rank with states of its own, as the optimizer holds them: any dtype, any shape, one layout.

    Rows and columns of factored moments, 8-bit states and projections belong to a matrix or a block of it, and cannot
    be cut at any element.

    Args:
        optimizer: as boosted.
        rank: of this process.
        owner: the rank whose file holds this rank's states: the first of those with the same parameters.
    """

    def __init__(self, optimizer: Any, rank: int, owner: int) -> None:
        self._optimizer = optimizer
        self._rank = rank
        self._owner = owner

    def save(self, folder: Path, writer: FileWriter) -> None:
        """See :class:`OptimizerStore`."""
        import torch

        if self._rank != self._owner:
            return
        inner = innermost_optimizer(self._optimizer)
        states = [[inner.state.get(param, {}) for param in group["params"]] for group in inner.param_groups]
        torch.save({"states": states}, self._path(folder))

    def load(self, folder: Path, same_layout: bool) -> None:
        """See :class:`OptimizerStore`."""
        if not same_layout:
            checkpoint = folder.parent
            raise UserError(
                f"--load_checkpoint {checkpoint}: the states of this optimizer can only be resumed on the layout that "
                "wrote them; use its plugin, precision, number of processes and parallel sizes, or start a new run "
                f"from the weights with --load_checkpoint {checkpoint / MODELING}"
            )
        path = self._path(folder)
        inner = innermost_optimizer(self._optimizer)
        sizes = [len(group["params"]) for group in inner.param_groups]
        if not path.is_file():
            raise UserError(f"{path}: missing; resume with the number of processes and the layout that wrote it")
        stored = load_safely(path, _state_classes())
        if not isinstance(stored, dict) or [len(states) for states in stored.get("states", ())] != sizes:
            raise UserError(f"{path}: holds the states of other parameters; resume with the flags that wrote it")
        for group, states in zip(inner.param_groups, stored["states"], strict=True):
            for param, state in zip(group["params"], states, strict=True):
                if state:
                    inner.state[param] = _on_device(state, param.device)

    def _path(self, folder: Path) -> Path:
        return folder / f"rank-{self._owner:05d}.pt"


def _state_classes() -> list[Any]:
    """Classes of states that are no tensors: GaLore keeps its projections as objects of plain values and tensors."""
    from galore_torch.galore_projector import GaLoreProjector

    return [GaLoreProjector]


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
