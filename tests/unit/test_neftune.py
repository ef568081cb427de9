"""NEFTune's noise: where, how much, and the same where it must be."""

import math

import pytest
import torch

from colossal_llama.config.train import TrainConfig
from colossal_llama.model.neftune import NeftuneNoise, row_lengths

PAD, WIDTH = 1, 32
IDS = torch.tensor([[5, 6, 7, 8, 9, 4, 3, 2], [5, 6, PAD, PAD, PAD, PAD, PAD, PAD]])
LENGTHS = (8, 2)


def make_noise(seed: int = 0, alpha: float = 5.0) -> tuple[torch.nn.Embedding, NeftuneNoise]:
    torch.manual_seed(0)
    embedding = torch.nn.Embedding(10, WIDTH)
    noise = NeftuneNoise(alpha, PAD, seed, "cpu")
    noise.attach(embedding)
    return embedding, noise


def added(embedding: torch.nn.Embedding) -> torch.Tensor:
    return (embedding(IDS) - embedding.weight[IDS]).detach()


def test_noise_is_added_in_training_only() -> None:
    embedding, _ = make_noise()
    assert added(embedding.train()).abs().min() > 0
    assert added(embedding.eval()).abs().max() == 0


@pytest.mark.parametrize("alpha", [5.0, 15.0])
def test_each_row_gets_the_bound_of_its_own_length(alpha: float) -> None:
    embedding, _ = make_noise(alpha=alpha)
    noise = torch.cat([added(embedding) for _ in range(50)], dim=1)
    for row, length in enumerate(LENGTHS):
        bound = alpha / math.sqrt(length * WIDTH)
        assert noise[row].abs().max() <= bound * 1.0001
        assert noise[row].abs().max() > 0.99 * bound
        # Uniform: the standard deviation is bound / sqrt(3).
        assert noise[row].std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
        assert abs(noise[row].mean().item()) < 0.05 * bound


def test_same_seed_same_noise_and_other_seed_other_noise() -> None:
    one, two, other = (make_noise(seed)[0] for seed in (4, 4, 5))
    assert torch.equal(added(one), added(two))
    assert torch.equal(added(one), added(two))
    assert not torch.equal(added(one), added(other))


def test_the_generators_state_is_all_that_noise_depends_on() -> None:
    embedding, noise = make_noise()
    added(embedding)
    state = noise.generator.get_state()
    expected = added(embedding)
    torch.manual_seed(99)
    noise.generator.set_state(state)
    assert torch.equal(added(embedding), expected)


def test_noise_does_not_disturb_the_global_generator_and_lets_gradients_through() -> None:
    embedding, _ = make_noise()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    output = embedding(IDS)
    assert torch.equal(torch.rand(3), expected)
    output.sum().backward()
    assert embedding.weight.grad is not None
    assert embedding.weight.grad[5].tolist() == [2.0] * WIDTH


def test_handle_removes_the_noise_and_dtype_is_kept() -> None:
    embedding = torch.nn.Embedding(10, WIDTH, dtype=torch.bfloat16)
    handle = NeftuneNoise(5.0, PAD, 0, "cpu").attach(embedding)
    assert embedding(IDS).dtype == torch.bfloat16
    handle.remove()
    assert torch.equal(embedding(IDS), embedding.weight[IDS])


def test_row_lengths_leave_trailing_padding_out_only() -> None:
    ids = torch.tensor([[4, PAD, 5, PAD], [PAD, PAD, PAD, PAD], [4, 4, 4, 4]])
    assert row_lengths(ids, PAD).tolist() == [3, 1, 4]


def test_alpha_is_five_by_default() -> None:
    assert TrainConfig(pretrained="m", dataset=["d"]).neft_alpha == 5.0
