"""``train.py``: one training run, that is one stage, with one plugin."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colossal_llama.commands.train_update import (
    add_adapters,
    build_fingerprint_writer,
    build_optimizer,
    build_optimizer_store,
    build_schedule,
    check_control_rows,
    check_new_rows,
    freeze_old_rows,
    manifests_of,
    update_settings,
)
from colossal_llama.config.cli import parse_config
from colossal_llama.config.io import write_config
from colossal_llama.config.train import AUTO, TrainConfig
from colossal_llama.constants import CONFIG_FILE
from colossal_llama.errors import PreemptedError, UserError, run_command

if TYPE_CHECKING:
    from colossal_llama.checkpoint.manager import CheckpointManager, ResumePoint, RunIdentity
    from colossal_llama.data.collator import PackedCollator
    from colossal_llama.data.held_out import HeldOutRows
    from colossal_llama.distributed.launch import DistEnv
    from colossal_llama.distributed.preemption import SignalWatch
    from colossal_llama.metrics.tracker import MetricTracker
    from colossal_llama.plugins import ParallelLayout, PluginOptions, PluginSpec
    from colossal_llama.plugins.steps import TrainStep
    from colossal_llama.schedule import TrainSchedule
    from colossal_llama.state import TrainState

DESCRIPTION = (
    "Train a LLaMA-family model on prepared data. Start it with: "
    "colossalai run --nproc_per_node N [--hostfile FILE] scripts/train.py ... (or torchrun)."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command; returns the exit code."""
    return run_command(lambda: train(parse_config(TrainConfig, argv, DESCRIPTION)))


@dataclass(frozen=True)
class Inputs:
    """What is read before anything is launched.

    Attributes:
        model_config: ``config.json`` of ``--pretrained``.
        weights: folder that the weights come from.
        weights_flag: the flag that named it.
        adapter: folder of LoRA adapters to go on from, or None.
        resume_from: checkpoint to resume, or None.
        note: what to tell about the weights, or None.
    """

    model_config: dict[str, Any]
    weights: Path
    weights_flag: str
    adapter: Path | None
    resume_from: Path | None
    note: str | None = None


def train(config: TrainConfig) -> None:
    """Run one stage from configuration to exported weights."""
    from colossal_llama.checkpoint.folders import remove_leftovers
    from colossal_llama.distributed.launch import launch, shut_down, world_size_from_environment
    from colossal_llama.optim import check_optimizer
    from colossal_llama.plugins import PLUGINS, build_options

    spec = PLUGINS.get(config.plugin)
    options = build_options(config, on_host=True, flash_attention=False)
    spec.check(options, world_size_from_environment())
    check_optimizer(config.optimizer, spec.weight_form(options), config.plugin)
    check_outputs(config)
    point = locate_start(config)
    inputs = check_inputs(config, point) if point.folder is None else None
    env = launch(config.seed)
    try:
        if env.is_main and not config.benchmark:
            for folder in remove_leftovers(Path(config.save_dir)):
                env.say(f"removed {folder}, which a killed run left")
        if inputs is None or config.load_checkpoint == AUTO:
            inputs = check_inputs(config, find_whole_checkpoint(config, point, env))
        run_stage(config, spec, inputs, env)
    finally:
        shut_down()


def check_outputs(config: TrainConfig) -> None:
    """Refuse outputs that could not be written, before anything is loaded; only rank 0 writes all of them.

    Raises:
        UserError: names the flag.
    """
    from colossal_llama.atomic import refuse_existing_file, refuse_unwritable

    if os.environ.get("RANK", "0") != "0":
        return
    refuse_existing_file(Path(config.config_file), "--config_file", overwrite=True)
    if not config.benchmark:
        refuse_unwritable(Path(config.save_dir), "--save_dir")
        refuse_unwritable(Path(config.tensorboard_dir), "--tensorboard_dir")


def locate_start(config: TrainConfig) -> ResumePoint:
    """What the run starts from, as far as the flags alone say; with ``--load_checkpoint auto``, the initial weights.

    Raises:
        UserError: ``--load_checkpoint`` names nothing to start from, or ``--save_dir`` would be overwritten.
    """
    from colossal_llama.checkpoint.folders import existing_checkpoints
    from colossal_llama.checkpoint.manager import ResumePoint, locate_checkpoint, locate_weights
    from colossal_llama.model.model_folder import read_model_config

    read_model_config(Path(config.pretrained), "--pretrained")
    point = ResumePoint(folder=None, weights=Path(config.pretrained))
    if config.initial_weights is not None:
        point = ResumePoint(folder=None, weights=locate_weights(Path(config.initial_weights), "--initial_weights"))
    elif config.load_checkpoint is not None and config.load_checkpoint != AUTO:
        point = locate_checkpoint(Path(config.load_checkpoint))
    old = existing_checkpoints(Path(config.save_dir))
    goes_on = point.folder is not None or config.load_checkpoint == AUTO
    if old and not (goes_on or config.overwrite or config.benchmark):
        raise UserError(
            f"--save_dir {config.save_dir} already holds checkpoints ({old[-1].name}); resume one with "
            "--load_checkpoint, choose another folder, or add --overwrite"
        )
    return point


def find_whole_checkpoint(config: TrainConfig, point: ResumePoint, env: DistEnv) -> ResumePoint:
    """The checkpoint that the run goes on from, every byte of it read; with ``auto`` perhaps none. Collective.

    Raises:
        UserError: the checkpoint that ``--load_checkpoint`` names is damaged.
    """
    from colossal_llama.checkpoint.manager import locate_checkpoint
    from colossal_llama.checkpoint.verification import Verifier

    verifier = Verifier(env.rank, env.world_size, env.say)
    if point.folder is not None:
        verifier.require_whole(point.folder)
        return point
    newest = verifier.newest_whole(Path(config.save_dir))
    if newest is not None:
        return locate_checkpoint(newest)
    env.say(f"--load_checkpoint auto: no whole checkpoint in {config.save_dir}; starting from {point.weights}")
    return point


def check_inputs(config: TrainConfig, point: ResumePoint) -> Inputs:
    """Look at the model that the flags name, and at the weights that the run starts from.

    Raises:
        UserError: a folder is missing or holds the wrong thing.
    """
    from colossal_llama.model.adapters import check_adapter
    from colossal_llama.model.base_fingerprint import check_base
    from colossal_llama.model.model_folder import is_adapter_folder, read_model_config
    from colossal_llama.model.pretrained import inspect_model

    pretrained = Path(config.pretrained)
    model_config = read_model_config(pretrained, "--pretrained")
    if model_config.get("vocab_size") is None:
        raise UserError(f"--pretrained {pretrained / CONFIG_FILE}: has no vocab_size; copy the model again")
    check_new_rows(config, model_config)
    adapter = None
    if point.weights != pretrained:
        adapter = point.weights if is_adapter_folder(point.weights, "--load_checkpoint") else None
        if adapter is None:
            check_same_model(model_config, read_model_config(point.weights, "--load_checkpoint"), point.weights)
        elif not config.lora_rank:
            raise UserError(
                f"--load_checkpoint {adapter}: holds LoRA adapters; give the --lora_rank they were trained with"
            )
        else:
            check_adapter(adapter)
            check_base(adapter, pretrained, "--pretrained")
    if config.eval_interval:
        from colossal_llama.data.held_out import held_out_paths

        held_out_paths(config.eval_dataset, config.dataset)
    weights = point.weights if adapter is None else pretrained
    flag = "--pretrained" if weights == pretrained else "--load_checkpoint"
    note = inspect_model(weights, flag)
    return Inputs(model_config, weights, flag, adapter, resume_from=point.folder, note=note)


def check_same_model(expected: dict[str, Any], found: dict[str, Any], folder: Path) -> None:
    """Refuse weights of another architecture or size than ``--pretrained``'s.

    Raises:
        UserError: names the values that differ.
    """
    keys = (
        "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "vocab_size", "num_local_experts", "n_routed_experts", "n_embd",
        "n_inner", "n_layer", "n_head", "ffn_dim", "num_kv_heads",
    )  # fmt: skip
    # Saved again by transformers, a configuration has keys that it lacked before, with the values it had by default.
    shared = [key for key in keys if key in expected and key in found]
    differing = [f"{key} {found[key]} instead of {expected[key]}" for key in shared if found[key] != expected[key]]
    if differing:
        raise UserError(f"--load_checkpoint {folder}: a checkpoint of another model: {', '.join(differing)}")


@dataclass(frozen=True)
class Setting:
    """What the parts of a stage are built from.

    Attributes:
        config: the resolved flags.
        inputs: the folders they name.
        env: this process's place in the run.
        spec, options, plugin, layout: the plugin, from its description to where its ranks stand.
        tokenizer, pad_token_id: the model's tokenizer and the id that fills rows.
        rows: the prepared rows.
        document_mask: whether attention stays inside the documents of a row.
        schedule: the step arithmetic.
        held_out: the rows to evaluate on, or None.
        answer_end: the id that ends an answer in SFT data; None for pretraining.
    """

    config: TrainConfig
    inputs: Inputs
    env: DistEnv
    spec: PluginSpec
    options: PluginOptions
    plugin: Any
    layout: ParallelLayout
    tokenizer: Any
    pad_token_id: int
    rows: Any
    document_mask: bool
    schedule: TrainSchedule
    held_out: HeldOutRows | None = None
    answer_end: int | None = None


def run_stage(config: TrainConfig, spec: PluginSpec, inputs: Inputs, env: DistEnv) -> None:
    """Build everything, train, export. All ranks run it."""
    from colossal_llama.checkpoint.folders import Retention, discard_checkpoints
    from colossal_llama.checkpoint.manager import CheckpointManager
    from colossal_llama.distributed.preemption import SignalWatch
    from colossal_llama.model.lora import bare_model
    from colossal_llama.plugins.steps import Boosted, build_step

    setting = build_setting(config, spec, inputs, env)
    identity = build_identity(setting)
    check_same_run(identity, inputs)
    announce(setting)
    if config.overwrite and inputs.resume_from is None and env.is_main:
        discard_checkpoints(Path(config.save_dir))
    booster, model, optimizer, lr_scheduler, finish = build_boosted(setting)
    manager = CheckpointManager(
        save_dir=Path(config.save_dir).resolve(),
        booster=booster,
        model=model,
        optimizer=optimizer,
        lr_scheduler=lr_scheduler,
        identity=identity,
        rank=env.rank,
        world_size=env.world_size,
        finish_export=finish,
        generators=attach_neftune(setting, model),
        lora=config.lora_rank > 0,
        store=build_optimizer_store(setting, model, optimizer),
        retention=Retention(config.keep_last, config.keep_every),
        resumed=None if inputs.resume_from is None else inputs.resume_from.resolve(),
        background=config.async_save,
    )
    if not config.benchmark:
        manager.rehearse(bare_model(model).config)
    state = start_state(setting, manager, identity, lr_scheduler)
    if env.is_main:
        write_config(config, Path(config.config_file))
    watch = SignalWatch()
    step = build_step(
        Boosted(
            booster, model, optimizer, setting.layout, spec, setting.options, env.device,
            skips_not_finite=config.on_nan == "skip",
            wants_to_stop=lambda: watch.received is not None or manager.has_failed,
        )
    )  # fmt: skip
    try:
        with nullcontext() if config.benchmark else watch:
            fit(setting, step, lr_scheduler, state, manager, watch)
        if not config.benchmark:
            env.say(f"final weights: {manager.export()}")
    finally:
        manager.close()


def build_setting(config: TrainConfig, spec: PluginSpec, inputs: Inputs, env: DistEnv) -> Setting:
    """Everything that must exist before the model is loaded."""
    from colossal_llama.plugins import check_document_mask

    options, plugin, layout = build_parallelism(config, spec, inputs, env)
    tokenizer, pad_token_id = build_tokenizer(config, inputs)
    rows = build_rows(config, inputs, tokenizer)
    answer_end = answer_end_of(tokenizer, rows)
    document_mask = use_document_mask(config, rows, env)
    if document_mask:
        check_document_mask(config.plugin, spec, options, inputs.model_config, config.max_length)
    schedule = build_train_schedule(config, len(rows), layout)
    held_out = build_held_out(config, inputs, tokenizer, document_mask)
    return Setting(
        config, inputs, env, spec, options, plugin, layout, tokenizer, pad_token_id, rows, document_mask, schedule,
        held_out, answer_end,
    )  # fmt: skip


def build_parallelism(
    config: TrainConfig, spec: PluginSpec, inputs: Inputs, env: DistEnv
) -> tuple[PluginOptions, Any, ParallelLayout]:
    """The plugin, what it is built from, and where this rank stands in it.

    Raises:
        UserError: the plugin cannot train this model in this layout.
    """
    from colossal_llama.plugins import build_options, check_model, read_architecture

    options = build_options(config, on_host=env.device == "cpu", flash_attention=use_flash_attention(config, env))
    architecture = read_architecture(config.pretrained, inputs.model_config)
    check_model(config.plugin, spec, options, config.pretrained, architecture, config.max_length)
    plugin = spec.make(options)
    return options, plugin, replace(spec.layout(plugin, options), vocab_size=architecture.vocab_size)


def build_train_schedule(config: TrainConfig, rows: int, layout: ParallelLayout) -> TrainSchedule:
    """The step arithmetic of the run."""
    from colossal_llama.schedule import TrainSchedule

    return TrainSchedule(
        num_samples=rows,
        data_parallel_size=layout.data_size,
        micro_batch_size=config.micro_batch_size,
        accumulation_steps=config.accumulation_steps,
        num_epochs=config.num_epochs,
        warmup_steps=config.warmup_steps,
    )


def use_flash_attention(config: TrainConfig, env: DistEnv) -> bool:
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


def use_document_mask(config: TrainConfig, rows: Any, env: DistEnv) -> bool:
    """Whether the documents of a row are kept apart; ``auto`` says so where it would but cannot.

    Raises:
        UserError: they should be, but rows do not say how long their documents are, or say it wrongly.
    """
    from colossal_llama.data.manifest import SFT

    kinds = {manifest.kind for manifest in manifests_of(rows)}
    if config.document_mask == "off" or (config.document_mask == "auto" and SFT not in kinds):
        return False
    if config.document_mask == "auto" and not rows.has_seq_lengths:
        env.say("--document_mask auto: off, because --dataset has parts without seq_lengths; documents in a row mix")
        return False
    rows.check_documents()
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
    """The prepared dataset, or random rows with ``--benchmark``."""
    if config.benchmark:
        from colossal_llama.data.random_rows import RandomRows

        return RandomRows(config.num_samples, config.max_length, inputs.model_config["vocab_size"], config.seed)
    from colossal_llama.data.dataset import PackedDataset
    from colossal_llama.tokenizer.fingerprint import tokenizer_fingerprint

    dataset = PackedDataset(config.dataset)
    dataset.check(tokenizer_fingerprint(tokenizer), inputs.model_config["vocab_size"], config.max_length)
    return dataset


def answer_end_of(tokenizer: Any, rows: Any) -> int | None:
    """The id that ends an answer in SFT data, whose chat template the tokenizer takes over; None for other data.

    Raises:
        UserError: the exported model could have no chat template that renders what training sees.
    """
    from colossal_llama.data.exported_template import adopt_chat_template

    return adopt_chat_template(tokenizer, [manifest.chat_template for manifest in manifests_of(rows)])


def announce(setting: Setting) -> None:
    """Say what is about to happen."""
    config, env, rows, schedule = setting.config, setting.env, setting.rows, setting.schedule
    env.say(
        f"plugin {config.plugin}, {config.mixed_precision}, {env.world_size} process(es) on "
        f"{env.device.split(':')[0]}: {len(rows)} rows in {len(rows.bucket_sizes)} bucket(s), "
        f"{schedule.total_steps} steps of {schedule.global_batch} rows, "
        f"{schedule.resolved_warmup_steps} of them warm-up; the documents of a row are "
        f"{'kept apart' if setting.document_mask else 'one text'}"
    )
    if setting.inputs.note:
        env.say(setting.inputs.note)


def build_boosted(setting: Setting) -> tuple[Any, Any, Any, Any, Callable[[Path], None]]:
    """Booster, model, optimizer and schedule, and what completes an exported folder."""
    from colossal_llama.checkpoint.export import finish_export
    from colossal_llama.plugins import build_booster

    model = build_model(setting)
    if setting.answer_end is not None:
        model.generation_config.eos_token_id = setting.answer_end
    finish = partial(
        finish_export,
        tokenizer=setting.tokenizer,
        generation_config=model.generation_config,
        vocab_size=setting.inputs.model_config["vocab_size"],
        write_more=build_fingerprint_writer(setting),
    )
    check_control_rows(setting, model)
    booster = build_booster(setting.plugin, setting.spec, setting.options)
    model = add_adapters(setting, booster, model)
    freeze_old_rows(setting, model)
    model, optimizer, lr_scheduler = boost(setting, booster, model)
    return booster, model, optimizer, lr_scheduler, finish


def boost(setting: Setting, booster: Any, model: Any) -> tuple[Any, Any, Any]:
    """Model, optimizer and learning-rate schedule, distributed as the plugin does it."""
    from colossal_llama.model.lora import bare_model
    from colossal_llama.model.rope import restore_rope_precision

    optimizer = build_optimizer(setting.config, model)
    lr_scheduler = build_schedule(setting, optimizer)
    model, optimizer, _, _, lr_scheduler = booster.boost(model, optimizer, lr_scheduler=lr_scheduler)
    restore_rope_precision(bare_model(model))
    return model, optimizer, lr_scheduler


def build_model(setting: Setting) -> Any:
    """The model with its trainable part chosen, ready to be boosted."""
    from colossal_llama.model.loader import load_model
    from colossal_llama.model.pretrained import describe_repairs
    from colossal_llama.plugins import attention_for

    config, options, spec = setting.config, setting.options, setting.spec
    attention = attention_for(spec, options, setting.inputs.model_config["model_type"])
    weights, flag = setting.inputs.weights, setting.inputs.weights_flag
    for repair in describe_repairs(weights, flag):
        setting.env.say(f"so that the model can be saved: {repair}")
    model = load_model(
        weights,
        flag,
        "fp32" if spec.keeps_fp32_weights else config.mixed_precision,
        attention,
    )
    choose_trained(setting, model)
    return model


def choose_trained(setting: Setting, model: Any) -> None:
    """Freeze what is not trained, and recompute activations, where asked for."""
    from colossal_llama.model.freeze import freeze_non_embedding_parameters

    config = setting.config
    if config.freeze_non_embeds_params:
        trainable, total = freeze_non_embedding_parameters(model)
        setting.env.say(f"training the embeddings only: {trainable:,} of {total:,} parameters")
    if config.use_grad_checkpoint:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def attach_neftune(setting: Setting, model: Any) -> dict[str, Any]:
    """Switch NEFTune on where asked for; returns the generators that a checkpoint must hold."""
    config = setting.config
    if not config.use_neft:
        return {}
    from colossal_llama.model.lora import bare_model
    from colossal_llama.model.neftune import NeftuneNoise

    seed = config.seed * 1009 + setting.layout.data_rank
    noise = NeftuneNoise(config.neft_alpha, setting.pad_token_id, seed, setting.env.device)
    embedding = bare_model(model).get_input_embeddings()
    if embedding is not None:
        noise.attach(embedding)
    return {"neftune": noise.generator}


def build_identity(setting: Setting) -> RunIdentity:
    """What a checkpoint of this run must have in common with the run that resumes it."""
    from colossal_llama.checkpoint.manager import RunIdentity

    config, schedule = setting.config, setting.schedule
    is_3d = config.plugin == "3d"
    rows = setting.rows.fingerprint()
    return RunIdentity(
        layout={
            "plugin": config.plugin,
            "mixed_precision": config.mixed_precision,
            "world_size": setting.env.world_size,
            "tp": config.tp,
            "pp": config.pp,
            "sp": config.sp,
            "sp_mode": config.sp_mode if config.enable_sequence_parallelism else None,
            "zero": config.zero if is_3d else None,
        },
        batch={"global_batch": schedule.global_batch},
        data={
            "num_samples": schedule.num_samples,
            "rows": rows,
            "num_epochs": schedule.num_epochs,
            "seed": config.seed,
            # None as in checkpoints from before this flag.
            "document_mask": "on" if setting.document_mask else None,
        },
        trained={
            "freeze_non_embeds_params": config.freeze_non_embeds_params,
            "use_neft": config.use_neft,
            "lora_rank": config.lora_rank,
            **update_settings(config),
        },
        defaults={"rows": rows, **update_settings(None)},
    )


def check_same_run(identity: RunIdentity, inputs: Inputs) -> None:
    """Refuse to resume another run, before its model is loaded.

    Raises:
        UserError: names what differs.
    """
    from colossal_llama.checkpoint.manager import read_running_states

    if inputs.resume_from is not None:
        identity.check(read_running_states(inputs.resume_from), inputs.resume_from)


def start_state(setting: Setting, manager: CheckpointManager, identity: RunIdentity, lr_scheduler: Any) -> TrainState:
    """A fresh state, or the one that is resumed; says what a resumed run does not share with the one before."""
    from colossal_llama.checkpoint.manager import read_running_states
    from colossal_llama.optim import seek_lr_scheduler
    from colossal_llama.state import TrainState

    checkpoint, schedule, env = setting.inputs.resume_from, setting.schedule, setting.env
    if checkpoint is None:
        return TrainState()
    state = manager.load(checkpoint)
    position = schedule.position(state.epoch, state.consumed_samples)
    seek_lr_scheduler(lr_scheduler, position)
    env.say(f"resumed {checkpoint}: epoch {state.epoch}, {state.global_step} steps done")
    if state.epoch >= setting.config.num_epochs:
        env.say("the run is finished: nothing is left to train, the weights are exported again")
    stored = read_running_states(checkpoint)
    changes = identity.layout_changes(stored)
    if changes:
        env.say(
            f"another layout of ranks ({'; '.join(changes)}): weights, optimizer and data position are kept, random "
            "generators are seeded anew from --seed and the step"
        )
    batch_changes = identity.batch_changes(stored)
    if batch_changes:
        env.say(
            f"another batch ({'; '.join(batch_changes)}): no row is repeated or left out, the learning rate goes on at "
            f"{position} of {schedule.total_steps} steps of {schedule.global_batch} rows"
        )
    return state


def build_tracker(setting: Setting, state: TrainState) -> MetricTracker:
    """What counts and times; metric writers on rank 0, none elsewhere."""
    from colossal_llama.metrics.device import device_name
    from colossal_llama.metrics.flops import flops_per_token, is_counted, peak_flops
    from colossal_llama.metrics.tracker import MetricTracker
    from colossal_llama.metrics.writers import ConsoleWriter, JsonlWriter, TensorBoardWriter

    config, env, first_step = setting.config, setting.env, state.global_step
    writers: list[Any] = []
    if env.is_main:
        last_step = first_step + setting.schedule.remaining_steps(state.epoch, state.consumed_samples)
        writers.append(ConsoleWriter(last_step, first_step))
    if env.is_main and not config.benchmark:
        folder = Path(config.tensorboard_dir)
        writers += [JsonlWriter(folder, first_step), TensorBoardWriter(folder, first_step)]
    peak = config.peak_tflops * 1e12 if config.peak_tflops else None
    peak = peak or peak_flops(device_name(env.device), config.mixed_precision)
    # The formula is for models that are trained as a whole or in their embeddings, not for adapters.
    flops = None
    if peak and not config.lora_rank and is_counted(setting.inputs.model_config):
        flops = flops_per_token(setting.inputs.model_config, config.max_length, config.freeze_non_embeds_params)
    return MetricTracker(writers, env.world_size, flops, peak)


def build_collator(setting: Setting) -> PackedCollator:
    """From rows to batches, the same for training and evaluation."""
    from colossal_llama.data.collator import PackedCollator

    config = setting.config
    # Sequence-parallel ranks take equal slices of a row.
    multiple_of = max(config.sp, config.tp if config.enable_sequence_parallelism else 1)
    return PackedCollator(
        setting.pad_token_id, config.max_length, config.padding_mode, multiple_of, setting.document_mask
    )


def build_held_out(config: TrainConfig, inputs: Inputs, tokenizer: Any, document_mask: bool) -> HeldOutRows | None:
    """The rows to evaluate on, or None where that was not asked for.

    Raises:
        UserError: they do not fit the model, or do not say where their documents begin and should.
    """
    from colossal_llama.data.held_out import HeldOutRows, held_out_paths
    from colossal_llama.tokenizer.fingerprint import tokenizer_fingerprint

    if not config.eval_interval:
        return None
    rows = HeldOutRows(held_out_paths(config.eval_dataset, config.dataset), config.eval_rows)
    rows.dataset.check(tokenizer_fingerprint(tokenizer), inputs.model_config["vocab_size"], config.max_length)
    if document_mask:
        rows.dataset.check_documents()
    return rows


def build_evaluation(setting: Setting) -> Callable[[TrainStep], Any] | None:
    """What scores the model on the held-out rows, if there are any."""
    from colossal_llama.data.held_out import GroupedCollator
    from colossal_llama.data.loader import StepLoader
    from colossal_llama.data.sampler import GivenOrder
    from colossal_llama.evaluation.held_out import HeldOutEvaluation
    from colossal_llama.tokenizer.token_bytes import token_bytes

    rows, env = setting.held_out, setting.env
    if rows is None:
        return None
    schedule = dataclasses.replace(setting.schedule, num_samples=len(rows.row_numbers))
    collate = GroupedCollator(build_collator(setting))
    loader = StepLoader(rows, GivenOrder(rows.row_numbers), collate, schedule, setting.layout.data_rank)
    env.say(f"evaluating on {len(rows.row_numbers)} held-out rows every {setting.config.eval_interval} steps")
    bytes_of = token_bytes(setting.tokenizer, setting.inputs.model_config["vocab_size"])
    return HeldOutEvaluation(loader, rows.groups, bytes_of, setting.layout, env.device).run


def stop_run(state: TrainState, manager: CheckpointManager, watch: SignalWatch) -> None:
    """Save and end the run, as all ranks have agreed to.

    Raises:
        UserError: what they agreed on is that a checkpoint could not be written.
        PreemptedError: everything is saved.
    """
    from colossal_llama.distributed.agreement import gather

    folder = manager.save_once(state)
    received = next((f"{name} (rank {rank})" for rank, name in enumerate(gather(watch.received)) if name), "a signal")
    raise PreemptedError(
        f"stopped by {received} after step {state.global_step}; saved {folder}; go on with --load_checkpoint auto"
    )


def fit(
    setting: Setting,
    step: TrainStep,
    lr_scheduler: Any,
    state: TrainState,
    manager: CheckpointManager,
    watch: SignalWatch,
) -> None:
    """Train to the end of the schedule, print the summary and write the report."""
    from colossal_llama.data.loader import StepLoader
    from colossal_llama.data.sampler import BucketSampler
    from colossal_llama.trainer import Intervals, Trainer

    config, rows = setting.config, setting.rows
    sampler = BucketSampler(rows.bucket_sizes, config.seed)
    loader = StepLoader(rows, sampler, build_collator(setting), setting.schedule, setting.layout.data_rank)
    evaluate = build_evaluation(setting)
    tracker = build_tracker(setting, state)
    trainer = Trainer(
        step=step,
        lr_scheduler=lr_scheduler,
        loader=loader,
        sampler=sampler,
        schedule=setting.schedule,
        state=state,
        tracker=tracker,
        intervals=Intervals(
            save=0 if config.benchmark else config.save_interval,
            save_each_epoch=not (config.benchmark or config.skip_save_each_epoch),
            evaluate=config.eval_interval,
            evaluate_first=setting.spec.evaluates_untrained,
        ),
        save=manager.save,
        stop=partial(stop_run, manager=manager, watch=watch),
        evaluate=evaluate,
        goes_on_after_nan=config.on_nan == "skip",
        bucket_names=[str(part) for part in getattr(rows, "parts", [])] or None,
        device=setting.env.device,
    )
    try:
        trainer.fit()
        manager.wait()
    finally:
        tracker.close()
        if setting.env.is_main and not config.benchmark:
            write_report(setting)
    setting.env.say(tracker.summary())


def write_report(setting: Setting) -> None:
    """Write ``report.html`` beside the metrics, for runs that ended badly too."""
    from colossal_llama.metrics.device import device_name
    from colossal_llama.metrics.report import write_training_report

    env, schedule = setting.env, setting.schedule
    facts = {
        "devices": f"{env.world_size} x {device_name(env.device)}",
        "steps": schedule.total_steps,
        "rows a step": schedule.global_batch,
        "rows": schedule.num_samples,
        "buckets": len(setting.rows.bucket_sizes),
        "documents of a row": "kept apart" if setting.document_mask else "one text",
    }
    path = write_training_report(Path(setting.config.tensorboard_dir), facts, dataclasses.asdict(setting.config))
    env.say(f"report: {path}")
