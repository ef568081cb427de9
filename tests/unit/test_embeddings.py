"""Wider models: every architecture's rows, the rows' exact values, padding, and the tokenizers' part in it."""

from pathlib import Path

import pytest
import torch

from colossal_llama.errors import UserError
from colossal_llama.model.new_rows import NewTokens
from colossal_llama.tokenizer.bytelevel import spell
from colossal_llama.tokenizer.expansion import expand_tokenizer
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.tokenizer.sub_tokens import characters_of, vocabulary_growth
from tests.helpers.widening import ARCHITECTURES, TOKENS, llama, load, row_tensors, save, widen


def hand_mean(rows: torch.Tensor, ids: list[int]) -> torch.Tensor:
    total = torch.zeros(rows.shape[1:], dtype=torch.float64)
    for row in ids:
        total += rows[row].double()
    return (total / len(ids)).to(rows.dtype)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_architecture_gets_means_and_keeps_all_other_bits(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    old = save(ARCHITECTURES[name](), tmp_path / "source", dtype)
    report = widen(tmp_path / "source", pad_to_multiple_of=16)
    new = load(tmp_path / "wide")
    assert (report.old_rows, report.rows, report.new_tokens, report.padding_rows) == (20, 32, 4, 8)
    assert new.config.vocab_size == 32
    before, after = row_tensors(old), row_tensors(new)
    assert before.keys() == after.keys()
    for key, rows in before.items():
        assert after[key].dtype == dtype
        assert torch.equal(after[key][:20], rows)
        for token_id, ids in zip(TOKENS.new_ids, TOKENS.sub_tokens, strict=True):
            torch.testing.assert_close(after[key][token_id], hand_mean(rows, list(ids)))
        for row in range(24, 32):
            torch.testing.assert_close(after[key][row], hand_mean(rows, list(TOKENS.old_ids)))
    tied = old.get_input_embeddings().weight is old.get_output_embeddings().weight
    assert (new.get_input_embeddings().weight is new.get_output_embeddings().weight) is tied
    changed = {tensor.data_ptr() for tensor in row_tensors(old).values()}
    state = new.state_dict()
    for key, tensor in old.state_dict().items():
        if tensor.data_ptr() not in changed:
            assert torch.equal(state[key], tensor), key
    assert new(torch.tensor([[1, 22]])).logits.shape == (1, 2, 32)


def test_means_are_not_rounded_on_the_way(tmp_path: Path) -> None:
    """bf16 has 8 bits: 256 + 1 + 1 + 1 + 1, summed in bf16, stays 256."""
    model = llama().to(torch.bfloat16)
    with torch.no_grad():
        model.get_input_embeddings().weight[:2] = torch.tensor([[256.0], [1.0]])
    save(model, tmp_path / "source", torch.bfloat16)
    widen(tmp_path / "source", tokens=NewTokens(range(20), [20], [[0, 1, 1, 1, 1]], [[1] * 5]))
    assert row_tensors(load(tmp_path / "wide"))["input"][20].tolist() == [52.0] * 16


def test_padding_rows_are_inert(tmp_path: Path) -> None:
    """Never the largest logit and at most the mean probability, even where all logits are negative."""
    model = save(ARCHITECTURES["phi, with output bias"](), tmp_path / "source")
    with torch.no_grad():
        model.lm_head.bias.sub_(100)
        model.lm_head.weight.mul_(50)  # a sharp distribution
    model.save_pretrained(str(tmp_path / "source"))
    widen(tmp_path / "source", pad_to_multiple_of=64)
    logits = load(tmp_path / "wide")(torch.arange(20).reshape(2, 10)).logits
    assert logits.shape[-1] == 64
    assert (logits < 0).all()
    old, padding = logits[..., :20], logits[..., 24:]
    assert (old.max(-1).values > padding.max(-1).values).all()
    assert (padding.exp().max(-1).values <= old.exp().mean(-1)).all()


def test_new_ids_overwrite_the_unused_rows_of_a_padded_model(tmp_path: Path) -> None:
    before = row_tensors(save(llama(rows=32), tmp_path / "source"))
    report = widen(
        tmp_path / "source", tokens=NewTokens(range(20), [20, 21, 25], [[3, 4], [7], [9]], [[1, 1], [1], [1]])
    )
    assert (report.rows, report.padding_rows) == (32, 0)
    for key, rows in row_tensors(load(tmp_path / "wide")).items():
        old = before[key]
        kept = [*range(20), 22, 23, 24, *range(26, 32)]
        assert torch.equal(rows[kept], old[kept])
        torch.testing.assert_close(rows[[20, 21, 25]], torch.stack([hand_mean(old, [3, 4]), old[7], old[9]]))


def test_ids_may_leave_gaps(tmp_path: Path) -> None:
    before = row_tensors(save(llama(), tmp_path / "source"))
    report = widen(tmp_path / "source", tokens=NewTokens(range(20), [22, 24], [[3], [7]], [[1], [1]]))
    assert (report.rows, report.padding_rows) == (25, 3)
    for key, rows in row_tensors(load(tmp_path / "wide")).items():
        assert torch.equal(rows[[22, 24]], before[key][[3, 7]])
        for row in (20, 21, 23):
            torch.testing.assert_close(rows[row], hand_mean(before[key], list(range(20))))


def test_a_model_with_fewer_rows_than_ids_is_refused(tmp_path: Path) -> None:
    save(llama(rows=19), tmp_path / "source")
    with pytest.raises(UserError, match="19 embedding rows but its tokenizer has ids up to 19"):
        widen(tmp_path / "source")


def test_sub_tokens_are_those_of_running_text(sentencepiece_dir: Path, tmp_path: Path) -> None:
    """No dummy prefix: the character's bytes alone; a piece that starts with a space keeps it."""
    expand_tokenizer(sentencepiece_dir, ["孔", "中国", "▁你好"], tmp_path / "target")
    old, new = load_tokenizer(sentencepiece_dir, "--t"), load_tokenizer(tmp_path / "target", "--t")
    growth = vocabulary_growth(old, new)
    tokens = [old.convert_ids_to_tokens(ids) for ids in growth.sub_tokens]
    assert tokens[:3] == [["<0xE5>", "<0xAD>", "<0x94>"], ["中", "国"], ["▁", "你", "好"]]
    assert growth.sub_token_lengths[:3] == [[1, 1, 1], [1, 1], [1, 1, 1]]
    assert growth.old_ids == list(range(32000))
    assert growth.new_ids == list(range(32000, growth.size))


def test_sub_tokens_of_byte_level_pieces_intermediates_and_added_tokens(
    smollm2_tokenizer_dir: Path, tmp_path: Path
) -> None:
    expand_tokenizer(smollm2_tokenizer_dir, ["饕餮", "▁孔明"], tmp_path / "target")
    old, new = load_tokenizer(smollm2_tokenizer_dir, "--t"), load_tokenizer(tmp_path / "target", "--t")
    new.add_tokens(["<思考>"])
    growth = vocabulary_growth(old, new)
    for token_id, ids, sizes in zip(growth.new_ids, growth.sub_tokens, growth.sub_token_lengths, strict=True):
        token = new.convert_ids_to_tokens(token_id)
        if token != "<思考>":
            assert "".join(old.convert_ids_to_tokens(ids)) == token
            assert len(sizes) == len(ids)
            assert min(sizes) >= 1
    assert growth.sub_tokens[0] == old("饕餮", add_special_tokens=False).input_ids
    assert growth.sub_tokens[1] == old(" 孔明", add_special_tokens=False).input_ids
    last = growth.sub_tokens[growth.new_ids.index(new.convert_tokens_to_ids("<思考>"))]
    assert old.decode(last) == "<思考>"


@pytest.mark.parametrize(
    ("token", "byte_level", "expected"),
    [
        ("often", True, 5),
        (spell("▁中国"), True, 3),
        (spell("中")[:2], True, 1),  # a part of a character
        (spell("a中")[:3], True, 2),
        ("▁often", False, 6),
        ("中国", False, 2),
        ("<0xE5>", False, 1),
        ("", False, 1),
    ],
)
def test_characters_of_sub_tokens(token: str, byte_level: bool, expected: int) -> None:
    assert characters_of(token, byte_level) == expected


def test_a_tokenizer_that_moves_old_ids_is_refused(sentencepiece_dir: Path, deepseek_tokenizer_dir: Path) -> None:
    old, other = load_tokenizer(sentencepiece_dir, "--t"), load_tokenizer(deepseek_tokenizer_dir, "--t")
    with pytest.raises(UserError, match="does not match"):
        vocabulary_growth(old, other)
