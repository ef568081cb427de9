"""fp32 master weights, which Colossal-AI's checkpoints leave out, stored so that any layout of ranks can read them.

ZeRO, the hybrid plugin and Gemini train in bf16 or fp16 and keep the true weights as fp32 masters in the optimizer.
Their model checkpoints hold the rounded working weights only; a run resumed from those is another run. Each rank
therefore writes the pieces it holds to ``masters/rank-RRRRR-of-WWWWW.safetensors``: flat fp32 tensors named after
their parameters, with their :class:`Place` in the whole parameter as JSON in the file's metadata. What several ranks
hold alike is written by the first of them. A plugin that trains in fp32 has its true weights in ``modeling/``.

Whoever resumes on the same layout reads its own pieces back; on another one, it puts one parameter after the other
together and cuts out what it holds, so no rank ever has the whole model in fp32.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from colossal_llama.constants import CONFIG_FILE
from colossal_llama.errors import UserError

MASTERS = "masters"
MODELING = "modeling"
PLACES = "places"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
"""Names of one parameter where a model ties its embeddings."""


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
        if self.stop - self.start == target.numel():
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
class Piece:
    """What this rank holds of one trained parameter in fp32.

    Attributes:
        name: of the parameter, without the prefixes of wrappers.
        place: in the parameter.
        tensor: the true weights, flat fp32; aliases the optimizer's or the parameter's memory.
        is_master: they are kept beside the parameter, rather than being the parameter.
        working: the rounded parameter (or slice of it) on this rank, where it is a tensor of its own.
    """

    name: str
    place: Place
    tensor: Any
    is_master: bool = True
    working: Any = None


def plain_name(name: str) -> str:
    """A parameter's name as in an exported folder, without peft's prefix and name of the adapter."""
    return name.removeprefix("base_model.model.").replace(".default.", ".").removesuffix(".default")


def weight_pieces(model: Any, optimizer: Any) -> list[Piece]:
    """This rank's pieces of the trained weights in fp32.

    Recognised by what the wrapped optimizer has: ``working_to_master_param`` (LowLevelZeroOptimizer),
    ``working_to_master_map`` (HybridParallelAMPOptimizer), ``chunk16_set`` (GeminiOptimizer, whose masters are ranges
    of the paired chunks). Otherwise the parameters themselves are the fp32 weights.
    """
    unwrapped = model.unwrap(unwrap_peft=False)
    names = {id(param): plain_name(name) for name, param in unwrapped.named_parameters()}
    if hasattr(optimizer, "chunk16_set"):
        return list(_gemini_pieces(optimizer, names))
    trained = [param for param in unwrapped.parameters() if param.requires_grad]
    if hasattr(optimizer, "working_to_master_param"):
        return list(_zero_pieces(optimizer, trained, names))
    if hasattr(optimizer, "working_to_master_map"):
        masters = {id(param): master.view(-1) for param, master in optimizer.working_to_master_map.items()}
        return [
            Piece(names[id(param)], _slice_place(optimizer, param), masters[id(param)], working=param.data)
            for param in trained
        ]
    return [
        Piece(names[id(param)], _slice_place(optimizer, param), param.data.view(-1), is_master=False)
        for param in trained
    ]


def _gemini_pieces(optimizer: Any, names: dict[int, str]) -> Iterator[Piece]:
    for param_id, fake in optimizer.id_to_fake_params.items():
        begin, end = optimizer.param_to_range[fake]
        _, start, size = optimizer.get_offsets(param_id)
        whole = whole_place(tuple(optimizer.params_info["id2shape"][param_id]))
        place = Place(whole.shape, whole.dim, whole.first, whole.size, int(start), int(start + size))
        payload = optimizer.param_to_chunk16[fake].paired_chunk.payload
        yield Piece(names[id(optimizer.id_to_real_params[param_id])], place, payload[begin:end])


def _zero_pieces(optimizer: Any, trained: list[Any], names: dict[int, str]) -> Iterator[Piece]:
    for param in trained:
        master = optimizer.working_to_master_param[id(param)].view(-1)
        start = int(optimizer.pid_to_bucket_store[id(param)].local_rank) * master.numel()
        stop = min(start + master.numel(), param.numel())  # the last ranks' pieces are padded
        if start < stop:
            of_slice = _slice_place(optimizer, param)
            place = Place(of_slice.shape, of_slice.dim, of_slice.first, of_slice.size, start, stop)
            yield Piece(names[id(param)], place, master[: stop - start], working=param.data)


def _slice_place(optimizer: Any, param: Any) -> Place:
    """The place of this rank's tensor-parallel slice of a parameter, or of all of it."""
    import torch.distributed as dist

    shapes = (getattr(optimizer, "param_info", None) or {}).get("param2shape", {})
    shape = tuple(shapes.get(id(param), param.shape))
    for dim, (here, everywhere) in enumerate(zip(param.shape, shape, strict=True)):
        if here != everywhere:
            return Place(shape, dim, dist.get_rank(optimizer.tp_pg) * here, here, 0, param.numel())
    return whole_place(shape)


def save_masters(model: Any, optimizer: Any, folder: Path, rank: int, world_size: int) -> None:
    """Write this rank's masters, if it has any that no lower rank has too; all ranks call it."""
    import torch.distributed as dist

    pieces = {(piece.name, piece.place): piece for piece in weight_pieces(model, optimizer) if piece.is_master}
    held: list[Any] = [None] * world_size
    dist.all_gather_object(held, list(pieces))
    lower = {key for keys in held[:rank] for key in keys}
    mine = [piece for key, piece in pieces.items() if key not in lower]
    if mine:
        folder.mkdir(parents=True, exist_ok=True)
        write_pieces(mine, folder / f"rank-{rank:05d}-of-{world_size:05d}.safetensors")


def write_pieces(pieces: list[Piece], path: Path) -> None:
    """Write one rank's file."""
    import safetensors.torch

    # Pieces may be ranges of one storage, which safetensors refuses.
    tensors = {piece.name: piece.tensor.detach().to("cpu", copy=True) for piece in pieces}
    places = json.dumps({piece.name: astuple(piece.place) for piece in pieces})
    safetensors.torch.save_file(tensors, path, metadata={PLACES: places})


class StoredWeights:
    """The true weights in a checkpoint: its ``masters/``, or, without, the fp32 weights in its ``modeling/``.

    Args:
        checkpoint: the checkpoint's folder.

    Raises:
        UserError: a file is damaged, or the masters are those of a version that stored them for one layout only.
    """

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        self._files: dict[Path, Any] = {}
        self._pieces: dict[str, list[tuple[Path, str, Place]]] = {}
        masters = sorted((checkpoint / MASTERS).glob("rank-*.safetensors"))
        if not masters and (checkpoint / MASTERS).is_dir():
            raise UserError(
                f"{checkpoint / MASTERS}: no file that this version can read; start a new run from the weights with "
                f"--load_checkpoint {checkpoint / MODELING}"
            )
        for path in masters or sorted((checkpoint / MODELING).glob("*.safetensors")):
            self._index(path)
        self._tied = _is_tied(checkpoint / MODELING)

    def _index(self, path: Path) -> None:
        file = self._open(path)
        places = json.loads((file.metadata() or {}).get(PLACES, "{}"))
        for key in file.keys():  # noqa: SIM118 (it is no dictionary)
            place = places.get(key)
            place = whole_place(tuple(file.get_slice(key).get_shape())) if place is None else _place_from(place)
            self._pieces.setdefault(plain_name(key), []).append((path, key, place))

    def _open(self, path: Path) -> Any:
        from safetensors import SafetensorError, safe_open

        if path not in self._files:
            try:
                self._files[path] = safe_open(str(path), framework="pt")
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path}: damaged ({error}); resume from another checkpoint") from error
        return self._files[path]

    @property
    def names(self) -> list[str]:
        """The parameters that are stored."""
        return list(self._pieces)

    def piece(self, name: str, place: Place) -> Any:
        """The elements of a parameter at ``place``: flat fp32.

        Raises:
            UserError: see :meth:`whole`.
        """
        for path, key, stored in self._of(name):
            if stored == place:
                return self._read(path, key).reshape(-1)
        return place.cut(self.whole(name))

    def whole(self, name: str) -> Any:
        """A parameter put together from its pieces: fp32.

        Raises:
            UserError: pieces of it are missing, or it is stored in a lower precision.
        """
        import torch

        pieces = self._of(name)
        whole = torch.empty(pieces[0][2].shape)
        filled = 0
        for path, key, place in pieces:
            place.paste(self._read(path, key).reshape(-1), whole)
            filled += place.stop - place.start
        if filled != whole.numel():
            raise UserError(
                f"{pieces[0][0].parent}: holds {filled} of {whole.numel()} elements of {name}, a file is missing; "
                "resume from another checkpoint"
            )
        return whole

    def _of(self, name: str) -> list[tuple[Path, str, Place]]:
        other = {EMBEDDING: HEAD, HEAD: EMBEDDING}.get(name, name) if self._tied else name
        found = self._pieces.get(name) or self._pieces.get(other)
        if not found:
            raise UserError(f"{self._checkpoint}: holds no weights of {name}; resume from another checkpoint")
        return found

    def _read(self, path: Path, key: str) -> Any:
        import torch

        tensor = self._open(path).get_tensor(key)
        if tensor.dtype != torch.float32:
            raise UserError(
                f"{self._checkpoint}: lacks the fp32 master weights; start a new run from its weights with "
                f"--load_checkpoint {self._checkpoint / MODELING}"
            )
        return tensor


def _place_from(values: list[Any]) -> Place:
    return Place(tuple(values[0]), *values[1:])


def _is_tied(modeling: Path) -> bool:
    path = modeling / CONFIG_FILE
    return path.is_file() and bool(json.loads(path.read_text(encoding="utf-8")).get("tie_word_embeddings"))


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
