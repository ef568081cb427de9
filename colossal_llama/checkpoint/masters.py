"""fp32 master weights, which Colossal-AI's checkpoints leave out.

ZeRO, the hybrid plugin and Gemini train in bf16 or fp16 and keep the true weights as fp32 masters in the optimizer.
Their model checkpoints hold the rounded working weights only; a run resumed from those is another run. Each rank
therefore writes the pieces it holds to ``masters/``, see :mod:`.piece_files`. A plugin that trains in fp32 has its true
weights in ``modeling/``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from colossal_llama.checkpoint.piece_files import PIECE_FILES, NamedPiece, Place, StoredPieces, write_pieces
from colossal_llama.checkpoint.weight_pieces import names_of, pieces_to_write, plain_name, weight_pieces
from colossal_llama.errors import UserError

if TYPE_CHECKING:
    from colossal_llama.checkpoint.file_writer import FileWriter

MASTERS = "masters"
MODELING = "modeling"


def save_masters(model: Any, optimizer: Any, folder: Path, rank: int, world_size: int, writer: FileWriter) -> None:
    """Write this rank's share of the masters, if the plugin keeps any; collective."""
    pieces = [piece for piece in weight_pieces(model, optimizer) if piece.is_master]
    mine = [NamedPiece(piece.name, piece.place, piece.tensor) for piece in pieces_to_write(pieces, rank)]
    write_pieces(mine, folder, rank, world_size, writer)


class StoredWeights:
    """The true weights in a checkpoint: its ``masters/``, or, without, the fp32 weights in its ``modeling/``.

    Args:
        checkpoint: the checkpoint's folder.

    Raises:
        UserError: a file is damaged, or the masters are those of a version that stored them for one layout only.
    """

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        masters = sorted((checkpoint / MASTERS).glob(PIECE_FILES))
        if not masters and (checkpoint / MASTERS).is_dir():
            raise UserError(
                f"{checkpoint / MASTERS}: no file that this version can read; start a new run from the weights with "
                f"--load_checkpoint {checkpoint / MODELING}"
            )
        self._stored = StoredPieces(masters or sorted((checkpoint / MODELING).glob("*.safetensors")))
        self._keys = {plain_name(key): key for key in self._stored.keys}

    @property
    def names(self) -> list[str]:
        """The parameters that are stored."""
        return list(self._keys)

    def piece(self, name: str, place: Place) -> Any:
        """The elements of a parameter at ``place``: flat fp32.

        Raises:
            UserError: see :meth:`whole`.
        """
        return self._in_fp32(self._stored.piece(self._key(name), place))

    def whole(self, name: str) -> Any:
        """A parameter put together from its pieces: fp32.

        Raises:
            UserError: it or pieces of it are missing, or it is stored in a lower precision.
        """
        return self._in_fp32(self._stored.whole(self._key(name)))

    def _key(self, name: str) -> str:
        for known in names_of(name, self._checkpoint / MODELING):
            if known in self._keys:
                return self._keys[known]
        raise UserError(f"{self._checkpoint}: holds no weights of {name}; resume from another checkpoint")

    def _in_fp32(self, tensor: Any) -> Any:
        import torch

        if tensor.dtype != torch.float32:
            raise UserError(
                f"{self._checkpoint}: lacks the fp32 master weights; start a new run from its weights with "
                f"--load_checkpoint {self._checkpoint / MODELING}"
            )
        return tensor


def load_masters(model: Any, optimizer: Any, checkpoint: Path, same_layout: bool) -> None:
    """Restore this rank's masters in place, and what is rounded from them where the layout has changed.

    The model itself has been loaded from the checkpoint's ``modeling`` folder before.

    Raises:
        UserError: weights are missing; see :class:`StoredWeights`.
    """
    import torch

    pieces = weight_pieces(model, optimizer)
    if same_layout and not any(piece.is_master for piece in pieces):
        return
    stored = StoredWeights(checkpoint)
    with torch.no_grad():
        for piece in pieces:
            if same_layout or piece.working is None:
                piece.tensor.copy_(stored.piece(piece.name, piece.place))
                continue
            whole = stored.whole(piece.name)
            piece.tensor.copy_(piece.place.cut(whole))
            piece.working.copy_(piece.place.slice_of(whole))
        for chunk in getattr(optimizer, "chunk16_set", ()):
            chunk.payload.copy_(chunk.paired_chunk.payload)
