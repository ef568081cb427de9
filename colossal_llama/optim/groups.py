"""Parameter groups: which parameters share a learning rate and a weight decay."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MATRICES = "matrices"
VECTORS = "vectors"
EMBEDDINGS = "embeddings"
ROLES = (MATRICES, VECTORS, EMBEDDINGS)
"""The order of the groups. Every pipeline stage has matrices, and Colossal-AI's ZeRO reads its dtype off the first
group."""


@dataclass(frozen=True)
class GroupOptions:
    """What the groups are made from.

    Attributes:
        lr: peak learning rate.
        weight_decay: decoupled weight decay.
        embedding_lr: peak learning rate of the input and the output embedding, or None for ``lr``.
        decay_vectors: whether norms and biases are decayed too.
        decay_embeddings: whether the embeddings are decayed too.
        matrix_options: further settings of the group of matrices (GaLore's).
    """

    lr: float
    weight_decay: float
    embedding_lr: float | None = None
    decay_vectors: bool = True
    decay_embeddings: bool = True
    matrix_options: dict[str, Any] = field(default_factory=dict)

    def settings(self, role: str) -> dict[str, Any]:
        """The entries of a role's group, without its parameters."""
        own_lr, decays, own_options = self.kind(role)
        lr = self.embedding_lr if own_lr else self.lr
        return {"lr": lr, "weight_decay": self.weight_decay if decays else 0.0} | (
            self.matrix_options if own_options else {}
        )

    def kind(self, role: str) -> tuple[bool, bool, bool]:
        """What sets a role apart: a learning rate of its own, whether it is decayed, further settings of its own.

        It does not depend on the values of the learning rates and the weight decay, so that a resumed run has the
        same groups when these change.
        """
        decays = {VECTORS: self.decay_vectors, EMBEDDINGS: self.decay_embeddings}.get(role, True)
        own_lr = role == EMBEDDINGS and self.embedding_lr is not None
        return own_lr, decays, role == MATRICES and bool(self.matrix_options)


def parameter_roles(model: Any) -> dict[str, list[Any]]:
    """The trainable parameters of a causal LM by what they are, in the model's order.

    Embeddings are what ``get_input_embeddings`` and ``get_output_embeddings`` hold, tied or not, also where peft has
    put a trainable copy beside them. Vectors are the other parameters of one dimension: norms and biases. Every
    other parameter is a matrix.

    Args:
        model: a transformers causal LM, bare or wrapped by peft, before it is boosted.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    modules = [base.get_input_embeddings(), base.get_output_embeddings()]
    embeddings = {id(param) for module in modules if module is not None for param in module.parameters()}
    roles: dict[str, list[Any]] = {role: [] for role in ROLES}
    for param in model.parameters():
        if param.requires_grad:
            role = EMBEDDINGS if id(param) in embeddings else VECTORS if param.ndim < 2 else MATRICES
            roles[role].append(param)
    return roles


def parameter_groups(model: Any, options: GroupOptions) -> list[dict[str, Any]]:
    """The optimizer's parameter groups: as few as the options allow.

    Roles of one :meth:`GroupOptions.kind` share a group, in the model's order; by default there is only one. A role
    without trainable parameters has no group.

    Args:
        model: see :func:`parameter_roles`.
        options: the settings.
    """
    roles = {role: params for role, params in parameter_roles(model).items() if params}
    kind_of = {id(param): options.kind(role) for role, params in roles.items() for param in params}
    groups: dict[tuple[bool, bool, bool], dict[str, Any]] = {}
    for role in roles:
        groups.setdefault(options.kind(role), {"params": [], **options.settings(role)})
    for param in model.parameters():
        if id(param) in kind_of:
            groups[kind_of[id(param)]]["params"].append(param)
    return list(groups.values())
