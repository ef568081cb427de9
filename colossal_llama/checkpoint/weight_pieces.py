"""The pieces of the trained weights that this rank holds in fp32, whatever the plugin, and which of them it writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colossal_llama.checkpoint.piece_files import Place, whole_place
from colossal_llama.constants import CONFIG_FILE
from colossal_llama.json_files import read_json_object

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
"""Names of one parameter where a model ties its embeddings."""


@dataclass(frozen=True)
class Piece:
    """What this rank holds of one trained parameter in fp32.

    Attributes:
        name: of the parameter, without the prefixes of wrappers.
        place: in the parameter; empty on ranks for which ZeRO has only padding left.
        tensor: the true weights, flat fp32; aliases the optimizer's or the parameter's memory.
        owner: the optimizer's own parameter, under which it keeps the states of these weights; its memory begins with
            them, where it has any (Gemini lends its own only during a step).
        is_master: they are kept beside the parameter, rather than being the parameter.
        working: the rounded parameter (or slice of it) on this rank, where it is a tensor of its own.
    """

    name: str
    place: Place
    tensor: Any
    owner: Any
    is_master: bool = True
    working: Any = None


def plain_name(name: str) -> str:
    """A parameter's name as in an exported folder, without peft's prefix and name of the adapter."""
    return name.removeprefix("base_model.model.").replace(".default.", ".").removesuffix(".default")


def names_of(name: str, modeling: Path) -> list[str]:
    """The names under which a checkpoint may hold a parameter, the first one first.

    Args:
        name: of the parameter here.
        modeling: the checkpoint's exported model, which says whether its embeddings are tied: a pipeline then has them
            on its first and on its last stage, under a name each.
    """
    path = modeling / CONFIG_FILE
    if name not in (EMBEDDING, HEAD) or not path.is_file():
        return [name]
    is_tied = bool(read_json_object(path).get("tie_word_embeddings"))
    return [name, HEAD if name == EMBEDDING else EMBEDDING] if is_tied else [name]


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
        masters = {id(param): master for param, master in optimizer.working_to_master_map.items()}
        return [
            Piece(
                names[id(param)],
                _slice_place(optimizer, param),
                masters[id(param)].view(-1),
                owner=masters[id(param)],
                working=param.data,
            )
            for param in trained
        ]
    return [
        Piece(names[id(param)], _slice_place(optimizer, param), param.data.view(-1), owner=param, is_master=False)
        for param in trained
    ]


def _gemini_pieces(optimizer: Any, names: dict[int, str]) -> Iterator[Piece]:
    for param_id, fake in optimizer.id_to_fake_params.items():
        begin, end = optimizer.param_to_range[fake]
        _, start, size = optimizer.get_offsets(param_id)
        whole = whole_place(tuple(optimizer.params_info["id2shape"][param_id]))
        place = Place(whole.shape, whole.dim, whole.first, whole.size, int(start), int(start + size))
        payload = optimizer.param_to_chunk16[fake].paired_chunk.payload
        yield Piece(names[id(optimizer.id_to_real_params[param_id])], place, payload[begin:end], owner=fake)


def _zero_pieces(optimizer: Any, trained: list[Any], names: dict[int, str]) -> Iterator[Piece]:
    for param in trained:
        master = optimizer.working_to_master_param[id(param)]
        start = int(optimizer.pid_to_bucket_store[id(param)].local_rank) * master.numel()
        start = min(start, param.numel())
        stop = min(start + master.numel(), param.numel())  # the last ranks' pieces are padded
        of_slice = _slice_place(optimizer, param)
        place = Place(of_slice.shape, of_slice.dim, of_slice.first, of_slice.size, start, stop)
        yield Piece(names[id(param)], place, master.view(-1)[: stop - start], owner=master, working=param.data)


def _slice_place(optimizer: Any, param: Any) -> Place:
    """The place of this rank's tensor-parallel slice of a parameter, or of all of it."""
    import torch.distributed as dist

    shapes = (getattr(optimizer, "param_info", None) or {}).get("param2shape", {})
    shape = tuple(shapes.get(id(param), param.shape))
    for dim, (here, everywhere) in enumerate(zip(param.shape, shape, strict=True)):
        if here != everywhere:
            return Place(shape, dim, dist.get_rank(optimizer.tp_pg) * here, here, 0, param.numel())
    return whole_place(shape)


def pieces_to_write(pieces: Sequence[Piece], rank: int) -> list[Piece]:
    """Those of this rank's pieces that it writes: each is written once, and replicas share the work. Collective."""
    from colossal_llama.distributed.agreement import gather

    mine = {(piece.name, piece.place): piece for piece in pieces if piece.place.numel}
    writers = choose_writers(gather(list(mine)))
    return [piece for key, piece in mine.items() if writers[key] == rank]


def choose_writers(held: Sequence[Sequence[tuple[str, Place]]]) -> dict[tuple[str, Place], int]:
    """The rank that writes each piece: of those that hold it, the one that has least to write so far.

    Args:
        held: name and place of each rank's pieces.
    """
    holders: dict[tuple[str, Place], list[int]] = {}
    for rank, keys in enumerate(held):
        for key in keys:
            holders.setdefault(key, []).append(rank)
    elements = [0] * len(held)
    writers = {}
    for key, ranks in holders.items():
        writers[key] = min(ranks, key=lambda rank: elements[rank])
        elements[writers[key]] += key[1].numel
    return writers
