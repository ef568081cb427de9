"""Checkpoints on disk: byte ranges, copies, shards and indexes, other formats, and what is refused."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from colossal_llama.errors import UserError
from colossal_llama.model import stored_tensors
from colossal_llama.model.checkpoint_writer import CheckpointWriter
from colossal_llama.model.embeddings import InitSettings
from colossal_llama.model.stored_tensors import (
    INDEX_FILE,
    Replacement,
    checkpoint_tensors,
    copy_file,
    read_header,
    rewrite_file,
)
from colossal_llama.model.widening import begin_copy, widen_checkpoint
from tests.helpers.widening import ARCHITECTURES, TOKENS, llama, load, row_tensors, save, widen

SHARD_BYTES = 4000


def sharded(folder: Path, tied: bool = False) -> Path:
    save(llama(tied=tied, layers=3), folder, torch.bfloat16, max_shard_size=SHARD_BYTES)
    assert (folder / INDEX_FILE).is_file()
    return folder


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_header_matches_what_the_library_reads(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 5),
        "b": torch.randn(7).to(torch.bfloat16),
        "c": torch.arange(4),
        "d": torch.zeros(0, 2),
        "e": torch.tensor(True),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    stored, metadata = read_header(tmp_path / "x.safetensors")
    assert metadata == {"format": "pt"}
    raw = (tmp_path / "x.safetensors").read_bytes()
    for one in stored:
        tensor = tensors[one.name].reshape(-1)
        assert one.shape == tuple(tensors[one.name].shape)
        assert raw[one.start : one.start + one.size] == tensor.view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("kernel", [True, False], ids=["kernel copies", "copy in pieces"])
def test_a_rewritten_file_keeps_all_other_tensors(
    kernel: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernel:
        monkeypatch.delattr(os, "copy_file_range")
        monkeypatch.setattr(stored_tensors, "_COPY_BYTES", 7)
    tensors = {"wide": torch.randn(3), "bias": torch.arange(3).to(torch.bfloat16), "long": torch.arange(9)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    five = torch.arange(5).to(torch.bfloat16)
    replaced = {"bias": Replacement((5,), lambda out: out.write(five.view(torch.uint8).numpy().tobytes()))}
    rewrite_file(tmp_path / "x.safetensors", replaced, tmp_path / "y.safetensors")
    written = load_file(tmp_path / "y.safetensors")
    assert written.keys() == tensors.keys()
    assert torch.equal(written["bias"], five)
    for name in ("wide", "long"):
        assert torch.equal(written[name], tensors[name])
    with safe_open(tmp_path / "y.safetensors", framework="pt") as content:
        assert content.metadata() == {"format": "pt"}
    copy_file(tmp_path / "x.safetensors", tmp_path / "z.safetensors")
    assert digest(tmp_path / "x.safetensors") == digest(tmp_path / "z.safetensors")


def test_tensors_stay_aligned_when_an_odd_number_of_small_elements_comes_first(tmp_path: Path) -> None:
    """Another writer may put narrow tensors first; growing one by a row would shift the wide ones off their grid."""
    header = {
        "small": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]},
        "wide": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
    }
    text = json.dumps(header).encode()
    wide = torch.tensor([1.5, 2.5])
    raw = len(text).to_bytes(8, "little") + text + bytes(4) + wide.view(torch.uint8).numpy().tobytes()
    (tmp_path / "x.safetensors").write_bytes(raw)
    replaced = {"small": Replacement((3,), lambda out: out.write(bytes(6)))}
    rewrite_file(tmp_path / "x.safetensors", replaced, tmp_path / "y.safetensors")
    assert torch.equal(load_file(tmp_path / "y.safetensors")["wide"], wide)
    assert all(one.start % 4 == 0 for one in read_header(tmp_path / "y.safetensors")[0] if one.name == "wide")


@pytest.mark.parametrize("length", range(1, 9))
def test_the_bytes_after_the_header_are_aligned(length: int, tmp_path: Path) -> None:
    save_file({"x" * length: torch.arange(3.0)}, tmp_path / "x.safetensors")
    rewrite_file(tmp_path / "x.safetensors", {}, tmp_path / "y.safetensors")
    (tensor,), _ = read_header(tmp_path / "y.safetensors")
    assert tensor.start % 8 == 0
    assert torch.equal(load_file(tmp_path / "y.safetensors")["x" * length], torch.arange(3.0))


@pytest.mark.parametrize("named", ["float32", "bfloat16"])
def test_a_configuration_may_name_a_wider_dtype(named: str, tmp_path: Path) -> None:
    save(llama(), tmp_path / "source", torch.bfloat16)
    config = tmp_path / "source" / "config.json"
    config.write_text(config.read_text().replace("bfloat16", named))
    widen(tmp_path / "source")
    content = json.loads((tmp_path / "wide" / "config.json").read_text())
    assert content == json.loads(config.read_text()) | {"vocab_size": 24}


@pytest.mark.parametrize("tied", [False, True])
def test_shards_without_embeddings_are_copied_byte_for_byte(tied: bool, tmp_path: Path) -> None:
    source, wide = sharded(tmp_path / "source", tied), tmp_path / "wide"
    old = load(source)
    report = widen(source, pad_to_multiple_of=32)
    names = sorted(path.name for path in source.glob("*.safetensors"))
    assert sorted(path.name for path in wide.glob("*.safetensors")) == names
    assert len(names) > 3
    changed = [name for name in names if digest(source / name) != digest(wide / name)]
    weight_map = json.loads((source / INDEX_FILE).read_text())["weight_map"]
    assert set(changed) == {weight_map[name] for name in report.identical}
    index = json.loads((wide / INDEX_FILE).read_text())
    assert index["weight_map"] == weight_map
    stored = checkpoint_tensors(wide, "--t")
    assert index["metadata"]["total_size"] == sum(one.size for one in stored.values())
    new = load(wide)
    state = new.state_dict()
    for name, tensor in old.state_dict().items():
        assert torch.equal(state[name][: len(tensor)], tensor), name
    assert new.get_input_embeddings().weight.shape == (32, 16)


def test_the_index_s_metadata_follows_and_shards_get_the_usual_names(tmp_path: Path) -> None:
    source = sharded(tmp_path / "source")
    index = json.loads((source / INDEX_FILE).read_text())
    renamed = {name: f"part_{name}" for name in set(index["weight_map"].values())}
    for name, other in renamed.items():
        (source / name).rename(source / other)
    index["weight_map"] = {tensor: renamed[name] for tensor, name in index["weight_map"].items()}
    index["metadata"] |= {"total_parameters": 1000, "kept": "as it is"}
    (source / INDEX_FILE).write_text(json.dumps(index))
    widen(source)
    after = json.loads((tmp_path / "wide" / INDEX_FILE).read_text())
    assert after["metadata"]["total_parameters"] == 1000 + 2 * 4 * 16
    assert after["metadata"]["kept"] == "as it is"
    assert all(name.startswith("model-0000") for name in after["weight_map"].values())
    load(tmp_path / "wide")


def test_each_tensor_keeps_its_own_dtype(tmp_path: Path) -> None:
    """Norms in float32 beside bf16 matrices, as some checkpoints are stored."""
    save(llama(), tmp_path / "source", torch.bfloat16)
    file = tmp_path / "source" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = torch.full((16,), 1 + 2**-20)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].float() + 2**-20
    save_file(tensors, file, metadata={"format": "pt"})
    widen(tmp_path / "source")
    written = load_file(tmp_path / "wide" / "model.safetensors")
    assert torch.equal(written["model.norm.weight"], tensors["model.norm.weight"])
    assert torch.equal(written["lm_head.weight"][:20], tensors["lm_head.weight"])
    assert written["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_tied_embeddings_may_be_stored_twice(tmp_path: Path) -> None:
    save(llama(tied=True), tmp_path / "source")
    file = tmp_path / "source" / "model.safetensors"
    tensors = load_file(file)
    assert "lm_head.weight" not in tensors
    save_file(
        tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file, metadata={"format": "pt"}
    )
    widen(tmp_path / "source", method="random")
    written = load_file(tmp_path / "wide" / "model.safetensors")
    assert torch.equal(written["lm_head.weight"], written["model.embed_tokens.weight"])
    assert load(tmp_path / "wide").get_input_embeddings().weight.shape == (24, 16)


def test_a_checkpoint_without_the_base_model_s_prefix(tmp_path: Path) -> None:
    """GPT-2 is published as wte.weight, not transformer.wte.weight."""
    before = row_tensors(save(ARCHITECTURES["gpt2"](), tmp_path / "source"))
    file = tmp_path / "source" / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    widen(tmp_path / "source")
    assert load_file(tmp_path / "wide" / "model.safetensors")["wte.weight"].shape == (24, 16)
    after = row_tensors(load(tmp_path / "wide"))
    assert torch.equal(after["output"][:20], before["output"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_formats_are_converted(dtype: torch.dtype, tmp_path: Path) -> None:
    model = save(llama(), tmp_path / "source", dtype, safe_serialization=False)
    config = tmp_path / "source" / "config.json"
    config.write_text(config.read_text().replace(str(dtype).removeprefix("torch."), "float16"))
    widen(tmp_path / "source")
    assert sorted(path.name for path in (tmp_path / "wide").iterdir() if "token" not in path.name) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    after = row_tensors(load(tmp_path / "wide"))
    for name, rows in row_tensors(model).items():
        assert after[name].dtype == dtype
        assert torch.equal(after[name][:20], rows)


def edit_index(folder: Path, change: Callable[[dict], None]) -> None:
    index = json.loads((folder / INDEX_FILE).read_text())
    change(index)
    (folder / INDEX_FILE).write_text(json.dumps(index))


def first_shard(folder: Path) -> Path:
    return min(folder.glob("*.safetensors"))


def cut(folder: Path) -> None:
    shard = first_shard(folder)
    shard.write_bytes(shard.read_bytes()[:-10])


def drop_layers(folder: Path) -> None:
    """The files hold fewer layers than config.json names."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 9}))


def change_rows(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 24}))


def quantise(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        for name in tensors:
            if "embed" in name:
                tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        save_file(tensors, file, metadata={"format": "pt"})


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda folder: [path.unlink() for path in folder.glob("model*")], "holds neither model.safetensors"),
    "missing shard": (lambda folder: first_shard(folder).unlink(), "which is missing; copy the model again"),
    "truncated shard": (cut, "is truncated or damaged"),
    "shard of zeros": (lambda folder: first_shard(folder).write_bytes(bytes(99)), "not a safetensors file"),
    "empty shard": (lambda folder: first_shard(folder).write_bytes(b""), "not a safetensors file"),
    "index is no JSON": (lambda folder: (folder / INDEX_FILE).write_text("{"), "not valid JSON"),
    "index without a map": (lambda folder: (folder / INDEX_FILE).write_text("{}"), "is not the index of a checkpoint"),
    "index names a missing tensor": (
        lambda folder: edit_index(folder, lambda index: index["weight_map"].update(ghost=first_shard(folder).name)),
        "names the tensor ghost in",
    ),
    "index points outside": (
        lambda folder: edit_index(folder, lambda index: index["weight_map"].update(ghost="../x.safetensors")),
        "expected one in the same folder",
    ),
    "index lacks a tensor": (
        lambda folder: edit_index(folder, lambda index: index["weight_map"].pop("model.norm.weight")),
        "weights are missing or misshapen (model.norm.weight)",
    ),
    "fewer layers than the configuration says": (drop_layers, "weights are missing or misshapen"),
    "other rows than the configuration says": (change_rows, "--source"),
    "quantised embeddings": (quantise, "is stored as F8_E4M3"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_checkpoints_are_refused_by_name(name: str, tmp_path: Path) -> None:
    damage, message = BROKEN[name]
    damage(sharded(tmp_path / "source"))
    with pytest.raises(UserError) as refusal:
        widen(tmp_path / "source")
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert list((tmp_path / "wide").glob("*.safetensors")) == []


def test_copies_start_before_the_tokens_are_known(tmp_path: Path) -> None:
    """Only what holds no tensor of vocab_size rows; what it did not copy early is copied in the end."""
    source, wide = sharded(tmp_path / "source"), tmp_path / "wide"
    wide.mkdir()
    with begin_copy(source, "--source", wide) as writer:
        assert writer is not None
        early = {file.name for file in writer._copies}
        for copy in writer._copies.values():
            copy.result()
        assert {path.name for path in wide.iterdir()} == early
        widen_checkpoint(source, "--source", wide, TOKENS, 1, InitSettings(), writer)
    weight_map = json.loads((source / INDEX_FILE).read_text())["weight_map"]
    late = {weight_map["model.embed_tokens.weight"], weight_map["lm_head.weight"]}
    assert early == set(weight_map.values()) - late
    load(wide)


def test_a_file_copied_too_early_is_written_anew(tmp_path: Path) -> None:
    """As where the configuration's vocab_size is not the embeddings'."""
    source, wide = sharded(tmp_path / "source"), tmp_path / "wide"
    wide.mkdir()
    with CheckpointWriter(source, "--source", wide) as writer:
        writer.copy_early(lambda one: False)
        widen_checkpoint(source, "--source", wide, TOKENS, 1, InitSettings(), writer)
    assert load(wide).get_input_embeddings().weight.shape == (24, 16)


def test_leaving_the_writer_stops_its_copies(tmp_path: Path) -> None:
    stop = Event()
    stop.set()
    (tmp_path / "x").write_bytes(bytes(10))
    copy_file(tmp_path / "x", tmp_path / "y", stop)
    assert (tmp_path / "y").stat().st_size == 0
    source, wide = sharded(tmp_path / "source"), tmp_path / "wide"
    wide.mkdir()
    with CheckpointWriter(source, "--source", wide) as writer:
        hold = Event()
        writer._copier.submit(hold.wait)
        writer.copy_early(lambda one: False)
        threading.Timer(0.1, hold.set).start()
    assert list(wide.iterdir()) == []


def test_a_source_that_shrinks_while_it_is_copied_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(10))
    with open(tmp_path / "x", "rb", buffering=0) as reader, open(tmp_path / "y", "wb", buffering=0) as writer:
        with pytest.raises(OSError, match="ended while it was copied"):
            stored_tensors.copy_range(reader, 0, 20, writer)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, tokenizer_dir: Path) -> None:
    """RLIMIT_FSIZE fails a write as a full disk does, in the midst of a file; the target's new parent goes too."""
    from tests.helpers.tiny import save_tiny_model, save_tiny_tokenizer

    save_tiny_model(tmp_path / "model")
    (tmp_path / "wide_tokenizer").mkdir()
    save_tiny_tokenizer(tmp_path / "wide_tokenizer", vocab_size=600)
    code = (
        "import resource, signal, sys; from colossal_llama.commands.init_model import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "sys.exit(main())"
    )
    command = [sys.executable, "-c", code, "--source_model_and_tokenizer_path", str(tmp_path / "model")]
    command += ["--target_tokenizer_path", str(tmp_path / "wide_tokenizer")]
    command += ["--target_model_path", str(tmp_path / "new" / "target")]
    before = sorted(path.name for path in tmp_path.iterdir())
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert os.strerror(errno.EFBIG) in done.stderr
    assert "make room, or write to another disk" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == before
