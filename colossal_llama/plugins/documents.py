"""Attention that stays inside a document where a row holds several: where it works, and what the model is given.

The batch says by ``position_ids`` where documents begin: each begins at 0. That alone separates nothing, because
rotary attention sees distances only; the attention needs a mask, or, in Hugging Face's flash attention, the
boundaries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from colossal_llama.errors import UserError

if TYPE_CHECKING:
    import torch

    from colossal_llama.plugins.base import PluginOptions, PluginSpec

PADDING_MASK_ONLY = frozenset({"bloom", "mpt", "gpt2", "gpt_bigcode"})
"""Architectures whose code in transformers 4.51 flattens the mask, or makes ALiBi's bias of it (as Falcon's does where
its configuration says ``alibi``), and so takes none of documents."""


def check_document_mask(
    plugin: str, spec: PluginSpec, options: PluginOptions, model_config: dict[str, Any], max_length: int
) -> None:
    """Refuse the combinations in which documents could not be kept apart. This is the one place that knows them.

    Every plugin and layout works with PyTorch's attention, and those whose attention Colossal-AI leaves alone work
    with flash attention too.

    Args:
        plugin: its name.
        spec, options: the plugin and what it is built from.
        model_config: content of the model's ``config.json``.
        max_length: tokens of the longest row.

    Raises:
        UserError: says what to use instead.
    """
    if options.flash_attention and spec.shards_attention:
        raise UserError(
            f"--document_mask does not work with --use_flash_attn in --plugin {plugin}: Colossal-AI's flash attention "
            "takes no mask of documents; leave --use_flash_attn away, use zero2, zero2_cpu or ddp, or add "
            "--document_mask off"
        )
    if model_config.get("alibi") or model_config["model_type"] in PADDING_MASK_ONLY:
        raise UserError(
            f"--document_mask does not work with --pretrained of type {model_config['model_type']}: transformers takes "
            "no mask but one of padding there; add --document_mask off"
        )
    window = model_config.get("sliding_window") if model_config.get("use_sliding_window", True) else None
    if window is not None and window < max_length and not takes_boundaries(spec, options):
        raise UserError(
            f"--document_mask does not work with rows of --max_length {max_length}: the mask would replace the "
            f"model's sliding window of {window} tokens; lower --max_length to {window} or add --document_mask off"
        )


def takes_boundaries(spec: PluginSpec, options: PluginOptions) -> bool:
    """Whether the attention is Hugging Face's flash attention, which needs no mask but where documents begin."""
    return options.flash_attention and not spec.shards_attention


def document_boundaries(position_ids: torch.Tensor) -> dict[str, Any]:
    """The arguments with which Hugging Face's flash attention keeps documents apart.

    Left to find the boundaries in ``position_ids`` by itself, transformers 4.51 looks for positions that fall, and so
    misses a document of a single token: its 0 is followed by another 0
    (``modeling_flash_attention_utils._flash_attention_forward``).

    Args:
        position_ids: int64 ``[batch, sequence]`` on the host, so that nothing waits for a device.

    Returns:
        ``cu_seq_lens_q`` and ``_k``: int32 ``[documents + 1]``, where documents begin in the flattened batch, and its
        length; ``max_length_q`` and ``_k``: tokens of the longest document.
    """
    import torch

    starts = torch.nonzero(position_ids.flatten() == 0).flatten()
    boundaries = torch.cat([starts, torch.tensor([position_ids.numel()])]).to(torch.int32)
    longest = int(position_ids.max()) + 1
    return {
        "cu_seq_lens_q": boundaries,
        "cu_seq_lens_k": boundaries,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def document_mask(position_ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The mask that lets a token see its own document up to itself.

    Added to the attention scores, not boolean: transformers refuses a boolean mask on a GPU, and the attention of
    Colossal-AI's sequence parallelism adds whatever it is given.

    Args:
        position_ids: int64 ``[batch, sequence]``, 0 where a document begins.
        dtype: of the attention scores.

    Returns:
        ``[batch, 1, sequence, sequence]``: 0 where query (third axis) may see key (last axis), else the dtype's
        lowest number.
    """
    import torch

    document = (position_ids == 0).cumsum(dim=1)
    visible = (document[:, None, :, None] == document[:, None, None, :]).tril()
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)
