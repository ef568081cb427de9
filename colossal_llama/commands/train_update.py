"""What ``train.py`` builds around the update of the weights: adapters, groups, optimizer, schedule, stored states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colossal_llama.config.train import TrainConfig
from colossal_llama.errors import UserError

if TYPE_CHECKING:
    from colossal_llama.checkpoint.optimizer_state import OptimizerStore
    from colossal_llama.commands.train import Setting
    from colossal_llama.data.manifest import Manifest

UPDATE_FLAGS = (
    "optimizer", "decay_norms_and_biases", "galore_rank", "galore_update_interval", "galore_scale", "lora_alpha",
    "lora_dropout", "lora_target_modules", "lora_modules_to_save", "freeze_old_embedding_rows",
)  # fmt: skip
"""The flags that a resumed run must share with its checkpoint. Learning rates and schedule may change."""


def add_adapters(setting: Setting, booster: Any, model: Any) -> Any:
    """The model with the LoRA adapters that the flags describe, or as it is without any."""
    from colossal_llama.model.lora import LoraOptions, add_lora

    config = setting.config
    if not config.lora_rank:
        return model
    options = LoraOptions(
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        target_modules=config.lora_target_modules,
        modules_to_save=tuple(config.lora_modules_to_save or ()),
    )
    return add_lora(booster, model, options, setting.inputs.adapter)


def build_fingerprint_writer(setting: Setting) -> Callable[[Path], None]:
    """What says beside adapters which weights they belong to; only rank 0 calls it. Whole weights need none."""
    from colossal_llama.model.base_fingerprint import weights_fingerprint, write_fingerprint

    has_adapters = setting.config.lora_rank > 0 and setting.env.is_main
    return partial(write_fingerprint, weights_fingerprint(setting.inputs.weights) if has_adapters else None)


def check_new_rows(config: TrainConfig, model_config: dict[str, Any]) -> None:
    """Refuse to freeze all rows of the embeddings.

    Raises:
        UserError: the model has no rows beyond ``--freeze_old_embedding_rows``.
    """
    rows, vocab_size = config.freeze_old_embedding_rows, model_config["vocab_size"]
    if rows is not None and rows >= vocab_size:
        raise UserError(f"--freeze_old_embedding_rows {rows}: the model has only {vocab_size} rows, so none is new")


def check_control_rows(setting: Setting, model: Any) -> None:
    """Refuse a training that cannot teach the model to end its answers, and say where new rows stay as they are.

    Raises:
        UserError: rows of control tokens are all zero or equal to others, and frozen; names the flag that trains them.
    """
    from colossal_llama.model.lora import embedding_names
    from colossal_llama.model.untrained_rows import describe_untrained
    from colossal_llama.tokenizer.expansion_report import REPORT_FILE

    config, tokenizer = setting.config, setting.tokenizer
    frozen = frozen_embeddings(config, model)
    if config.benchmark or not frozen or setting.inputs.resume_from is not None:
        return
    control_tokens, end_tokens = control_tokens_of(tokenizer, setting.rows)
    problem = describe_untrained(model, control_tokens, end_tokens, frozen)
    names = " ".join(embedding_names(model))
    if problem and config.lora_rank:
        raise UserError(f"--lora_rank {config.lora_rank}: {problem}; add --lora_modules_to_save {names}")
    if problem:
        raise UserError(
            f"--freeze_old_embedding_rows {config.freeze_old_embedding_rows}: {problem}; lower it to "
            f"{min(control_tokens.values())} or leave it away"
        )
    if config.lora_rank and (setting.inputs.weights / REPORT_FILE).is_file() and setting.inputs.adapter is None:
        setting.env.say(
            f"warning: {setting.inputs.weights} is a widened model, and LoRA leaves its new rows as init_model.py made "
            f"them; add --lora_modules_to_save {names}"
        )


def frozen_embeddings(config: TrainConfig, model: Any) -> dict[str, int | None]:
    """Which embeddings are not trained, ``input`` or ``output``, with the number of frozen rows or None for all."""
    from colossal_llama.model.lora import embedding_names

    if config.lora_rank:
        trained = {*(config.lora_modules_to_save or ()), *(config.lora_target_modules or ())}
        pairs = zip(("input", "output"), embedding_names(model), strict=False)
        return {role: None for role, name in pairs if name not in trained}
    rows = config.freeze_old_embedding_rows
    return {} if rows is None else {"input": rows, "output": rows}


def manifests_of(rows: Any) -> list[Manifest]:
    """The manifests of the parts of ``rows``; parts of other programs, and made-up rows, have none."""
    return [manifest for manifest in getattr(rows, "manifests", []) if manifest is not None]


def control_tokens_of(tokenizer: Any, rows: Any) -> tuple[dict[str, int], set[str]]:
    """The control tokens that prepared rows hold, with their ids, and those that end a text or an answer."""
    from colossal_llama.data.chat_templates import CHAT_TEMPLATES

    chat = next((one.chat_template for one in manifests_of(rows) if one.chat_template is not None), None)
    if chat is None:
        ends = [tokenizer.eos_token] if tokenizer.eos_token_id is not None else []
        tokens = [*ends, *([tokenizer.bos_token] if tokenizer.bos_token_id is not None else [])]
        return {token: tokenizer.convert_tokens_to_ids(token) for token in tokens}, set(ends)
    bound = CHAT_TEMPLATES.get(chat.name).bind(tokenizer, chat.name, "--pretrained")
    found = {token: tokenizer.convert_tokens_to_ids(token) for token in bound.control_tokens}
    return found, {token for token, token_id in found.items() if token_id == bound.end_token_id}


def freeze_old_rows(setting: Setting, model: Any) -> None:
    """Keep the embedding rows of the old vocabulary as they are, where asked for.

    Raises:
        UserError: no embedding is trained.
    """
    import torch.distributed as dist

    from colossal_llama.model.frozen_rows import freeze_first_rows
    from colossal_llama.optim import EMBEDDINGS, parameter_roles

    rows = setting.config.freeze_old_embedding_rows
    if rows is None:
        return
    weights = parameter_roles(model)[EMBEDDINGS]
    if not weights:
        raise UserError(
            "--freeze_old_embedding_rows: no embedding is trained; add --lora_modules_to_save embed_tokens lm_head"
        )
    group = setting.layout.tp_group
    freeze_first_rows(weights, rows, 0 if group is None else dist.get_rank(group))


def build_optimizer(config: TrainConfig, model: Any) -> Any:
    """The optimizer over the trainable parameters of a model that is not boosted yet."""
    from colossal_llama.optim import OPTIMIZERS, GroupOptions, parameter_groups

    spec = OPTIMIZERS.get(config.optimizer)
    options = GroupOptions(
        lr=config.lr,
        weight_decay=config.weight_decay,
        embedding_lr=config.embedding_lr,
        decay_vectors=config.decay_norms_and_biases,
        decay_embeddings=config.freeze_old_embedding_rows is None,
        matrix_options=spec.matrix_options(config.galore_rank, config.galore_update_interval, config.galore_scale),
    )
    return spec.make(parameter_groups(model, options))


def build_schedule(setting: Setting, optimizer: Any) -> Any:
    """The learning-rate schedule of every parameter group."""
    from colossal_llama.optim import build_lr_scheduler

    config, schedule = setting.config, setting.schedule
    return build_lr_scheduler(
        optimizer,
        schedule.total_steps,
        schedule.resolved_warmup_steps,
        config.lr_schedule,
        config.lr_floor,
        config.lr_decay_fraction,
    )


def build_optimizer_store(setting: Setting, model: Any, optimizer: Any) -> OptimizerStore:
    """What writes and reads the states of the boosted optimizer."""
    from colossal_llama.checkpoint.optimizer_state import PieceStore, RankStore
    from colossal_llama.constants import FLAT
    from colossal_llama.optim import OPTIMIZERS
    from colossal_llama.plugins import first_replica

    rank = setting.env.rank
    if OPTIMIZERS.get(setting.config.optimizer).has_elementwise_states:
        return PieceStore(model, optimizer, rank, setting.env.world_size)
    is_sharded = setting.spec.weight_form(setting.options) == FLAT
    return RankStore(optimizer, rank, owner=rank if is_sharded else first_replica(setting.layout))


def update_settings(config: TrainConfig | None) -> dict[str, Any]:
    """What a resumed run must share of the update; without a configuration the defaults, as older checkpoints have."""
    defaults = {field.name: field.default for field in fields(TrainConfig)}
    values = {name: defaults[name] if config is None else getattr(config, name) for name in UPDATE_FLAGS}
    # Its value may change, but not the groups that it makes.
    return values | {"own_embedding_lr": config is not None and config.embedding_lr is not None}
