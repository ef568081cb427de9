"""The alignment stage trains the embeddings and nothing else."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from colossal_llama.model.freeze import freeze_non_embedding_parameters


def make_model(tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config)


@pytest.mark.parametrize(("tied", "matrices"), [(False, 2), (True, 1)])
def test_only_embeddings_are_trainable_and_counted(tied: bool, matrices: int) -> None:
    model = make_model(tied)
    trainable, total = freeze_non_embedding_parameters(model)
    names = {name for name, param in model.named_parameters() if param.requires_grad}
    assert names == {"model.embed_tokens.weight", "lm_head.weight"} - ({"lm_head.weight"} if tied else set())
    assert trainable == matrices * 50 * 16
    assert total == sum(param.numel() for param in model.parameters())


@pytest.mark.parametrize("tied", [False, True])
def test_a_step_leaves_everything_else_to_the_bit(tied: bool) -> None:
    model = make_model(tied)
    freeze_non_embedding_parameters(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = torch.arange(20).view(2, 10)
    model(input_ids=ids, labels=ids).loss.backward()
    torch.optim.SGD([param for param in model.parameters() if param.requires_grad], lr=1.0).step()
    for name, tensor in model.state_dict().items():
        is_embedding = name in ("model.embed_tokens.weight", "lm_head.weight")
        assert torch.equal(tensor, before[name]) != is_embedding, name
