"""What keeps the documents of a row apart: mask, boundaries for flash attention, and what is refused."""

from typing import Any

import pytest
import torch
import transformers.modeling_flash_attention_utils as flash
from transformers import LlamaConfig, LlamaForCausalLM

from colossal_llama.errors import UserError
from colossal_llama.model.neftune import NeftuneNoise
from colossal_llama.plugins import PLUGINS, ParallelLayout, PluginOptions, check_document_mask
from colossal_llama.plugins.documents import document_boundaries, document_mask
from colossal_llama.plugins.steps import Boosted, _prepare

POSITIONS = torch.tensor([[0, 1, 2, 0, 1, 0, 0], [0, 0, 1, 2, 3, 4, 5]])
"""Documents of 3, 2, 1 and 1 tokens, and of 1 and 6: the second row never falls."""

DOCUMENTS = [[(0, 3), (3, 5), (5, 6), (6, 7)], [(0, 1), (1, 7)]]


def options(**changed: Any) -> PluginOptions:
    return PluginOptions(precision="fp32", max_norm=1.0, **changed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_mask_shows_the_own_document_up_to_the_token(dtype: torch.dtype) -> None:
    mask = document_mask(POSITIONS, dtype)
    assert mask.shape == (2, 1, 7, 7)
    assert mask.dtype == dtype
    for row, documents in enumerate(DOCUMENTS):
        for query in range(7):
            (own,) = [(start, end) for start, end in documents if start <= query < end]
            for key in range(7):
                visible = own[0] <= key <= query
                assert mask[row, 0, query, key] == (0 if visible else torch.finfo(dtype).min)


def test_boundaries_count_through_the_flattened_batch() -> None:
    boundaries = document_boundaries(POSITIONS)
    assert boundaries["cu_seq_lens_q"].tolist() == boundaries["cu_seq_lens_k"].tolist() == [0, 3, 5, 6, 7, 8, 14]
    assert boundaries["cu_seq_lens_q"].dtype == torch.int32
    assert boundaries["max_length_q"] == boundaries["max_length_k"] == 6
    assert type(boundaries["max_length_q"]) is int


def varlen_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seqlens_q: torch.Tensor, cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int, max_seqlen_k: int, softmax_scale: float, causal: bool, **_: Any,
) -> torch.Tensor:  # fmt: skip
    """What flash_attn_varlen_func computes, in plain PyTorch: tensors are [tokens, heads, width]."""
    assert causal
    assert cu_seqlens_q.tolist() == cu_seqlens_k.tolist()
    assert int(torch.diff(cu_seqlens_q).max()) <= max_seqlen_q == max_seqlen_k
    groups = query.shape[1] // key.shape[1]
    outputs = []
    for start, end in zip(cu_seqlens_q[:-1].tolist(), cu_seqlens_q[1:].tolist(), strict=True):
        q, k, v = (tensor[start:end].transpose(0, 1) for tensor in (query, key, value))
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=softmax_scale)
        outputs.append(out.transpose(0, 1))
    return torch.cat(outputs)


def dense_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **given: Any) -> torch.Tensor:
    """What flash_attn_func computes: tensors are [batch, tokens, heads, width]."""
    batch, length = query.shape[:2]
    ends = torch.arange(0, batch * length + 1, length)
    flat = (tensor.reshape(batch * length, *tensor.shape[2:]) for tensor in (query, key, value))
    return varlen_attention(*flat, ends, ends, length, length, given["softmax_scale"], True).view_as(query)


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.5,
    )  # fmt: skip
    return LlamaForCausalLM(config).train()


def logits(model: LlamaForCausalLM, attention: str, **inputs: Any) -> torch.Tensor:
    model.config._attn_implementation = attention
    with torch.no_grad():
        return model(**inputs, use_cache=False).logits


def prepared(positions: torch.Tensor, flash_attention: bool) -> dict[str, Any]:
    ids = torch.arange(positions.numel()).view_as(positions)
    boosted = Boosted(
        booster=None, model=None, optimizer=None, layout=ParallelLayout(0, 1), spec=PLUGINS.get("zero2"),
        options=options(flash_attention=flash_attention), device="cpu",
    )  # fmt: skip
    batch = _prepare({"input_ids": ids, "targets": ids, "position_ids": positions}, boosted)
    del batch["targets"]
    return batch


@pytest.mark.parametrize("positions", [POSITIONS, POSITIONS[1:]], ids=["falling", "never falling"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_flash_attention_of_transformers_sees_the_documents(
    positions: torch.Tensor, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flash, "flash_attn_varlen_func", varlen_attention, raising=False)
    monkeypatch.setattr(flash, "flash_attn_func", dense_attention, raising=False)
    monkeypatch.setattr(flash, "_flash_supports_window_size", True, raising=False)
    model = tiny_llama()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    masked = logits(model, "sdpa", **prepared(positions, flash_attention=False))
    inputs = prepared(positions, flash_attention=True)
    assert "attention_mask" not in inputs
    assert torch.allclose(logits(model, "flash_attention_2", **inputs), masked, atol=1e-5)
    alone = {name: inputs[name] for name in ("input_ids", "position_ids")}
    found_alone = torch.allclose(logits(model, "flash_attention_2", **alone), masked, atol=1e-5)
    # Where this fails for positions that never fall, transformers finds the boundaries itself.
    assert found_alone == (len(positions) == 2)


def noisy_logits(model: LlamaForCausalLM, batch: dict[str, Any], noise: NeftuneNoise) -> torch.Tensor:
    noise.generator.manual_seed(3)
    return logits(model, "sdpa", **batch)


@pytest.mark.parametrize("mask", [True, False])
def test_noise_of_other_documents_is_not_seen(mask: bool) -> None:
    """NEFTune adds noise to all documents of a row; what another document holds, noise included, must not matter."""
    model = tiny_llama()
    noise = NeftuneNoise(5.0, 31, 0, "cpu")
    noise.attach(model.get_input_embeddings())
    batch = prepared(POSITIONS, flash_attention=False)
    if not mask:
        del batch["attention_mask"]
    other = batch | {"input_ids": batch["input_ids"].clone()}
    other["input_ids"][:, :1] = 20  # in the first document of each row
    one, two = noisy_logits(model, batch, noise), noisy_logits(model, other, noise)
    apart = [(row, position) for row in range(2) for position in range(DOCUMENTS[row][0][1], 7)]
    assert all(torch.allclose(one[place], two[place], atol=1e-6) for place in apart) == mask
    assert not torch.allclose(one[0, 2], two[0, 2], atol=1e-3), "in its own document the token is seen"
    assert not torch.allclose(one, logits(model, "sdpa", **batch), atol=1e-3), "there is noise"


LLAMA = {"model_type": "llama"}


@pytest.mark.parametrize("plugin", ["gemini", "gemini_auto", "3d"])
def test_flash_attention_of_colossalai_is_refused(plugin: str) -> None:
    spec = PLUGINS.get(plugin)
    message = (
        f"--document_mask does not work with --use_flash_attn in --plugin {plugin}: .* leave --use_flash_attn away"
    )
    with pytest.raises(UserError, match=message):
        check_document_mask(plugin, spec, options(flash_attention=True), LLAMA, 4096)
    check_document_mask(plugin, spec, options(flash_attention=False), LLAMA, 4096)


@pytest.mark.parametrize("plugin", ["ddp", "zero2", "zero2_cpu"])
def test_flash_attention_of_transformers_is_allowed(plugin: str) -> None:
    check_document_mask(plugin, PLUGINS.get(plugin), options(flash_attention=True), LLAMA, 4096)


def test_sliding_window_is_not_replaced_unsaid() -> None:
    spec, mistral = PLUGINS.get("zero2"), {"model_type": "mistral", "sliding_window": 4096}
    with pytest.raises(UserError, match="the model's sliding window of 4096 tokens; lower --max_length to 4096"):
        check_document_mask("zero2", spec, options(), mistral, 8192)
    check_document_mask("zero2", spec, options(), mistral, 4096)
    check_document_mask("zero2", spec, options(flash_attention=True), mistral, 8192)
    check_document_mask("zero2", spec, options(), mistral | {"use_sliding_window": False}, 8192)
    check_document_mask("zero2", spec, options(), mistral | {"sliding_window": None}, 8192)
