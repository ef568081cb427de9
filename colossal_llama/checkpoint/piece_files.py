"""Files of tensors that have a parameter's shape, in the pieces in which ranks hold them.

Each rank writes its pieces to ``rank-RRRRR-of-WWWWW-NNNNN.safetensors``, up to a size each: flat tensors with their
:class:`Place` in the whole as JSON in the file's metadata. Nothing is gathered, and any layout of ranks can read them:
the same one reads its own pieces back, another one puts one tensor after the other together and cuts out what it holds,
so no rank ever has all of a model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colossal_llama.errors import UserError

if TYPE_CHECKING:
    from colossal_llama.checkpoint.file_writer import FileWriter

PIECE_FILES = "rank-*.safetensors"
PLACES, SCALARS = "places", "scalars"
FILE_BYTES = 1 << 30
"""Most that a file holds, unless a piece alone is larger: a copy of that in host memory is what writing takes."""


@dataclass(frozen=True)
class Place:
    """Which elements of a parameter a piece holds: a flat range of a slice along one dimension.

    Attributes:
        shape: of the whole parameter.
        dim, first, size: the slice ``first : first + size`` along ``dim`` (tensor parallelism); all of dimension 0
            where the parameter is not sliced.
        start, stop: range in the flattened slice (ZeRO, Gemini).
    """

    shape: tuple[int, ...]
    dim: int
    first: int
    size: int
    start: int
    stop: int

    @property
    def numel(self) -> int:
        """Elements of the piece."""
        return self.stop - self.start

    @property
    def slice_shape(self) -> tuple[int, ...]:
        """Shape of the slice."""
        return (*self.shape[: self.dim], self.size, *self.shape[self.dim + 1 :])

    def slice_of(self, whole: Any) -> Any:
        """The slice as a view of the whole parameter."""
        return whole.narrow(self.dim, self.first, self.size)

    def cut(self, whole: Any) -> Any:
        """The elements of the piece, flat."""
        return self.slice_of(whole).reshape(-1)[self.start : self.stop]

    def paste(self, piece: Any, whole: Any) -> None:
        """Put a piece into the whole parameter."""
        target = self.slice_of(whole)
        if self.numel == target.numel():
            target.copy_(piece.view(self.slice_shape))
        elif self.slice_shape == self.shape:
            whole.view(-1)[self.start : self.stop] = piece
        else:  # a view of a slice cannot be flattened
            flat = target.flatten().clone()
            flat[self.start : self.stop] = piece
            target.copy_(flat.view(self.slice_shape))


def whole_place(shape: tuple[int, ...]) -> Place:
    """The place of a piece that is all of a parameter."""
    return Place(tuple(shape), 0, 0, shape[0], 0, math.prod(shape))


@dataclass(frozen=True)
class NamedPiece:
    """A piece to write.

    Attributes:
        key: names the tensor that it is a piece of.
        place: in that tensor.
        tensor: its elements, flat; may alias memory that changes after a step.
    """

    key: str
    place: Place
    tensor: Any


def write_pieces(
    pieces: Sequence[NamedPiece],
    folder: Path,
    rank: int,
    world_size: int,
    writer: FileWriter,
    scalars: dict[str, Any] | None = None,
) -> None:
    """Write one rank's files; none without pieces and ``scalars``, which any reader finds under the same keys."""
    parts = list(_by_size(pieces)) or ([[]] if scalars is not None else [])
    for number, part in enumerate(parts):
        metadata = {PLACES: json.dumps({piece.key: astuple(piece.place) for piece in part})}
        if scalars is not None and number == 0:
            metadata[SCALARS] = json.dumps(scalars)
        name = f"rank-{rank:05d}-of-{world_size:05d}-{number:05d}.safetensors"
        writer.write_tensors({piece.key: piece.tensor for piece in part}, folder / name, metadata)


def _by_size(pieces: Sequence[NamedPiece]) -> Iterator[list[NamedPiece]]:
    part: list[NamedPiece] = []
    filled = 0
    for piece in pieces:
        if part and filled + piece.tensor.nbytes > FILE_BYTES:
            yield part
            part, filled = [], 0
        part.append(piece)
        filled += piece.tensor.nbytes
    if part:
        yield part


class StoredPieces:
    """The tensors that are stored in some files, whole or in pieces.

    Args:
        paths: of safetensors files; a tensor without a :class:`Place` is whole.

    Raises:
        UserError: a file is damaged.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files: dict[Path, Any] = {}
        self._pieces: dict[str, list[tuple[Path, Place]]] = {}
        self.scalars: dict[str, Any] = {}
        for path in paths:
            self._index(path)

    def _index(self, path: Path) -> None:
        file = self._open(path)
        metadata = file.metadata() or {}
        places = json.loads(metadata.get(PLACES, "{}"))
        self.scalars |= json.loads(metadata.get(SCALARS, "{}"))
        for key in file.keys():  # noqa: SIM118 (it is no dictionary)
            place = places.get(key)
            place = whole_place(tuple(file.get_slice(key).get_shape())) if place is None else _place_from(place)
            self._pieces.setdefault(key, []).append((path, place))

    def _open(self, path: Path) -> Any:
        from safetensors import SafetensorError, safe_open

        if path not in self._files:
            try:
                self._files[path] = safe_open(str(path), framework="pt")
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path}: damaged ({error}); resume from another checkpoint") from error
        return self._files[path]

    @property
    def keys(self) -> list[str]:
        """Of the tensors that are stored."""
        return list(self._pieces)

    def piece(self, key: str, place: Place) -> Any:
        """The elements of a tensor at ``place``, flat.

        Raises:
            UserError: see :meth:`whole`.
        """
        for path, stored in self._pieces[key]:
            if stored == place:
                return self._open(path).get_tensor(key).reshape(-1)
        return place.cut(self.whole(key))

    def whole(self, key: str) -> Any:
        """A tensor put together from its pieces.

        Raises:
            UserError: pieces of it are missing.
        """
        import torch

        whole = None
        filled = 0
        for path, place in self._pieces[key]:
            piece = self._open(path).get_tensor(key).reshape(-1)
            whole = torch.empty(place.shape, dtype=piece.dtype) if whole is None else whole
            place.paste(piece, whole)
            filled += place.numel
        assert whole is not None
        if filled != whole.numel():
            raise UserError(
                f"{self._pieces[key][0][0].parent}: holds {filled} of {whole.numel()} elements of {key}, a file is "
                "missing; resume from another checkpoint"
            )
        return whole


def _place_from(values: list[Any]) -> Place:
    return Place(tuple(values[0]), *values[1:])
