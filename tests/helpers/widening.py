"""Tiny random models of several architectures on disk, widened there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from colossal_llama.model.embeddings import InitSettings, WideningReport
from colossal_llama.model.new_rows import NewTokens
from colossal_llama.model.widening import widen_checkpoint

TOKENS = NewTokens(
    old_ids=list(range(20)),
    new_ids=[20, 21, 22, 23],
    sub_tokens=[[3, 4, 5], [7], [3, 3, 9], [5, 4, 3]],
    sub_token_lengths=[[1, 1, 1], [3], [3, 3, 1], [1, 1, 1]],
)
"""20 old tokens and 4 new ones, of which the first and the last are anagrams."""


def llama(tied: bool = False, rows: int = 20, layers: int = 1) -> PreTrainedModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**SIZES, vocab_size=rows, num_hidden_layers=layers, tie_word_embeddings=tied)
    return LlamaForCausalLM(config)


def _of(name: str, **values: Any) -> Callable[[], PreTrainedModel]:
    def build() -> PreTrainedModel:
        import transformers

        config = getattr(transformers, f"{name}Config")(vocab_size=20, **values)
        return getattr(transformers, f"{name}ForCausalLM" if name != "GPT2" else "GPT2LMHeadModel")(config)

    return build


SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
ARCHITECTURES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama, untied": llama,
    "llama, tied": lambda: llama(tied=True),
    "qwen2, tied": _of("Qwen2", **SIZES, num_hidden_layers=1, num_key_value_heads=2, tie_word_embeddings=True),
    "mistral": _of("Mistral", **SIZES, num_hidden_layers=1, num_key_value_heads=2),
    "gpt2": _of("GPT2", n_embd=16, n_layer=1, n_head=2),
    "bloom": _of("Bloom", hidden_size=16, n_layer=1, n_head=2),
    "gpt_neox": _of("GPTNeoX", **SIZES, num_hidden_layers=1),
    "phi, with output bias": _of("Phi", **SIZES, num_hidden_layers=1),
    "gptj, with output bias": _of("GPTJ", n_embd=16, n_layer=1, n_head=2, rotary_dim=4),
}


def save(model: PreTrainedModel, folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> PreTrainedModel:
    """Save a model whose output bias, if it has one, is not zero."""
    output = model.get_output_embeddings()
    if getattr(output, "bias", None) is not None:
        with torch.no_grad():
            output.bias.copy_(torch.arange(20.0) / 8)
    model = model.to(dtype)
    model.save_pretrained(str(folder), **options)
    return model


def widen(
    source: Path, pad_to_multiple_of: int = 1, tokens: NewTokens = TOKENS, method: str = "mean", **settings: Any
) -> WideningReport:
    """Widen the model in ``source`` into the folder ``wide`` beside it."""
    target = source.with_name("wide")
    target.mkdir()
    return widen_checkpoint(source, "--source", target, tokens, pad_to_multiple_of, InitSettings(method, **settings))


def load(folder: Path) -> PreTrainedModel:
    """Open a folder as any user of transformers would; refuses weights that it lacks or does not know."""
    model, info = AutoModelForCausalLM.from_pretrained(str(folder), torch_dtype="auto", output_loading_info=True)
    assert not any(info.values()), info
    return model


def row_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Input and output embeddings and, where there is one, output bias."""
    output = model.get_output_embeddings()
    tensors = {"input": model.get_input_embeddings().weight, "output": output.weight}
    if getattr(output, "bias", None) is not None:
        tensors["bias"] = output.bias
    return {name: tensor.detach() for name, tensor in tensors.items()}
