import pytest
import torch

from colossal_llama.plugins.base import ParallelLayout
from colossal_llama.plugins.loss import local_targets, token_loss_sum

ALONE = ParallelLayout(data_rank=0, data_size=1)


def random_batch(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 8, 50, generator=generator).to(dtype)
    targets = torch.randint(0, 50, (2, 8), generator=generator)
    targets[0, :3] = -100
    return logits, targets


def test_loss_is_the_sum_over_targets() -> None:
    logits, targets = random_batch(torch.float32)
    log_probabilities = logits.log_softmax(-1)
    expected = -sum(
        log_probabilities[row, position, targets[row, position]]
        for row in range(2)
        for position in range(8)
        if targets[row, position] != -100
    )
    assert token_loss_sum(logits, targets, ALONE).item() == pytest.approx(float(expected), rel=1e-6)


def test_bf16_logits_give_an_fp32_loss() -> None:
    logits, targets = random_batch(torch.bfloat16)
    loss = token_loss_sum(logits, targets, ALONE)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(token_loss_sum(logits.double(), targets, ALONE).item(), rel=1e-6)
    rounded = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    assert loss.item() != rounded.item()


def test_a_batch_without_targets_costs_nothing_and_has_no_nan_gradient() -> None:
    logits, targets = random_batch(torch.float32)
    logits.requires_grad_()
    loss = token_loss_sum(logits, torch.full_like(targets, -100), ALONE)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_sequence_parallel_ranks_share_the_targets() -> None:
    logits, targets = random_batch(torch.float32)
    halves = [ParallelLayout(data_rank=0, data_size=1, sp_rank=rank, sp_size=2) for rank in range(2)]
    parts = [token_loss_sum(logits.chunk(2, dim=1)[rank], targets, layout).item() for rank, layout in enumerate(halves)]
    assert sum(parts) == pytest.approx(token_loss_sum(logits, targets, ALONE).item(), rel=1e-6)
    assert torch.equal(torch.cat([local_targets(targets, layout) for layout in halves], dim=1), targets)


def test_logits_that_a_policy_has_gathered_are_whole() -> None:
    """Mixtral's policy gathers the vocabulary although it splits it; the group is then none of the loss's business."""
    logits, targets = random_batch(torch.float32)
    gathered = ParallelLayout(data_rank=0, data_size=1, tp_group="never used", vocab_size=50)
    assert token_loss_sum(logits, targets, gathered).item() == token_loss_sum(logits, targets, ALONE).item()
