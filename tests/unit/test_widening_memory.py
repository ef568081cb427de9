"""A checkpoint larger than the memory that the command may have."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.helpers.tiny import save_tiny_model, save_tiny_tokenizer
from tests.helpers.widening import load

HIDDEN, LAYERS, OLD_ROWS, NEW_ROWS = 1024, 10, 512, 600
LAYER_BYTES = 2 * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * 8 * HIDDEN + 2 * HIDDEN)

LIMITED = """
import pathlib, resource, sys
from colossal_llama.commands import init_model
from colossal_llama.model import pretrained

budget, small, flags = int(sys.argv[1]), sys.argv[2:8], sys.argv[8:]
assert init_model.main(small) == 0  # whatever the libraries allocate once
with open("/proc/self/status") as status:
    now = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (now + budget, now + budget))
{body}
"""
WIDEN = "sys.exit(init_model.main(flags))"
LOAD = "pretrained.load_causal_lm(pathlib.Path(flags[1]), '--source')"


def write_sparse_shard(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A bf16 shard of zeros that takes no room on disk."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + offset)


@pytest.fixture(scope="module")
def large_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 590 MB: a shard for each layer, one for the rest."""
    folder = tmp_path_factory.mktemp("large") / "model"
    config = LlamaConfig(
        vocab_size=OLD_ROWS,
        hidden_size=HIDDEN,
        intermediate_size=8 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        torch_dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(str(folder))
    with torch.device("meta"):
        shapes = {name: tuple(one.shape) for name, one in AutoModelForCausalLM.from_config(config).named_parameters()}
    rest = {name: torch.randn(shape).to(torch.bfloat16) for name, shape in shapes.items() if ".layers." not in name}
    save_file(rest, folder / "model-00000.safetensors", metadata={"format": "pt"})
    weight_map = dict.fromkeys(rest, "model-00000.safetensors")
    for layer in range(LAYERS):
        name = f"model-{layer + 1:05d}.safetensors"
        own = {key: shape for key, shape in shapes.items() if f".layers.{layer}." in key}
        write_sparse_shard(folder / name, own)
        weight_map |= dict.fromkeys(own, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    save_tiny_tokenizer(folder, OLD_ROWS)
    return folder


def run_limited(body: str, budget: int, *commands: list[str]) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-c", LIMITED.format(body=body), str(budget)]
    command += [flag for one in commands for flag in one]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def flags(source: Path, tokenizer: Path, target: Path) -> list[str]:
    return [
        *("--source_model_and_tokenizer_path", str(source)),
        *("--target_tokenizer_path", str(tokenizer)),
        *("--target_model_path", str(target)),
    ]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of a process's memory")
def test_memory_for_the_matrices_and_one_shard_is_enough(large_model: Path, tmp_path: Path) -> None:
    """RLIMIT_DATA at 1.2 times the new matrices and one shard, over what the libraries take; loading needs more."""
    (tmp_path / "tokenizer").mkdir()
    save_tiny_tokenizer(tmp_path / "tokenizer", NEW_ROWS)
    budget = int(1.2 * (2 * 2 * NEW_ROWS * HIDDEN + LAYER_BYTES))
    assert sum(path.stat().st_size for path in large_model.glob("*.safetensors")) > 7 * budget
    small = flags(save_tiny_model(tmp_path / "small", OLD_ROWS), tmp_path / "tokenizer", tmp_path / "small_wide")
    large = flags(large_model, tmp_path / "tokenizer", tmp_path / "target")
    done = run_limited(WIDEN, budget, small, large)
    assert done.returncode == 0, done.stderr
    model = load(tmp_path / "target")
    assert model.get_input_embeddings().weight.shape == (NEW_ROWS, HIDDEN)
    small[-1] += "_again"
    refused = run_limited(LOAD, budget, small, large)
    assert refused.returncode != 0, "the limit limits nothing"
    assert "memory" in refused.stderr.lower()
