"""Documents that share a row train on a GPU as if each had a row of its own, with PyTorch's and flash attention."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.distributed.packed import Packed, save_attentive_model, save_packed
from tests.helpers.launching import read_grad_norms, read_losses, train
from tests.helpers.reference import Reference, train_reference

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
needs_flash = pytest.mark.skipif(
    importlib.util.find_spec("flash_attn") is None, reason="the package flash-attn is not installed"
)

LOSS_TOLERANCE = 0.02
"""Of bf16, as in tests/distributed; documents that mix cost more than twice that."""


@dataclass(frozen=True)
class Setup:
    """Model, rows, and the reference with each document in a row of its own, in fp32 on the CPU."""

    model: Path
    data: Packed
    apart: Reference
    mixed: Reference


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    folder = tmp_path_factory.mktemp("documents")
    model, data = save_attentive_model(folder / "model"), save_packed(folder)
    return Setup(
        model,
        data,
        train_reference(model, data.unpacked, data.documents, 1e-3),
        train_reference(model, data.packed, 4, 1e-3),
    )


@pytest.mark.parametrize(
    ("plugin", "flash"),
    [
        *((plugin, False) for plugin in ("ddp", "zero2", "zero2_cpu", "gemini", "gemini_auto", "3d")),
        *(pytest.param(plugin, True, marks=needs_flash) for plugin in ("ddp", "zero2", "zero2_cpu")),
    ],
)
def test_packed_documents_train_like_separate_rows(plugin: str, flash: bool, setup: Setup, tmp_path: Path) -> None:
    arguments = ["--pretrained", str(setup.model), "--dataset", str(setup.data.packed), "--plugin", plugin]
    arguments += ["--mixed_precision", "bf16", "--batch_size", "4", "--lr", "1e-3", "--max_length", "32"]
    arguments += ["--document_mask", "on", *(["--use_flash_attn"] if flash else [])]
    train(tmp_path, arguments, processes=1, environment={"CUDA_VISIBLE_DEVICES": "0"})
    [loss], [norm] = read_losses(tmp_path), read_grad_norms(tmp_path)
    assert abs(setup.mixed.losses[0] - setup.apart.losses[0]) > 2 * LOSS_TOLERANCE
    assert loss == pytest.approx(setup.apart.losses[0], abs=LOSS_TOLERANCE)
    assert norm == pytest.approx(setup.apart.grad_norms[0], rel=0.05)


@pytest.mark.parametrize("attention", ["sdpa", pytest.param("flash_attention_2", marks=needs_flash)])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_logits_of_a_row_are_those_of_its_documents(attention: str, checkpointing: bool, setup: Setup) -> None:
    """Token by token: each document of a row against the same document alone."""
    from transformers import AutoModelForCausalLM

    from colossal_llama.data.collator import PackedCollator
    from colossal_llama.data.dataset import PackedDataset
    from colossal_llama.plugins.documents import document_boundaries, document_mask

    model = AutoModelForCausalLM.from_pretrained(
        str(setup.model), torch_dtype=torch.bfloat16, attn_implementation=attention
    )
    model = model.to(DEVICE).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    rows = PackedDataset([setup.data.packed])
    for number in range(len(rows)):
        row = rows[number]
        batch = PackedCollator(0, 32, "longest", document_mask=True)([row])
        ids, positions = batch["input_ids"].to(DEVICE), batch["position_ids"]
        if attention == "sdpa":
            apart = {"attention_mask": document_mask(positions.to(DEVICE), torch.bfloat16)}
        else:
            apart = {
                name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value
                for name, value in document_boundaries(positions).items()
            }
        packed = model(input_ids=ids, position_ids=positions.to(DEVICE), use_cache=False, **apart).logits[0].float()
        start = 0
        for length in row["seq_lengths"].tolist():
            alone = model(input_ids=ids[:, start : start + length], use_cache=False).logits[0].float()
            # Logits of this model are about 1; bf16 keeps 8 bits through two layers.
            assert torch.allclose(packed[start : start + length], alone, atol=0.06), (number, start)
            start += length
