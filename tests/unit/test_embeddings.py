"""New embedding rows: exact means, old rows bit for bit, tied and untied, padding, dtype."""

from pathlib import Path

import pytest
import torch
from transformers import GPTJConfig, LlamaConfig, PreTrainedModel

from colossal_llama.errors import UserError
from colossal_llama.model.embeddings import expand_embeddings, mean_rows
from colossal_llama.tokenizer.expansion import expand_tokenizer
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.tokenizer.sub_tokens import vocabulary_growth

OLD_IDS = list(range(20))
NEW_IDS = [20, 21, 22]
SUB_TOKENS = [[3, 4, 5], [7], [3, 3, 9]]


def tiny_llama(rows: int = 20, tied: bool = False, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).to(dtype)


def weights(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return inputs.detach().clone(), outputs.detach().clone()


def hand_mean(rows: torch.Tensor, ids: list[int]) -> torch.Tensor:
    total = torch.zeros(rows.shape[1:], dtype=torch.float64)
    for row in ids:
        total += rows[row].double()
    return (total / len(ids)).to(rows.dtype)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_new_rows_are_means_and_old_rows_keep_their_bits(tied: bool, dtype: torch.dtype) -> None:
    model = tiny_llama(tied=tied, dtype=dtype)
    before = weights(model)
    assert expand_embeddings(model, OLD_IDS, NEW_IDS, SUB_TOKENS) == 23
    for old, new in zip(before, weights(model), strict=True):
        assert new.dtype == dtype
        assert torch.equal(new[:20], old)
        for token_id, ids in zip(NEW_IDS, SUB_TOKENS, strict=True):
            torch.testing.assert_close(new[token_id], hand_mean(old, ids))
    shared = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert shared is tied
    assert model.config.vocab_size == 23
    assert model(torch.tensor([[1, 22]])).logits.shape == (1, 2, 23)


def test_means_are_not_rounded_on_the_way() -> None:
    """bf16 has 8 bits: 256 + 1 + 1 + 1 + 1, summed in bf16, stays 256."""
    weight = torch.tensor([[256.0], [1.0]], dtype=torch.bfloat16)
    assert mean_rows(weight, [[0, 1, 1, 1, 1]]).item() == 52.0


def test_padding_rows_get_the_mean_of_old_tokens() -> None:
    model = tiny_llama()
    before = weights(model)
    assert expand_embeddings(model, OLD_IDS, NEW_IDS, SUB_TOKENS, pad_to_multiple_of=16) == 32
    assert model.config.vocab_size == 32
    for old, new in zip(before, weights(model), strict=True):
        for row in range(23, 32):
            torch.testing.assert_close(new[row], hand_mean(old, OLD_IDS))


def test_new_ids_overwrite_the_unused_rows_of_a_padded_model() -> None:
    model = tiny_llama(rows=32)
    before = weights(model)
    assert expand_embeddings(model, OLD_IDS, NEW_IDS, SUB_TOKENS) == 32
    for old, new in zip(before, weights(model), strict=True):
        assert torch.equal(new[:20], old[:20])
        assert torch.equal(new[23:], old[23:])
        torch.testing.assert_close(new[20], hand_mean(old, SUB_TOKENS[0]))


def test_output_bias_follows() -> None:
    from transformers import GPTJForCausalLM

    model = GPTJForCausalLM(GPTJConfig(vocab_size=20, n_embd=16, n_layer=1, n_head=2, rotary_dim=4))
    with torch.no_grad():
        model.lm_head.bias.copy_(torch.arange(20.0))
    expand_embeddings(model, OLD_IDS, NEW_IDS, SUB_TOKENS, pad_to_multiple_of=8)
    assert model.lm_head.bias.tolist() == [*range(20), 4.0, 7.0, 5.0, 9.5]


def test_a_model_with_fewer_rows_than_ids_is_refused() -> None:
    with pytest.raises(UserError, match="19 embedding rows but its tokenizer has ids up to 19"):
        expand_embeddings(tiny_llama(rows=19), OLD_IDS, NEW_IDS, SUB_TOKENS)


def test_sub_tokens_are_those_of_running_text(sentencepiece_dir: Path, tmp_path: Path) -> None:
    """No dummy prefix: the character's bytes alone; a piece that starts with a space keeps it."""
    expand_tokenizer(sentencepiece_dir, ["孔", "中国", "▁你好"], tmp_path / "target")
    old, new = load_tokenizer(sentencepiece_dir, "--t"), load_tokenizer(tmp_path / "target", "--t")
    growth = vocabulary_growth(old, new)
    tokens = [old.convert_ids_to_tokens(ids) for ids in growth.sub_tokens]
    assert tokens[:3] == [["<0xE5>", "<0xAD>", "<0x94>"], ["中", "国"], ["▁", "你", "好"]]
    assert growth.old_ids == list(range(32000))
    assert growth.new_ids == list(range(32000, growth.size))


def test_sub_tokens_of_byte_level_pieces_intermediates_and_added_tokens(
    smollm2_tokenizer_dir: Path, tmp_path: Path
) -> None:
    expand_tokenizer(smollm2_tokenizer_dir, ["饕餮", "▁孔明"], tmp_path / "target")
    old, new = load_tokenizer(smollm2_tokenizer_dir, "--t"), load_tokenizer(tmp_path / "target", "--t")
    new.add_tokens(["<思考>"])
    growth = vocabulary_growth(old, new)
    for token_id, ids in zip(growth.new_ids, growth.sub_tokens, strict=True):
        token = new.convert_ids_to_tokens(token_id)
        if token != "<思考>":
            assert "".join(old.convert_ids_to_tokens(ids)) == token
    assert growth.sub_tokens[0] == old("饕餮", add_special_tokens=False).input_ids
    assert growth.sub_tokens[1] == old(" 孔明", add_special_tokens=False).input_ids
    last = growth.sub_tokens[growth.new_ids.index(new.convert_tokens_to_ids("<思考>"))]
    assert old.decode(last) == "<思考>"


def test_a_tokenizer_that_moves_old_ids_is_refused(sentencepiece_dir: Path, deepseek_tokenizer_dir: Path) -> None:
    old, other = load_tokenizer(sentencepiece_dir, "--t"), load_tokenizer(deepseek_tokenizer_dir, "--t")
    with pytest.raises(UserError, match="does not match"):
        vocabulary_growth(old, other)
