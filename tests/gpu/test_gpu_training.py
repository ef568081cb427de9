"""One short training of every plugin on one GPU in bf16, with Colossal-AI's own kernels and nccl."""

from pathlib import Path

import pytest
import torch

from colossal_llama.plugins import PLUGINS
from tests.helpers.launching import read_losses, train
from tests.helpers.tiny import save_rows, save_tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

STEPS = 20


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("inputs")
    model, rows = save_tiny_model(folder / "model"), save_rows(folder / "rows", STEPS * 4)
    return ["--pretrained", str(model), "--dataset", str(rows)]


@pytest.mark.parametrize("plugin", PLUGINS.names())
def test_plugin_learns_resumes_and_exports(plugin: str, inputs: list[str], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    flags = ["--plugin", plugin, "--mixed_precision", "bf16", "--batch_size", "4", "--lr", "1e-3", "--max_length", "32"]
    arguments = [*inputs, *flags, "--save_interval", "10", "--skip_save_each_epoch"]
    on_gpu = {"CUDA_VISIBLE_DEVICES": "0"}
    save_dir = train(tmp_path / "whole", arguments, processes=1, environment=on_gpu)
    losses = read_losses(tmp_path / "whole")
    assert len(losses) == STEPS
    assert losses[-1] < losses[0] - 0.2
    checkpoint = str(save_dir / "epoch-0_step-10")
    train(tmp_path / "resumed", [*arguments, "--load_checkpoint", checkpoint], processes=1, environment=on_gpu)
    assert read_losses(tmp_path / "resumed") == pytest.approx(losses[10:], abs=1e-3)
    _, info = AutoModelForCausalLM.from_pretrained(str(save_dir / "modeling"), output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
