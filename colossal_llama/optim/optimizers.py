"""The optimizers that ``--optimizer`` selects, each with what it must see of a weight matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from colossal_llama.constants import CHUNKS, FLAT, SPLIT, WHOLE
from colossal_llama.errors import UserError
from colossal_llama.registry import Registry

ADAM_BETAS = (0.9, 0.95)
"""Upstream's betas for continual pretraining."""

Groups = list[dict[str, Any]]
"""Parameter groups, each with ``params``, ``lr`` and ``weight_decay``; see :mod:`optim.groups`."""

INSTEAD = {
    CHUNKS: "Gemini takes Colossal-AI's Adam only; use --optimizer hybrid_adam, or another --plugin",
    FLAT: "ZeRO gives it pieces of flattened weights, and it needs whole matrices; use --plugin ddp, or 3d with "
    "--zero 0 and --tp 1",
    SPLIT: "--tp gives it parts of the rows or columns, and it needs whole matrices; use --tp 1",
}
"""Why an optimizer cannot work with weights in this form, and what to use."""


@dataclass(frozen=True)
class OptimizerSpec:
    """One optimizer.

    Attributes:
        summary: one line for the documentation.
        make: builds it from parameter groups.
        works_on: the forms of weights (:data:`constants.WHOLE` and its like) with which its update is that of one
            process with whole matrices.
        matrix_options: entries that it needs in the group of matrices, from the values of the flags.
        state_bytes: its states for each trained parameter of a matrix, at most.
        has_elementwise_states: its state tensors have an entry for each element of a parameter, so that they can be cut
            anew for another layout of ranks.
    """

    summary: str
    make: Callable[[Groups], Any]
    works_on: frozenset[str]
    state_bytes: float
    matrix_options: Callable[[int, int, float], dict[str, Any]] = field(default=lambda *flags: {})
    has_elementwise_states: bool = False


OPTIMIZERS: Registry[OptimizerSpec] = Registry("optimizer")


def check_optimizer(name: str, form: str, where: str) -> None:
    """Refuse an optimizer whose update would be wrong.

    Args:
        name: its name in :data:`OPTIMIZERS`.
        form: what the plugin shows it of a weight matrix.
        where: the plugin, for the message.

    Raises:
        UserError: says what to use instead.
    """
    if form not in OPTIMIZERS.get(name).works_on:
        raise UserError(f"--optimizer {name} does not work with --plugin {where}: {INSTEAD[form]}")


def _hybrid_adam(groups: Groups) -> Any:
    from colossalai.nn.optimizer import HybridAdam

    first = groups[0]
    return HybridAdam(groups, lr=first["lr"], betas=ADAM_BETAS, weight_decay=first["weight_decay"], adamw_mode=True)


def _lion(groups: Groups) -> Any:
    from bitsandbytes.optim import Lion

    return Lion(groups)


def _adam_8bit(groups: Groups) -> Any:
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(groups, betas=ADAM_BETAS)


def _adafactor(groups: Groups) -> Any:
    # Not Colossal-AI's: its constructor throws the learning rate away (nn/optimizer/adafactor.py:39).
    from transformers.optimization import Adafactor

    return Adafactor(groups, lr=groups[0]["lr"], scale_parameter=False, relative_step=False)


def _came(groups: Groups) -> Any:
    from colossalai.nn.optimizer import CAME

    class WholeCAME(CAME):
        """CAME that the plugins leave alone.

        They replace CAME itself, also where nothing is sharded, by DistributedCAME, which from the second step on
        takes the averages of squared gradients for those of the residuals (nn/optimizer/distributed_came.py:444).
        """

    return WholeCAME(groups, lr=groups[0]["lr"])


def _galore(groups: Groups) -> Any:
    from galore_torch import GaLoreAdamW

    return GaLoreAdamW(groups, betas=ADAM_BETAS, eps=1e-8, no_deprecation_warning=True)


def _galore_options(rank: int, interval: int, scale: float) -> dict[str, Any]:
    return {"rank": rank, "update_proj_gap": interval, "scale": scale, "proj_type": "std"}


_ELEMENTWISE = frozenset({WHOLE, SPLIT, FLAT})

OPTIMIZERS.add(
    "hybrid_adam",
    OptimizerSpec(
        "AdamW, in fused kernels of Colossal-AI (Loshchilov and Hutter 2019, arXiv:1711.05101)",
        _hybrid_adam,
        _ELEMENTWISE | {CHUNKS},
        state_bytes=8,
        has_elementwise_states=True,
    ),
)
OPTIMIZERS.add(
    "lion",
    OptimizerSpec(
        "sign of an average of gradients; one state instead of two (Chen et al. 2023, arXiv:2302.06675)",
        _lion,
        _ELEMENTWISE,
        state_bytes=4,
        has_elementwise_states=True,
    ),
)
OPTIMIZERS.add(
    "adamw_8bit",
    OptimizerSpec(
        "AdamW with states in 8 bits, quantised in blocks of 256 (Dettmers et al. 2022, arXiv:2110.02861)",
        _adam_8bit,
        _ELEMENTWISE,
        state_bytes=2,
    ),
)
OPTIMIZERS.add(
    "adafactor",
    OptimizerSpec(
        "second moments as rows and columns, no first moment (Shazeer and Stern 2018, arXiv:1804.04235)",
        _adafactor,
        frozenset({WHOLE}),
        state_bytes=0,
    ),
)
OPTIMIZERS.add(
    "came",
    OptimizerSpec(
        "Adafactor with a first moment that is trusted by its residuals (Luo et al. 2023, arXiv:2307.02047)",
        _came,
        frozenset({WHOLE}),
        state_bytes=4,
    ),
)
OPTIMIZERS.add(
    "galore",
    OptimizerSpec(
        "AdamW on gradients projected to a low rank, embeddings apart (Zhao et al. 2024, arXiv:2403.03507)",
        _galore,
        frozenset({WHOLE}),
        state_bytes=8,
        matrix_options=_galore_options,
    ),
)
