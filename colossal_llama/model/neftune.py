"""NEFTune: uniform noise on the input embeddings while fine-tuning (Jain et al. 2023, arXiv:2310.05914)."""

from __future__ import annotations

from typing import Any

import torch


class NeftuneNoise:
    """Adds noise in ``[-alpha / sqrt(L * d), alpha / sqrt(L * d)]`` to embeddings ``[batch, L, d]`` in training.

    L is each row's own length without its right padding, so that a short row gets the noise the paper gives it
    whatever it is padded to. The noise comes from a generator of its own, seeded alike on all ranks that hold
    the same rows: tensor- and sequence-parallel ranks must add the same noise, data-parallel ranks should not.

    Args:
        alpha: noise scale; the paper uses 5 to 15.
        pad_token_id: id that fills rows on the right.
        seed: seed of the generator.
        device: where the embeddings lie.
    """

    def __init__(self, alpha: float, pad_token_id: int, seed: int, device: str) -> None:
        self._alpha = alpha
        self._pad_token_id = pad_token_id
        self._device = device
        self.generator = torch.Generator(device=device)
        self.generator.manual_seed(seed)

    def attach(self, embedding: Any) -> Any:
        """Hook the noise onto an embedding module; returns the handle that removes it."""
        return embedding.register_forward_hook(self._add_noise)

    def _add_noise(self, module: Any, args: tuple, output: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return output
        lengths = row_lengths(args[0], self._pad_token_id)
        magnitude = self._alpha / (lengths * output.shape[-1]).float().sqrt()
        noise = torch.rand(output.shape, generator=self.generator, device=self._device) * 2 - 1
        return output + (noise * magnitude.view(-1, 1, 1)).to(output.dtype)


def row_lengths(input_ids: torch.Tensor, pad_token_id: int) -> torch.Tensor:
    """Length of each row without its trailing run of padding: int64 ``[batch]``, at least 1.

    A real end token that equals the padding token counts as padding; it shortens the row by one.
    """
    is_text = input_ids != pad_token_id
    positions = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
    return (is_text * positions).amax(dim=1).clamp(min=1)
