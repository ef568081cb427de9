"""Estimates against what they estimate: real models, and the tensors that autograd really keeps."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from colossal_llama.config.train import TrainConfig
from colossal_llama.errors import UserError
from colossal_llama.metrics.flops import flops_per_token
from colossal_llama.planning.duration import training_seconds
from colossal_llama.planning.memory import (
    MemoryEstimate,
    Workload,
    estimate_memory,
    layer_activation_bytes,
    logit_bytes,
    parameters_of_stage,
)
from colossal_llama.planning.shapes import KNOWN_SHAPES, ModelShape
from colossal_llama.planning.workload import workload_of
from colossal_llama.plugins import PLUGINS, build_options

PUBLISHED = {
    "7b": 6_738_415_616,
    "13b": 13_015_864_320,
    "70b": 68_976_648_192,
    "1b": 1_235_814_400,
    "smollm2-135m": 134_515_008,
    "llama3-8b": 8_030_261_248,
}


def shape_of(name: str, **changes: Any) -> ModelShape:
    return ModelShape.from_config(KNOWN_SHAPES[name] | changes, name)


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_known_shapes_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    assert shape_of(name).parameters == parameters


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_parameters_are_those_of_the_model(tied: bool, bias: bool) -> None:
    changes = {"tie_word_embeddings": tied, "attention_bias": bias, "mlp_bias": bias}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**KNOWN_SHAPES["tiny"] | changes))
    shape = shape_of("tiny", **changes)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    whole = Workload(rows=1, length=8, element_bytes=4)
    assert parameters_of_stage(shape, whole, first=True, last=True) == (shape.parameters, shape.parameters)


def test_lora_parameters_are_those_of_peft() -> None:
    from peft import LoraConfig, get_peft_model

    from colossal_llama.model.lora import TARGET_MODULES

    model = LlamaForCausalLM(LlamaConfig(**KNOWN_SHAPES["tiny"]))
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=TARGET_MODULES))
    assert adapted.get_nb_trainable_parameters()[0] == shape_of("tiny").lora_parameters(4)


def kept_bytes(config: LlamaConfig, rows: int, length: int, dtype: torch.dtype) -> int:
    """Bytes of the distinct tensors that autograd keeps for the backward pass, weights and logits' part not counted."""
    model = LlamaForCausalLM(config).to(dtype).model.train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(storage)
        return tensor

    ids = torch.zeros(rows, length, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(input_ids=ids, use_cache=False)
    return sum(kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_activations_are_those_that_autograd_keeps(dtype: torch.dtype, attention: str) -> None:
    """The difference between three layers and one: what two layers keep."""
    rows, length = 2, 96
    sizes = KNOWN_SHAPES["tiny"] | {"attn_implementation": attention}
    kept = [kept_bytes(LlamaConfig(**sizes | {"num_hidden_layers": layers}), rows, length, dtype) for layers in (1, 3)]
    spec = PLUGINS.get("zero2")
    options = build_options(TrainConfig("m", ["d"], plugin="zero2"), on_host=True, flash_attention=False)
    workload = Workload(rows, length, dtype.itemsize, stored_scores=attention == "eager")
    estimated = layer_activation_bytes(shape_of("tiny"), spec.placement(options, 1), workload)
    assert estimated == pytest.approx((kept[1] - kept[0]) / 2, rel=0.05)


def plan_memory(name: str, world: int, **flags: Any) -> Any:
    config = TrainConfig("m", ["d"], **flags)
    options = build_options(config, on_host=False, flash_attention=False)
    placement = PLUGINS.get(config.plugin).placement(options, world)
    return estimate_memory(shape_of(name), placement, workload_of(config, options))


def test_state_bytes_of_each_plugin() -> None:
    n = PUBLISHED["7b"]
    expected = {
        "ddp": (4 * n, 4 * n, 8 * n, 0),
        "zero2": (2 * n, 2 * n / 8, 12 * n / 8, 0),
        "zero2_cpu": (2 * n, 2 * n / 8, 0, 12 * n / 8),
        "gemini": (2 * n / 8, 0, 12 * n / 8, 0),
    }
    for plugin, (weights, gradients, optimizer, host) in expected.items():
        memory = plan_memory("7b", 8, plugin=plugin, mixed_precision="bf16")
        found = (memory.weights, memory.gradients, memory.optimizer, memory.host_optimizer)
        assert found == pytest.approx((weights, gradients, optimizer, host)), plugin
    ddp = plan_memory("7b", 8, plugin="ddp", mixed_precision="bf16")
    assert ddp.buckets == 4 * n
    assert ddp.casts == 2 * (n - 32_000 * 4096)  # the input embedding is looked up, not multiplied with
    lion = plan_memory("7b", 8, plugin="zero2", mixed_precision="bf16", optimizer="lion")
    assert lion.optimizer == pytest.approx((4 + 4) * n / 8)


def test_parallel_sizes_divide_what_they_split() -> None:
    common = {"plugin": "3d", "mixed_precision": "bf16", "max_length": 2048}
    whole = plan_memory("70b", 64, **common)
    tp = plan_memory("70b", 64, **common, tp=8)
    assert tp.weights == pytest.approx(whole.weights / 8, rel=0.01)
    assert tp.optimizer == pytest.approx(whole.optimizer, rel=0.01)  # an eighth of the weights, over an eighth of ranks
    loss = logit_bytes(shape_of("70b"), Workload(rows=1, length=2048, element_bytes=2))
    assert whole.logits - tp.logits == pytest.approx(loss * 7 / 8)
    assert whole.activations / 8 < tp.activations < whole.activations / 2
    split = plan_memory("70b", 64, **common, tp=8, enable_sequence_parallelism=True)
    unsplit = plan_memory("70b", 64, **common | {"max_length": 16_384}, tp=8, enable_sequence_parallelism=True)
    assert unsplit.activations > 8 * split.activations  # eager attention: the scores grow with the square
    pipe = plan_memory("70b", 64, **common, tp=8, pp=4, micro_batch_size=8)
    assert pipe.weights < tp.weights / 3
    assert pipe.activations == pytest.approx(tp.activations)  # a quarter of the layers, four micro-batches on their way
    frozen = plan_memory("70b", 64, **common, tp=8, freeze_non_embeds_params=True)
    assert frozen.weights == tp.weights
    assert frozen.optimizer == pytest.approx(12 * 2 * 32_000 * 8192 / 64)


def test_checkpointing_keeps_one_layer_and_the_inputs_of_all() -> None:
    shape = shape_of("7b")
    memory = plan_memory("7b", 8, plugin="zero2", mixed_precision="bf16", max_length=4096)
    assert memory.recomputed_layer == memory.activations / shape.layers
    assert memory.checkpointed_activations == pytest.approx(32 * 4096 * 4096 * 2)


def test_plugin_3d_keeps_buckets_where_it_wraps_the_model_in_ddp() -> None:
    common = {"plugin": "3d", "mixed_precision": "bf16"}
    for flags, world, has_buckets in (
        ({"zero": 0}, 2, True), ({"zero": 1}, 2, False), ({"zero": 1, "tp": 2}, 2, True),
        ({"zero": 0, "pp": 2, "micro_batch_size": 2}, 2, False),
    ):  # fmt: skip
        memory = plan_memory("7b", world, **common, **flags)
        assert memory.buckets == (memory.gradients if has_buckets else 0), flags


def test_gradients_of_earlier_passes_and_micro_batches_are_there() -> None:
    for flags, accumulates in (
        ({}, False), ({"accumulation_steps": 2}, True), ({"plugin": "3d", "pp": 2, "micro_batch_size": 4}, True),
    ):  # fmt: skip
        memory = plan_memory("7b", 2, mixed_precision="bf16", **{"plugin": "zero2"} | flags)
        assert memory.accumulates == accumulates, flags


def test_tied_embeddings_have_two_gradients_for_a_moment() -> None:
    tied = plan_memory("smollm2-135m", 1, plugin="ddp", mixed_precision="fp32")
    assert tied.tied_gradients == 2 * 4 * 49_152 * 576
    assert plan_memory("7b", 1, plugin="ddp", mixed_precision="fp32").tied_gradients == 0


def test_the_peak_is_that_of_the_fullest_moment() -> None:
    memory = MemoryEstimate(
        weights=1, casts=2, gradients=16, buckets=4, optimizer=8, host_optimizer=100, activations=64,
        checkpointed_activations=5, recomputed_layer=7, logits=3, tied_gradients=31, update=32,
    )  # fmt: skip
    stays = 1 + 4 + 8
    assert memory.between_steps == stays
    assert memory.total(False) == stays + 2 + 64 + 3  # the loss is computed
    assert memory.total(True) == stays + 16 + 32  # the update
    assert replace(memory, update=0).total(True) == stays + 16 + 31  # the gradients of tied embeddings are summed
    assert replace(memory, update=0, tied_gradients=0, gradients=0).total(True) == stays + 2 + 5 + 7
    assert replace(memory, accumulates=True).total(False) == stays + 2 + 64 + 3 + 16


def test_logits_count_the_loss_in_fp32() -> None:
    workload = Workload(rows=2, length=10, element_bytes=2)
    assert logit_bytes(shape_of("tiny"), workload) == 2 * 10 * 512 * (4 + 4 + 4)
    assert logit_bytes(shape_of("tiny"), replace(workload, element_bytes=4)) == 2 * 10 * 512 * (4 + 4 + 4)


def test_flops_are_palms_formula() -> None:
    config = KNOWN_SHAPES["7b"]
    multiplied = PUBLISHED["7b"] - 32_000 * 4096 - (2 * 32 + 1) * 4096
    assert flops_per_token(config, 2048) == 6 * multiplied + 12 * 32 * 4096 * 2048
    frozen = flops_per_token(config, 2048, trained_embeddings_only=True)
    assert flops_per_token(config, 2048) - frozen == 2 * (multiplied - 32_000 * 4096)
    assert training_seconds(4e15, devices=4, peak_tflops=100, mfu=0.5) == 20


@pytest.mark.parametrize(
    ("changes", "words"), [({"hidden_size": None}, "hidden_size is None"), ({"num_local_experts": 8}, "experts")]
)
def test_models_that_cannot_be_estimated_are_refused(changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        shape_of("tiny", **changes)
