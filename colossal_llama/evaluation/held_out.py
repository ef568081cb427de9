"""Loss and bits per byte on held-out rows while a model is in training, the same with every plugin.

The sums run over the target tokens of all ranks, so that the figures are those of one process, however the model and
the rows are spread. Nothing of the training changes: no random number is drawn and no gradient made.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from colossal_llama.constants import IGNORE_INDEX
from colossal_llama.data.held_out import GROUPS

if TYPE_CHECKING:
    import numpy as np

    from colossal_llama.data.loader import LoadedStep
    from colossal_llama.plugins import ParallelLayout
    from colossal_llama.plugins.steps import TrainStep

Scores = dict[str, dict[str, float]]
"""Figures by label: ``all``, or what groups are told apart by and the group's name, as in ``category/news``."""

ALL, OTHERS = "all", "(others)"
SHOWN_GROUPS = 24
"""Groups of one kind that get figures of their own; the smallest ones are put together."""

NATS, TOKENS, TEXT_NATS, BYTES = range(4)
_FIGURES = 4


class HeldOutEvaluation:
    """Scores the model on the same held-out rows every time.

    Args:
        steps: gives this rank's batches, anew each time; they hold ``groups``.
        groups: names of the groups in the order of their numbers, by what they are told apart by.
        bytes_of: UTF-8 bytes behind each token id, int64 ``[vocabulary]``.
        layout: which ranks hold other tokens.
        device: of the batches.
    """

    def __init__(
        self,
        steps: Any,
        groups: dict[str, list[str]],
        bytes_of: np.ndarray,
        layout: ParallelLayout,
        device: str,
    ) -> None:
        self._loader = steps
        self._groups = groups
        self._bytes_of = torch.from_numpy(bytes_of).to(device)
        self._layout = layout
        self._device = device

    def run(self, step: TrainStep) -> Scores:
        """Evaluate; all ranks call it and get the same scores."""
        size = len(next(iter(self._groups.values())))
        sums = torch.zeros(_FIGURES, size, dtype=torch.float64, device=self._device)

        def add(losses: torch.Tensor, batch: dict[str, torch.Tensor]) -> None:
            is_target = batch["targets"] != IGNORE_INDEX
            groups = batch[GROUPS][is_target]
            nats = losses[is_target].double()
            text_bytes = self._bytes_of[batch["targets"][is_target]]
            for figure, values in (
                (NATS, nats),
                (TOKENS, torch.ones_like(nats)),
                (TEXT_NATS, nats * (text_bytes > 0)),
                (BYTES, text_bytes.double()),
            ):
                sums[figure].index_add_(0, groups, values)

        loaded: Iterable[LoadedStep] = self._loader.epoch(0)
        step.evaluate((one.micro_batches for one in loaded), add)
        dist.all_reduce(sums, group=self._layout.token_group)
        if self._layout.pp_group is not None:  # only the last stage has logits
            dist.all_reduce(sums, group=self._layout.pp_group)
        return scores_by_group(sums.tolist(), self._groups)


def scores_by_group(sums: list[list[float]], groups: dict[str, list[str]]) -> Scores:
    """The figures of everything, and of each group where there are several.

    Args:
        sums: ``[4][groups]``: nats, target tokens, nats of the targets that are text, and the bytes of those.
        groups: as in :class:`HeldOutEvaluation`.
    """
    scores = {ALL: _figures([sum(row) for row in sums])}
    known = []
    for kind, names in groups.items():
        first_with = {name: number for number, name in reversed(list(enumerate(names)))}
        partition = [first_with[name] for name in names]
        if len(set(names)) < 2 or partition in known:
            continue
        known.append(partition)
        totals: dict[str, list[float]] = {}
        for number, name in enumerate(_with_others(names, sums[TOKENS])):
            total = totals.setdefault(name, [0.0] * _FIGURES)
            for figure in range(_FIGURES):
                total[figure] += sums[figure][number]
        scores |= {f"{kind}/{name}": _figures(total) for name, total in sorted(totals.items()) if total[TOKENS]}
    return scores


def _with_others(names: list[str], tokens: list[float]) -> list[str]:
    """The names, with one common name for all but the largest groups."""
    sizes: Counter[str] = Counter()
    for name, size in zip(names, tokens, strict=True):
        sizes[name] += int(size)
    if len(sizes) > SHOWN_GROUPS:
        largest = {name for name, _ in sizes.most_common(SHOWN_GROUPS - 1)}
        names = [name if name in largest else OTHERS for name in names]
    return [name or "(none)" for name in names]


def _figures(sums: list[float]) -> dict[str, float]:
    """Mean loss per target token in nats, and bits per byte of the targets that are text (special tokens have none)."""
    figures = {"loss": sums[NATS] / max(sums[TOKENS], 1.0), "tokens": sums[TOKENS], "bytes": sums[BYTES]}
    if sums[BYTES]:
        figures["bits_per_byte"] = sums[TEXT_NATS] / math.log(2) / sums[BYTES]
    return figures
