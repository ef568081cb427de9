"""Optimizers, schedules and parameter groups as functions; tests/distributed runs them with the plugins."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from colossal_llama.config.train import LR_SCHEDULE_NAMES, OPTIMIZER_NAMES
from colossal_llama.constants import CHUNKS, FLAT, SPLIT, WHOLE
from colossal_llama.errors import UserError
from colossal_llama.model.frozen_rows import freeze_first_rows
from colossal_llama.optim import (
    LR_SCHEDULES,
    OPTIMIZERS,
    GroupOptions,
    check_optimizer,
    lr_factor,
    parameter_groups,
)
from colossal_llama.plugins import PLUGINS, PluginOptions

TOTAL, WARMUP, FLOOR, DECAY = 104, 4, 0.1, 0.2

CURVES: dict[str, dict[int, float]] = {
    "cosine": {4: 1.0, 29: 0.1 + 0.45 * (1 + math.cos(math.pi / 4)), 54: 0.55, 104: 0.1},
    "wsd": {4: 1.0, 50: 1.0, 84: 1.0, 94: math.sqrt(0.1), 104: 0.1},
    "linear": {4: 1.0, 29: 0.775, 54: 0.55, 104: 0.1},
    "constant": {4: 1.0, 54: 1.0, 104: 1.0},
}
"""Schedule: shares of the peak at some steps."""


def test_every_schedule_has_a_curve_and_a_flag() -> None:
    assert set(CURVES) == set(LR_SCHEDULES.names()) == set(LR_SCHEDULE_NAMES)


@pytest.mark.parametrize("name", CURVES)
def test_schedules_warm_up_and_follow_their_curve(name: str) -> None:
    factor = lr_factor(name, TOTAL, WARMUP, FLOOR, DECAY)
    assert [factor(step) for step in range(WARMUP)] == [0.25, 0.5, 0.75, 1.0]
    for step, expected in CURVES[name].items():
        assert factor(step) == pytest.approx(expected), step
    curve = [factor(step) for step in range(WARMUP, TOTAL + 1)]
    assert curve == sorted(curve, reverse=True)
    assert factor(10 * TOTAL) == pytest.approx(curve[-1])
    assert lr_factor(name, 1, 0, FLOOR, DECAY)(0) == 1.0


def test_decay_of_the_whole_run_and_of_a_single_step() -> None:
    assert lr_factor("wsd", 10, 0, 0.5, 1.0)(5) == pytest.approx(math.sqrt(0.5))
    assert [lr_factor("wsd", 10, 0, 0.5, 0.01)(step) for step in (8, 9, 10)] == [1.0, 1.0, 0.5]
    assert lr_factor("linear", 10, 0, 0.0)(10) == 0.0


def test_optimizer_choices_are_the_registered_ones() -> None:
    assert OPTIMIZERS.names() == list(OPTIMIZER_NAMES)
    assert all(OPTIMIZERS.get(name).summary for name in OPTIMIZERS)


def test_plugins_say_what_an_optimizer_sees() -> None:
    plain = PluginOptions("bf16", 1.0)
    forms = {name: PLUGINS.get(name).weight_form(plain) for name in PLUGINS if name != "3d"}
    assert forms == {"ddp": WHOLE, "zero2": FLAT, "zero2_cpu": FLAT, "gemini": CHUNKS, "gemini_auto": CHUNKS}
    hybrid = PLUGINS.get("3d").weight_form
    assert hybrid(PluginOptions("bf16", 1.0, zero_stage=0)) == WHOLE
    assert hybrid(PluginOptions("bf16", 1.0, zero_stage=0, pp=2)) == WHOLE
    assert hybrid(PluginOptions("bf16", 1.0, zero_stage=0, tp=2)) == SPLIT
    assert hybrid(PluginOptions("bf16", 1.0, zero_stage=1, tp=2)) == FLAT


@pytest.mark.parametrize(
    ("name", "form", "instead"),
    [
        ("lion", CHUNKS, "--optimizer hybrid_adam"),
        ("adamw_8bit", CHUNKS, "--optimizer hybrid_adam"),
        ("came", FLAT, "--plugin ddp, or 3d with --zero 0 and --tp 1"),
        ("adafactor", SPLIT, "--tp 1"),
        ("galore", FLAT, "--plugin ddp"),
    ],
)
def test_optimizers_are_refused_where_their_update_would_be_wrong(name: str, form: str, instead: str) -> None:
    with pytest.raises(UserError, match=f"^--optimizer {name} does not work with --plugin p: ") as refusal:
        check_optimizer(name, form, "p")
    assert instead in str(refusal.value)


@pytest.mark.parametrize("form", [WHOLE, SPLIT, FLAT, CHUNKS])
def test_the_default_works_everywhere(form: str) -> None:
    check_optimizer("hybrid_adam", form, "p")


def tiny_llama(tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=48, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        attention_bias=True, tie_word_embeddings=tied,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def names_of(model: LlamaForCausalLM, group: dict) -> set[str]:
    names = {id(param): name for name, param in model.named_parameters()}
    return {names[id(param)] for param in group["params"]}


def test_the_defaults_are_one_group_in_the_models_order() -> None:
    model = tiny_llama()
    (group,) = parameter_groups(model, GroupOptions(lr=1e-3, weight_decay=0.1))
    assert [id(param) for param in group["params"]] == [id(param) for param in model.parameters()]
    assert (group["lr"], group["weight_decay"]) == (1e-3, 0.1)


@pytest.mark.parametrize("tied", [False, True])
def test_groups_hold_matrices_norms_with_biases_and_embeddings(tied: bool) -> None:
    model = tiny_llama(tied)
    options = GroupOptions(lr=1e-3, weight_decay=0.1, embedding_lr=1e-2, decay_vectors=False)
    matrices, vectors, embeddings = parameter_groups(model, options)
    assert names_of(model, embeddings) == {"model.embed_tokens.weight"} | (set() if tied else {"lm_head.weight"})
    assert all("norm" in name or name.endswith(".bias") for name in names_of(model, vectors))
    assert all(name.endswith("proj.weight") for name in names_of(model, matrices))
    settings = [(group["lr"], group["weight_decay"]) for group in (matrices, vectors, embeddings)]
    assert settings == [(1e-3, 0.1), (1e-3, 0.0), (1e-2, 0.1)]
    together = [param for group in (matrices, vectors, embeddings) for param in group["params"]]
    assert len(together) == len(list(model.parameters()))


def test_groups_without_parameters_and_groups_alike_do_not_exist() -> None:
    model = tiny_llama()
    for name, param in model.named_parameters():
        param.requires_grad = "embed" in name or "lm_head" in name
    options = GroupOptions(lr=1e-3, weight_decay=0.1, embedding_lr=1e-2, decay_vectors=False)
    (only,) = parameter_groups(model, options)
    assert only["lr"] == 1e-2
    no_decay = GroupOptions(lr=1e-3, weight_decay=0.1, decay_vectors=False, decay_embeddings=False)
    matrices, rest = parameter_groups(tiny_llama(), no_decay)
    assert (matrices["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)


def test_galore_projects_matrices_but_no_embeddings() -> None:
    spec = OPTIMIZERS.get("galore")
    options = GroupOptions(lr=1e-3, weight_decay=0.1, matrix_options=spec.matrix_options(4, 7, 0.5))
    matrices, rest = parameter_groups(tiny_llama(), options)
    assert (matrices["rank"], matrices["update_proj_gap"], matrices["scale"]) == (4, 7, 0.5)
    assert "rank" not in rest


def lion_by_hand(weight: torch.Tensor, grads: list[torch.Tensor], lr: float, decay: float) -> torch.Tensor:
    """Chen et al. 2023, algorithm 2, with betas 0.9 and 0.99."""
    average = torch.zeros_like(weight)
    for grad in grads:
        weight = weight - lr * (torch.sign(0.9 * average + 0.1 * grad) + decay * weight)
        average = 0.99 * average + 0.01 * grad
    return weight


def adafactor_by_hand(weight: torch.Tensor, grads: list[torch.Tensor], lr: float, decay: float) -> torch.Tensor:
    """Shazeer and Stern 2018, algorithm 4, for a matrix, with a given learning rate instead of a relative one."""
    rows, columns = torch.zeros(weight.shape[0]), torch.zeros(weight.shape[1])
    for step, grad in enumerate(grads, start=1):
        keep, square = 1 - step**-0.8, grad**2 + 1e-30
        rows = keep * rows + (1 - keep) * square.mean(1)
        columns = keep * columns + (1 - keep) * square.mean(0)
        update = grad / torch.sqrt(torch.outer(rows, columns) / rows.mean())
        update = update / max(1.0, update.square().mean().sqrt().item())
        weight = weight - lr * decay * weight - lr * update
    return weight


@pytest.mark.parametrize(("name", "by_hand"), [("lion", lion_by_hand), ("adafactor", adafactor_by_hand)])
def test_updates_follow_the_paper(name: str, by_hand: Callable[..., torch.Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 8, generator=generator)
    grads = [torch.randn(12, 8, generator=generator) for _ in range(4)]
    param = torch.nn.Parameter(weight.clone())
    optimizer = OPTIMIZERS.get(name).make([{"params": [param], "lr": 1e-2, "weight_decay": 0.1}])
    for grad in grads:
        param.grad = grad.clone()
        optimizer.step()
    assert torch.allclose(param, by_hand(weight, grads, 1e-2, 0.1), atol=1e-6)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "hybrid_adam"])
def test_no_optimizer_moves_rows_without_gradient_or_decay(name: str) -> None:
    """tests/distributed shows the same of the default."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(300, 32))
    before = weight.detach().clone()
    freeze_first_rows([weight], 200)
    optimizer = OPTIMIZERS.get(name).make([{"params": [weight], "lr": 1e-2, "weight_decay": 0.0}])
    for _ in range(3):
        (torch.randn(4, 300) @ weight).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(weight[:200], before[:200])
    assert (weight[200:] != before[200:]).all()


@pytest.mark.parametrize(("shard", "parts", "frozen"), [(0, 3, 10), (1, 3, 4), (2, 3, 0), (1, 1, 10)])
def test_each_shard_freezes_its_own_rows(shard: int, parts: int, frozen: int) -> None:
    """A plugin replaces the weight's data by this rank's rows; a second rank may hold all of them too."""
    weight = torch.nn.Parameter(torch.ones(10 * parts, 2))
    freeze_first_rows([weight], 14 if parts > 1 else 10, shard)
    weight.data = torch.ones(10, 2)
    weight.sum().backward()
    assert weight.grad is not None
    assert weight.grad.sum(1).tolist() == [0.0] * frozen + [2.0] * (10 - frozen)
