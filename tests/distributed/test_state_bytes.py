"""The memory estimate of a plugin's states against the tensors that a rank really holds after training."""

import json

import pytest

from colossal_llama.config.train import TrainConfig
from colossal_llama.model.model_folder import read_model_config
from colossal_llama.planning.workload import training_memory
from tests.distributed.test_plugins import flags
from tests.helpers.launching import train


@pytest.mark.parametrize("freeze", [False, True], ids=["all", "embeddings"])
@pytest.mark.parametrize(("plugin", "precision"), [("ddp", "fp32"), ("zero2", "fp32"), ("zero2", "bf16")])
def test_estimated_states_are_those_of_a_training(plugin, precision, freeze, tmp_path, tiny_model, rows_1_step):
    arguments = flags(
        tiny_model, rows_1_step, "--plugin", plugin, "--mixed_precision", precision, "--batch_size", "2",
        "--freeze_non_embeds_params", str(freeze),
    )  # fmt: skip
    train(tmp_path, arguments, environment={"DUMP_STATE_BYTES": str(tmp_path / "states.json")})
    measured = json.loads((tmp_path / "states.json").read_text())
    config = TrainConfig(
        str(tiny_model), ["d"], plugin=plugin, mixed_precision=precision, freeze_non_embeds_params=freeze
    )
    estimate = training_memory(config, read_model_config(tiny_model, "--pretrained"), "", processes=2)
    assert measured["weights"] == pytest.approx(estimate.weights, rel=0.01)
    assert measured["gradients"] == pytest.approx(estimate.gradients, rel=0.01)
    assert measured["optimizer"] == pytest.approx(estimate.optimizer, rel=0.01)
