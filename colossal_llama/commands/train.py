"""``train.py``: one training run, that is one stage, with one plugin."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colossal_llama.config.cli import parse_config
from colossal_llama.config.io import write_config
from colossal_llama.config.train import TrainConfig
from colossal_llama.errors import UserError, run_command

DESCRIPTION = (
    "Train a LLaMA-family model on prepared data. Start it with: "
    "colossalai run --nproc_per_node N [--hostfile FILE] scripts/train.py ... (or torchrun)."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command; returns the exit code."""
    return run_command(lambda: train(parse_config(TrainConfig, argv, DESCRIPTION)))


@dataclass(frozen=True)
class Inputs:
    """What is read before anything is launched."""

    model_config: dict[str, Any]
    weights: Path
    resume_from: Path | None


def train(config: TrainConfig) -> None:
    """Run one stage from configuration to exported weights."""
    from colossal_llama.distributed.launch import launch, shut_down, world_size_from_environment
    from colossal_llama.plugins import PLUGINS, build_options

    spec = PLUGINS.get(config.plugin)
    spec.check(build_options(config, on_host=True, flash_attention=False), world_size_from_environment())
    inputs = check_inputs(config)
    env = launch(config.seed)
    try:
        run_stage(config, spec, inputs, env)
    finally:
        shut_down()


def check_inputs(config: TrainConfig) -> Inputs:
    """Look at the folders that the flags name, before the process group exists.

    Raises:
        UserError: a folder is missing, holds the wrong thing, or would be overwritten.
    """
    from colossal_llama.checkpoint.manager import ResumePoint, existing_checkpoints, locate_checkpoint
    from colossal_llama.model.loader import read_model_config

    pretrained = Path(config.pretrained)
    model_config = read_model_config(pretrained, "--pretrained")
    point = ResumePoint(folder=None, weights=pretrained)
    if config.load_checkpoint is not None:
        point = locate_checkpoint(Path(config.load_checkpoint))
        check_same_model(model_config, read_model_config(point.weights, "--load_checkpoint"), point.weights)
    old = existing_checkpoints(Path(config.save_dir))
    if old and point.folder is None and not config.overwrite and not config.benchmark:
        raise UserError(
            f"--save_dir {config.save_dir} already holds checkpoints ({old[-1].name}); resume one with "
            "--load_checkpoint, choose another folder, or add --overwrite"
        )
    return Inputs(model_config=model_config, weights=point.weights, resume_from=point.folder)


def check_same_model(expected: dict[str, Any], found: dict[str, Any], folder: Path) -> None:
    """Refuse weights of another architecture or size than ``--pretrained``'s.

    Raises:
        UserError: names the values that differ.
    """
    keys = (
        "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "vocab_size",
    )  # fmt: skip
    differing = [
        f"{key} {found.get(key)} instead of {expected.get(key)}" for key in keys if found.get(key) != expected.get(key)
    ]
    if differing:
        raise UserError(f"--load_checkpoint {folder}: a checkpoint of another model: {', '.join(differing)}")


def run_stage(config: TrainConfig, spec: Any, inputs: Inputs, env: Any) -> None:
    """Build everything, train, export. All ranks run it."""
    from colossal_llama.optim import build_lr_scheduler, build_optimizer
    from colossal_llama.plugins import build_options
    from colossal_llama.plugins.steps import Boosted, build_step

    options = build_options(config, on_host=env.device == "cpu", flash_attention=use_flash_attention(config, env))
    plugin = spec.make(options)
    layout = spec.layout(plugin, options)
    tokenizer, pad_token_id = build_tokenizer(config, inputs)
    rows = build_rows(config, inputs, tokenizer)
    schedule = build_schedule(config, len(rows), layout)
    announce(config, env, schedule, rows)
    model = build_model(config, spec, options, inputs, env)
    optimizer = build_optimizer(model.parameters(), config.lr, config.weight_decay)
    lr_scheduler = build_lr_scheduler(optimizer, schedule.total_steps, schedule.resolved_warmup_steps)
    generation_config = model.generation_config
    booster, model, optimizer, lr_scheduler = boost(spec, options, plugin, model, optimizer, lr_scheduler)
    generators = attach_neftune(config, model, pad_token_id, layout, env)
    manager = build_manager(
        config,
        inputs,
        env,
        layout,
        schedule,
        booster,
        model,
        optimizer,
        lr_scheduler,
        tokenizer,
        generation_config,
        generators,
    )
    state = start_state(inputs, manager, env)
    step = build_step(Boosted(booster, model, optimizer, layout, spec, options, env.device))
    fit(config, env, step, lr_scheduler, rows, schedule, layout, pad_token_id, state, manager)
    if not config.benchmark:
        env.say(f"final weights: {manager.export()}")


def use_flash_attention(config: TrainConfig, env: Any) -> bool:
    """Whether flash attention was asked for and can run here; says so once when it cannot."""
    if not config.use_flash_attn:
        return False
    if env.device == "cpu":
        env.say("--use_flash_attn: no GPU here; training with PyTorch's scaled-dot-product attention instead")
        return False
    if importlib.util.find_spec("flash_attn") is None:
        env.say(
            "--use_flash_attn: the package flash-attn is not installed (pip install 'colossal_llama[flash]'); training "
            "with PyTorch's scaled-dot-product attention instead"
        )
        return False
    return True


def build_tokenizer(config: TrainConfig, inputs: Inputs) -> tuple[Any, int]:
    """The tokenizer of ``--pretrained`` and the id that fills rows.

    Raises:
        UserError: it does not fit the model, or lacks the token that ``--pad_token`` names.
    """
    from colossal_llama.model.loader import check_vocabulary
    from colossal_llama.tokenizer.loading import load_tokenizer

    tokenizer = load_tokenizer(config.pretrained, "--pretrained")
    check_vocabulary(inputs.model_config, len(tokenizer), Path(config.pretrained))
    pad_token_id = tokenizer.eos_token_id if config.pad_token == "eos" else tokenizer.unk_token_id
    if pad_token_id is None:
        other = "unk" if config.pad_token == "eos" else "eos"
        raise UserError(f"--pad_token {config.pad_token}: the tokenizer has no such token; try --pad_token {other}")
    return tokenizer, pad_token_id


def build_rows(config: TrainConfig, inputs: Inputs, tokenizer: Any) -> Any:
    """The prepared dataset, or random rows with ``--benchmark``; takes over the chat template of SFT data."""
    if config.benchmark:
        from colossal_llama.data.random_rows import RandomRows

        return RandomRows(config.num_samples, config.max_length, inputs.model_config["vocab_size"], config.seed)
    from colossal_llama.data.dataset import PackedDataset
    from colossal_llama.tokenizer.fingerprint import tokenizer_fingerprint

    dataset = PackedDataset(config.dataset)
    dataset.check(tokenizer_fingerprint(tokenizer), inputs.model_config["vocab_size"], config.max_length)
    templates = [manifest.chat_template for manifest in dataset.manifests if manifest and manifest.chat_template]
    if templates:
        tokenizer.chat_template = templates[0].jinja
    return dataset


def build_schedule(config: TrainConfig, num_samples: int, layout: Any) -> Any:
    """The run's step arithmetic."""
    from colossal_llama.schedule import TrainSchedule

    return TrainSchedule(
        num_samples=num_samples,
        data_parallel_size=layout.data_size,
        micro_batch_size=config.micro_batch_size,
        accumulation_steps=config.accumulation_steps,
        num_epochs=config.num_epochs,
        warmup_steps=config.warmup_steps,
    )


def announce(config: TrainConfig, env: Any, schedule: Any, rows: Any) -> None:
    """Say what is about to happen and write the resolved configuration."""
    if not env.is_main:
        return
    write_config(config, Path(config.config_file))
    env.say(
        f"plugin {config.plugin}, {config.mixed_precision}, {env.world_size} process(es) on {env.device.split(':')[0]}: "
        f"{len(rows)} rows in {len(rows.bucket_sizes)} bucket(s), {schedule.total_steps} steps of "
        f"{schedule.global_batch} rows, {schedule.resolved_warmup_steps} of them warm-up"
    )


def build_model(config: TrainConfig, spec: Any, options: Any, inputs: Inputs, env: Any) -> Any:
    """The model with its trainable part chosen, ready to be boosted."""
    from colossal_llama.model.freeze import freeze_non_embedding_parameters
    from colossal_llama.model.loader import load_model

    # Eager attention makes its causal mask itself; see distributed.upstream_fixes on sequence parallelism.
    attention = "eager" if options.sp_mode else "sdpa"
    if options.flash_attention and not options.sp_mode and config.plugin not in ("3d", "gemini", "gemini_auto"):
        attention = "flash_attention_2"
    model = load_model(
        inputs.weights,
        "--load_checkpoint" if config.load_checkpoint else "--pretrained",
        "fp32" if spec.keeps_fp32_weights else options.precision,
        attention,
    )
    check_tensor_parallel(model.config, options, config.pretrained)
    if config.freeze_non_embeds_params:
        trainable, total = freeze_non_embedding_parameters(model)
        env.say(f"training the embeddings only: {trainable:,} of {total:,} parameters")
    if config.use_grad_checkpoint:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def check_tensor_parallel(model_config: Any, options: Any, pretrained: str) -> None:
    """Refuse sizes that tensor and sequence parallelism cannot split evenly.

    Raises:
        UserError: names the size that does not divide.
    """
    for name, size in (("--tp", options.tp), ("--sp", options.sp)):
        heads = getattr(model_config, "num_key_value_heads", None) or model_config.num_attention_heads
        if heads % size or model_config.num_attention_heads % size:
            raise UserError(
                f"{name} {size} does not divide the model's {model_config.num_attention_heads} attention heads and "
                f"{heads} key/value heads"
            )
    if model_config.vocab_size % options.tp:
        raise UserError(
            f"--tp {options.tp} does not divide the vocabulary of {model_config.vocab_size}, and Colossal-AI cannot save "
            f"padded vocabularies; pad {pretrained} with init_model.py --pad_to_multiple_of {options.tp} (64 is faster)"
        )
    if options.pp > model_config.num_hidden_layers:
        raise UserError(f"--pp {options.pp} exceeds the model's {model_config.num_hidden_layers} layers")


def boost(
    spec: Any, options: Any, plugin: Any, model: Any, optimizer: Any, lr_scheduler: Any
) -> tuple[Any, Any, Any, Any]:
    """Hand everything to the Booster; returns booster, model, optimizer and schedule."""
    from colossalai.booster import Booster

    from colossal_llama.model.rope import restore_rope_precision

    amp = "fp16" if spec.keeps_fp32_weights and options.precision == "fp16" else None
    booster = Booster(plugin=plugin, mixed_precision=amp)
    model, optimizer, _, _, lr_scheduler = booster.boost(model, optimizer, lr_scheduler=lr_scheduler)
    restore_rope_precision(model.unwrap())
    return booster, model, optimizer, lr_scheduler


def attach_neftune(config: TrainConfig, model: Any, pad_token_id: int, layout: Any, env: Any) -> dict[str, Any]:
    """Switch NEFTune on where asked for; returns the generators that a checkpoint must hold."""
    if not config.use_neft:
        return {}
    from colossal_llama.model.neftune import NeftuneNoise

    noise = NeftuneNoise(config.neft_alpha, pad_token_id, config.seed * 1009 + layout.data_rank, env.device)
    embedding = model.unwrap().get_input_embeddings()
    if embedding is not None:
        noise.attach(embedding)
    return {"neftune": noise.generator}


def build_manager(
    config: TrainConfig,
    inputs: Inputs,
    env: Any,
    layout: Any,
    schedule: Any,
    booster: Any,
    model: Any,
    optimizer: Any,
    lr_scheduler: Any,
    tokenizer: Any,
    generation_config: Any,
    generators: dict[str, Any],
) -> Any:
    """The checkpoint manager of this run."""
    from functools import partial

    from colossal_llama.checkpoint.export import finish_export
    from colossal_llama.checkpoint.manager import CheckpointManager, RunIdentity

    identity = RunIdentity(
        layout={
            "plugin": config.plugin,
            "mixed_precision": config.mixed_precision,
            "world_size": env.world_size,
            "tp": config.tp,
            "pp": config.pp,
            "sp": config.sp,
            "sp_mode": config.sp_mode if config.enable_sequence_parallelism else None,
            "zero": config.zero if config.plugin == "3d" else None,
        },
        data={
            "num_samples": schedule.num_samples,
            "global_batch": schedule.global_batch,
            "seed": config.seed,
        },
        trained={"freeze_non_embeds_params": config.freeze_non_embeds_params, "lora_rank": config.lora_rank},
    )
    return CheckpointManager(
        save_dir=Path(config.save_dir).resolve(),
        booster=booster,
        model=model,
        optimizer=optimizer,
        lr_scheduler=lr_scheduler,
        identity=identity,
        rank=env.rank,
        world_size=env.world_size,
        finish_export=partial(
            finish_export,
            tokenizer=tokenizer,
            generation_config=generation_config,
            vocab_size=inputs.model_config["vocab_size"],
        ),
        generators=generators,
    )


def start_state(inputs: Inputs, manager: Any, env: Any) -> Any:
    """A fresh state, or the one that is resumed."""
    from colossal_llama.state import TrainState

    if inputs.resume_from is None:
        return TrainState()
    state = manager.load(inputs.resume_from)
    env.say(f"resumed {inputs.resume_from}: epoch {state.epoch}, {state.global_step} steps done")
    return state


def build_writers(config: TrainConfig, env: Any, schedule: Any, first_step: int) -> list[Any]:
    """Metric writers on rank 0, none elsewhere."""
    from colossal_llama.metrics.writers import JsonlWriter, ProgressWriter, TensorBoardWriter

    if not env.is_main:
        return []
    folder = Path(config.tensorboard_dir)
    progress = ProgressWriter(schedule.total_steps, first_step)
    return [progress] if config.benchmark else [progress, JsonlWriter(folder), TensorBoardWriter(folder)]


def fit(
    config: TrainConfig,
    env: Any,
    step: Any,
    lr_scheduler: Any,
    rows: Any,
    schedule: Any,
    layout: Any,
    pad_token_id: int,
    state: Any,
    manager: Any,
) -> None:
    """Train to the end of the schedule and print the summary."""
    from colossal_llama.data.collator import PackedCollator
    from colossal_llama.data.loader import StepLoader
    from colossal_llama.data.sampler import BucketSampler
    from colossal_llama.metrics.tracker import MetricTracker
    from colossal_llama.trainer import Trainer

    # Sequence-parallel ranks take equal slices of a row.
    multiple_of = max(config.sp, config.tp if config.enable_sequence_parallelism else 1)
    collate = PackedCollator(pad_token_id, config.max_length, config.padding_mode, multiple_of)
    loader = StepLoader(rows, BucketSampler(rows.bucket_sizes, config.seed), collate, schedule, layout.data_rank)
    tracker = MetricTracker(build_writers(config, env, schedule, state.global_step))
    trainer = Trainer(
        step=step,
        lr_scheduler=lr_scheduler,
        loader=loader,
        schedule=schedule,
        state=state,
        tracker=tracker,
        save=manager.save,
        save_interval=0 if config.benchmark else config.save_interval,
        save_each_epoch=not (config.benchmark or config.skip_save_each_epoch),
    )
    try:
        trainer.fit()
    finally:
        tracker.close()
    env.say(tracker.summary())
