"""fp32 master weights in pieces: whatever cuts them, whoever reads them gets the same elements."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from colossal_llama.checkpoint import piece_files
from colossal_llama.checkpoint.file_writer import FileWriter
from colossal_llama.checkpoint.masters import MASTERS, MODELING, StoredWeights
from colossal_llama.checkpoint.piece_files import (
    PIECE_FILES,
    NamedPiece,
    Place,
    StoredPieces,
    whole_place,
    write_pieces,
)
from colossal_llama.checkpoint.weight_pieces import EMBEDDING, HEAD, choose_writers, plain_name
from colossal_llama.errors import UserError


def cut_up(shape: tuple[int, ...], dim: int, slices: int, ranges: int) -> list[Place]:
    """Places of ``slices`` equal slices along ``dim``, each in ``ranges`` flat ranges as ZeRO pads and cuts them."""
    size = shape[dim] // slices
    places = []
    for number in range(slices):
        numel = math.prod(shape) // slices
        chunk = -(-numel // ranges)
        for start in range(0, numel, chunk):
            places.append(Place(shape, dim, number * size, size, start, min(start + chunk, numel)))
    return places


@st.composite
def cuttings(draw: st.DrawFn, shape: tuple[int, ...]) -> list[Place]:
    dim = draw(st.integers(0, len(shape) - 1))
    slices = draw(st.sampled_from([number for number in range(1, shape[dim] + 1) if shape[dim] % number == 0]))
    return cut_up(shape, dim, slices, draw(st.integers(1, 5)))


@st.composite
def two_cuttings(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Place], list[Place]]:
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    return shape, draw(cuttings(shape)), draw(cuttings(shape))


@settings(deadline=None, max_examples=100)
@given(cut=two_cuttings())
def test_any_cutting_can_be_read_as_any_other(
    cut: tuple[tuple[int, ...], list[Place], list[Place]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    shape, written, wanted = cut
    whole = torch.randn(shape)
    checkpoint = tmp_path_factory.mktemp("checkpoint")
    (checkpoint / MASTERS).mkdir()
    for rank, place in enumerate(written):
        write([NamedPiece("w", place, place.cut(whole))], checkpoint / MASTERS, rank)
    stored = StoredWeights(checkpoint)
    assert torch.equal(stored.whole("w"), whole)
    for place in wanted:
        assert torch.equal(stored.piece("w", place), place.cut(whole))


def write(pieces: list[NamedPiece], folder: Path, rank: int = 0, **more: Any) -> None:
    write_pieces(pieces, folder, rank, 8, FileWriter(folder), **more)


def write_whole(checkpoint: Path, tensors: dict[str, torch.Tensor], config: dict[str, object]) -> None:
    (checkpoint / MODELING).mkdir(parents=True)
    save_file(tensors, str(checkpoint / MODELING / "model.safetensors"))
    (checkpoint / MODELING / "config.json").write_text(json.dumps(config))


def test_ranges_of_one_storage_are_written(tmp_path: Path) -> None:
    chunk = torch.arange(10.0)
    pieces = [
        NamedPiece("a", Place((2, 3), 0, 0, 2, 0, 6), chunk[:6]),
        NamedPiece("b", Place((8,), 0, 0, 8, 0, 4), chunk[6:]),
    ]
    (tmp_path / MASTERS).mkdir()
    write(pieces, tmp_path / MASTERS)
    stored = StoredWeights(tmp_path)
    assert stored.whole("a").tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(UserError, match="holds 4 of 8 elements of b, a file is missing"):
        stored.whole("b")
    with pytest.raises(UserError, match="holds no weights of c"):
        stored.whole("c")


def test_files_are_limited_and_single_numbers_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(piece_files, "FILE_BYTES", 40)
    pieces = [NamedPiece(f"a/{size}", whole_place((size,)), torch.full((size,), float(size))) for size in (4, 6, 1, 20)]
    write(pieces, tmp_path, scalars={"4": {"step": 3}})
    names = [path.name for path in sorted(tmp_path.glob(PIECE_FILES))]
    assert names == [f"rank-00000-of-00008-0000{number}.safetensors" for number in range(3)]
    stored = StoredPieces(sorted(tmp_path.glob(PIECE_FILES)))
    assert [stored.whole(piece.key).tolist() for piece in pieces] == [piece.tensor.tolist() for piece in pieces]
    assert stored.scalars == {"4": {"step": 3}}


@pytest.mark.parametrize(("scalars", "files"), [(None, 0), ({}, 1)])
def test_without_pieces_only_a_rank_that_must_writes(scalars: dict | None, files: int, tmp_path: Path) -> None:
    write([], tmp_path, scalars=scalars)
    assert len(list(tmp_path.glob(PIECE_FILES))) == files


def test_every_piece_is_written_once_and_replicas_share_the_work() -> None:
    sizes = {"a": 8, "b": 4, "c": 4, "d": 1}
    replicas = [(name, whole_place((size,))) for name, size in sizes.items()]
    alone = ("e", Place((4,), 0, 0, 4, 2, 4))
    writers = choose_writers([replicas, [*replicas, alone]])
    assert {name: writer for (name, _), writer in writers.items()} == {"a": 0, "b": 1, "c": 1, "d": 0, "e": 1}


def test_weights_of_an_fp32_run_are_those_of_the_exported_model(tmp_path: Path) -> None:
    write_whole(tmp_path, {"w": torch.arange(6.0).view(2, 3)}, {})
    stored = StoredWeights(tmp_path)
    assert stored.piece("w", Place((2, 3), 1, 1, 2, 1, 3)).tolist() == [2, 4]


def test_rounded_weights_are_no_masters(tmp_path: Path) -> None:
    write_whole(tmp_path, {"w": torch.ones(2, dtype=torch.bfloat16)}, {})
    with pytest.raises(
        UserError, match=r"lacks the fp32 master weights; start a new run .* --load_checkpoint .*modeling"
    ):
        StoredWeights(tmp_path).whole("w")


def test_masters_of_an_older_version_are_refused(tmp_path: Path) -> None:
    (tmp_path / MASTERS).mkdir()
    (tmp_path / MASTERS / "rank-00000-of-00002.pt").touch()
    with pytest.raises(UserError, match=r"no file that this version can read; .* --load_checkpoint .*modeling"):
        StoredWeights(tmp_path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / MASTERS).mkdir()
    (tmp_path / MASTERS / "rank-00000-of-00001.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match=r"rank-00000-of-00001\.safetensors: damaged"):
        StoredWeights(tmp_path)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_are_one_parameter_under_two_names(tied: bool, tmp_path: Path) -> None:
    write_whole(tmp_path, {EMBEDDING: torch.ones(4)}, {"tie_word_embeddings": tied})
    stored = StoredWeights(tmp_path)
    if tied:
        assert torch.equal(stored.piece(HEAD, whole_place((4,))), torch.ones(4))
    else:
        with pytest.raises(UserError, match=f"no weights of {HEAD}"):
            stored.whole(HEAD)


def test_adapters_have_the_names_of_their_export() -> None:
    inside = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    exported = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert plain_name(inside) == plain_name(exported) == "model.layers.0.self_attn.q_proj.lora_A.weight"
    assert plain_name("model.norm.weight") == "model.norm.weight"
