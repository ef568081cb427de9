"""Checkpoints: complete or absent, and enough to go on exactly where the run stood.

Layout of ``<save_dir>/epoch-E_step-S/``, upstream's with additions:

- ``modeling/``: weights in safetensors shards, configuration, tokenizer; opens with plain transformers
- ``optimizer/``: the optimizer's states, in pieces or as each rank has them
- ``lr_scheduler``: the schedule's state
- ``running_states.json``: :class:`state.TrainState`, the layout of the ranks and the data it belongs to
- ``masters/``: fp32 master weights, in pieces; ``rng/``: generator states per rank; ``loss_scale.pt`` (fp16)
- ``manifest.json``: size and checksum of all these files (see :mod:`checkpoint.manifest`)
"""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colossal_llama.atomic import flush_directory, flush_tree, publish_directory, remove_directory
from colossal_llama.checkpoint.folders import (
    RUNNING_STATES,
    Retention,
    checkpoint_name,
    existing_checkpoints,
    remove_empty_folders,
)
from colossal_llama.checkpoint.manifest import write_manifest
from colossal_llama.checkpoint.masters import MASTERS, MODELING, load_masters, save_masters
from colossal_llama.checkpoint.optimizer_state import OptimizerStore
from colossal_llama.checkpoint.rng import load_rng, reseed_rng, save_rng
from colossal_llama.checkpoint.safe_load import load_safely
from colossal_llama.constants import ADAPTER_CONFIG_FILE, CONFIG_FILE, MANIFEST_FILE
from colossal_llama.distributed.agreement import WriteFailedError, run_together
from colossal_llama.distributed.loss_scale import loss_scaler, restore_scaler, scaler_state
from colossal_llama.errors import UserError
from colossal_llama.state import TrainState

if TYPE_CHECKING:
    from colossal_llama.checkpoint.file_writer import FileWriter, HostSnapshots

OPTIMIZER = "optimizer"
LR_SCHEDULER = "lr_scheduler"
RNG = "rng"
LOSS_SCALE = "loss_scale.pt"
REHEARSAL = ".rehearsal.tmp"
PIPELINE_INDICES = "tmp_index_files"
"""Folder that Colossal-AI makes beside the files of a pipeline's stages, and removes."""

BACKGROUND_TIMEOUT = datetime.timedelta(days=1)
"""How long ranks whose files are written wait for those of the others, in the background."""


@dataclass(frozen=True)
class RunIdentity:
    """What a run shares with the checkpoint it resumes.

    Attributes:
        layout: plugin, precision, number of processes and parallel sizes. Another is fine; see
            ``checkpoint.piece_files``.
        batch: rows of an optimizer step; another number is fine, because the data order does not depend on it.
        data: rows, epochs and seed, in which the consumed samples are counted; must be the same.
        trained: what is trained (frozen parts, LoRA rank) and how; must be the same.
        defaults: values of ``data`` and ``trained`` for checkpoints of older versions, which lack them.
    """

    layout: dict[str, Any]
    batch: dict[str, Any]
    data: dict[str, Any]
    trained: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)

    def content(self) -> dict[str, dict[str, Any]]:
        """What a checkpoint holds of it."""
        return {"layout": self.layout, "batch": self.batch, "data": self.data, "trained": self.trained}

    def check(self, stored: dict[str, Any], source: Path) -> None:
        """Refuse to resume another run.

        Raises:
            UserError: names every value that differs.
        """
        differences = self._differences(stored, "data") + self._differences(stored, "trained")
        if differences:
            raise UserError(
                f"--load_checkpoint {source}: cannot resume, {'; '.join(differences)}. Use the same settings, or start "
                f"a new run from its weights with --load_checkpoint {source / MODELING}"
            )

    def layout_changes(self, stored: dict[str, Any]) -> list[str]:
        """How the layout of a checkpoint's ranks differs from this run's; empty where it is the same."""
        return self._differences(stored, "layout")

    def batch_changes(self, stored: dict[str, Any]) -> list[str]:
        """How the batch of a checkpoint's steps differs from this run's; empty where it is the same."""
        return self._differences(stored, "batch")

    def _differences(self, stored: dict[str, Any], group: str) -> list[str]:
        # Older versions had the batch among the data.
        found = self.defaults | stored.get("data", {}) | stored.get(group, {})
        return [
            f"{key} was {found.get(key)}, now {value}"
            for key, value in self.content()[group].items()
            if found.get(key) != value
        ]


@dataclass(frozen=True)
class ResumePoint:
    """What ``--load_checkpoint`` names.

    Attributes:
        folder: the checkpoint, or None when only weights are taken.
        weights: folder of the model's weights.
    """

    folder: Path | None
    weights: Path


def locate_checkpoint(path: Path) -> ResumePoint:
    """Tell a whole checkpoint from a folder of weights.

    Raises:
        UserError: it is neither.
    """
    if not path.is_dir():
        raise UserError(f"--load_checkpoint {path}: no such folder")
    if (path / RUNNING_STATES).is_file() or (path / MANIFEST_FILE).is_file():
        return ResumePoint(folder=path, weights=path / MODELING)
    if _holds_weights(path):
        return ResumePoint(folder=None, weights=path)
    raise UserError(
        f"--load_checkpoint {path}: neither a checkpoint (it has no {RUNNING_STATES}) nor a modeling folder (it has no "
        f"{CONFIG_FILE})"
    )


def locate_weights(path: Path, flag: str) -> Path:
    """``path``, which ``flag`` names and which must be a folder of weights.

    Raises:
        UserError: it is not.
    """
    if not path.is_dir():
        raise UserError(f"{flag} {path}: no such folder")
    if not _holds_weights(path):
        raise UserError(f"{flag} {path}: expected a modeling folder, but it has no {CONFIG_FILE}")
    return path


def _holds_weights(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file() or (folder / ADAPTER_CONFIG_FILE).is_file()


def read_running_states(folder: Path) -> dict[str, Any]:
    """The content of a checkpoint's ``running_states.json``.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / RUNNING_STATES
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        TrainState.from_mapping(content)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}); resume from an earlier checkpoint") from error
    return content


class CheckpointManager:
    """Saves and restores everything a run consists of.

    Every method is collective: all ranks call it. A checkpoint is written under a temporary name, flushed to the disk
    and renamed when all ranks have finished, so a killed save leaves no checkpoint rather than half of one. A write
    that fails on one rank is the same :class:`UserError` on all, and leaves nothing.

    Args:
        save_dir: folder of the checkpoints, on a file system that all ranks share.
        booster, model, optimizer, lr_scheduler: as boosted.
        identity: stored with each checkpoint and compared on resume.
        rank, world_size: of this process.
        finish_export: called on rank 0 with each modeling folder, to put tokenizer and such beside the weights.
        generators: further random generators to save, by name.
        store: writes and reads the optimizer's state.
        lora: save adapters instead of the whole weights.
        retention: which older checkpoints stay after a save; None: all.
        resumed: the checkpoint that the run goes on from; it stays too.
        background: :meth:`save` only copies to host memory, and a thread writes. Wait for it with :meth:`wait`.
    """

    def __init__(
        self,
        save_dir: Path,
        booster: Any,
        model: Any,
        optimizer: Any,
        lr_scheduler: Any,
        identity: RunIdentity,
        rank: int,
        world_size: int,
        finish_export: Callable[[Path], None],
        generators: dict[str, Any],
        store: OptimizerStore,
        lora: bool = False,
        retention: Retention | None = None,
        resumed: Path | None = None,
        background: bool = False,
    ) -> None:
        self._save_dir = save_dir
        self._booster = booster
        self._model = model
        self._optimizer = optimizer
        self._lr_scheduler = lr_scheduler
        self._identity = identity
        self._rank = rank
        self._world_size = world_size
        self._finish_export = finish_export
        self._generators = generators
        self._store = store
        self._lora = lora
        self._retention = retention or Retention()
        self._resumed = resumed
        self._saved: tuple[int, int] | None = None
        self._background: Future[None] | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._snapshots: HostSnapshots | None = None
        self._group: Any = None
        if background:
            self._prepare_background()

    def _prepare_background(self) -> None:
        import torch.distributed as dist

        from colossal_llama.checkpoint.file_writer import HostSnapshots

        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._snapshots = HostSnapshots()
        # Collectives of a thread need a group of their own, and what they exchange is in host memory.
        self._group = dist.new_group(backend="gloo", timeout=BACKGROUND_TIMEOUT)

    def rehearse(self, model_config: Any) -> None:
        """Write everything that a checkpoint holds apart from whole weights, and delete it again.

        What would fail at the first save fails now: a configuration or tokenizer that transformers refuses to write, a
        folder that nothing can be written to, adapters that cannot be collected. Call it before the first update, when
        there are no states of the optimizer to write.

        Args:
            model_config: of the transformers model; stands for its weights, which adapters do not need.

        Raises:
            UserError: something of it could not be written.
        """

        def write_outline(folder: Path, writer: FileWriter) -> None:
            if self._lora:
                self._write_model(folder / MODELING)
            elif self._rank == 0:
                model_config.save_pretrained(str(folder / MODELING))

        self._write_and_drop(
            [
                write_outline,
                lambda folder, writer: self._complete_model(folder / MODELING),
                self._write_optimizer,
                self._write_generators,
            ]
        )

    def save(self, state: TrainState) -> Path:
        """Write the checkpoint ``epoch-E_step-S``; returns its folder, which in the background is still to come.

        Raises:
            UserError: it, or the one before in the background, could not be written.
        """
        target = self._save_dir / checkpoint_name(state.epoch, state.step)
        content = asdict(state) | self._identity.content() | {"sample_start_index": state.consumed_samples}
        content |= {"manifest": MANIFEST_FILE}  # where one is expected, its loss is noticed

        def write_states(folder: Path, writer: FileWriter) -> None:
            if self._rank == 0:
                (folder / RUNNING_STATES).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

        self._publish(
            target,
            [
                lambda folder, writer: self._write_model(folder / MODELING),
                lambda folder, writer: self._complete_model(folder / MODELING),
                self._write_optimizer,
                self._write_rank_states,
                write_states,
            ],
            self._snapshots,
        )
        self._saved = (state.epoch, state.step)
        return target

    def save_once(self, state: TrainState) -> Path:
        """:meth:`save`, unless the last save was of this state; returns when the checkpoint is whole."""
        if self._saved != (state.epoch, state.step):
            self.save(state)
        self.wait()
        return self._save_dir / checkpoint_name(state.epoch, state.step)

    def export(self) -> Path:
        """Write the final weights to ``<save_dir>/modeling``, ready for transformers; returns that folder."""
        target = self._save_dir / MODELING
        self._publish(
            target,
            [lambda folder, writer: self._write_model(folder), lambda folder, writer: self._complete_model(folder)],
        )
        return target

    def wait(self) -> None:
        """Return when the checkpoint that is written in the background is whole.

        Raises:
            UserError: it could not be written.
        """
        background, self._background = self._background, None
        if background is not None:
            background.result()

    @property
    def has_failed(self) -> bool:
        """Whether a save in the background has failed, which :meth:`wait` raises. Not collective."""
        background = self._background
        return background is not None and background.done() and background.exception() is not None

    def close(self) -> None:
        """Let a save in the background come to its end; for runs that end with another error. Not collective."""
        if self._executor is not None:
            self._executor.shutdown()

    def load(self, folder: Path) -> TrainState:
        """Restore optimizer, masters, loss scale and generators; the weights came with the model.

        On the layout that wrote the checkpoint the run goes on to the bit. On another one, states and masters are cut
        anew for its ranks, and the generators, which are those of other ranks, are seeded anew by seed and step.
        The learning-rate schedule follows from the samples consumed: see :meth:`schedule.TrainSchedule.position`.

        Raises:
            UserError: the checkpoint belongs to another run, a file of it is missing, or it cannot change its layout.
        """
        stored = read_running_states(folder)
        self._identity.check(stored, folder)
        state = TrainState.from_mapping(stored)
        same_layout = not self._identity.layout_changes(stored)
        if not (folder / OPTIMIZER).is_dir():
            raise UserError(f"{folder / OPTIMIZER}: missing; resume from another checkpoint")
        run_together(partial(self._load_states, folder, same_layout))
        if not same_layout:
            reseed_rng(self._identity.data["seed"], state.global_step, self._generators)
        return state

    def _load_states(self, folder: Path, same_layout: bool) -> None:
        self._store.load(folder / OPTIMIZER, same_layout)
        self._lr_scheduler.load_state_dict(load_safely(folder / LR_SCHEDULER))  # Colossal-AI would run what it holds
        load_masters(self._model, self._optimizer, folder, same_layout)
        self._load_loss_scale(folder / LOSS_SCALE, same_layout)
        if same_layout and not load_rng(folder / RNG, self._rank, self._generators):
            raise UserError(f"{folder / RNG}: no generator state of rank {self._rank}; resume from another checkpoint")

    def _publish(
        self, target: Path, phases: Sequence[Callable[[Path, FileWriter], None]], snapshots: HostSnapshots | None = None
    ) -> None:
        """Have ``phases`` fill a folder, one after the other, and give it the name ``target``.

        All ranks wait for each other after each phase, and stop there together if one has failed: Colossal-AI returns
        before other ranks have written, and a rank that left a phase early would be missing in the gathers of the next.

        Args:
            snapshots: only copy the tensors into these; a thread does the rest.
        """
        from colossal_llama.checkpoint.file_writer import FileWriter

        self.wait()
        scratch = target.with_name(f".{target.name}.tmp")
        writer = FileWriter(scratch, snapshots)
        with self._explaining(target.name, scratch):
            self._run_phases(phases, scratch, writer)
        if self._executor is None or snapshots is None:
            self._finish(target, scratch, writer)
        else:
            self._background = self._executor.submit(self._finish, target, scratch, writer, self._group)

    def _write_and_drop(self, phases: Sequence[Callable[[Path, FileWriter], None]]) -> None:
        """Have ``phases`` fill a folder, and delete it.

        Raises:
            UserError: a phase failed to write, or transformers refused to.
        """
        from colossal_llama.checkpoint.file_writer import FileWriter

        scratch = self._save_dir / REHEARSAL
        made = [folder for folder in (self._save_dir, *self._save_dir.parents) if not folder.exists()]
        writer = FileWriter(scratch)
        try:
            with self._explaining("a checkpoint", scratch):
                self._run_phases(phases, scratch, writer)
                run_together(writer.finish)
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"--save_dir {self._save_dir}: the model could not be saved there ({reason})") from error
        finally:
            if self._rank == 0:
                shutil.rmtree(scratch, ignore_errors=True)
                for folder in made:
                    with suppress(OSError):  # someone else has put something there
                        folder.rmdir()

    def _run_phases(
        self, phases: Sequence[Callable[[Path, FileWriter], None]], scratch: Path, writer: FileWriter
    ) -> None:
        def run_phase(phase: Callable[[Path, FileWriter], None]) -> None:
            with writer.taking_over():
                phase(scratch, writer)
            writer.check()

        run_together(partial(self._make_folders, scratch))
        for phase in phases:
            run_together(partial(run_phase, phase))

    def _make_folders(self, scratch: Path) -> None:
        """Make all folders that anyone will want, so that no rank can fail to while others gather."""
        if self._rank != 0:
            return
        shutil.rmtree(scratch, ignore_errors=True)
        for folder in (scratch, *(scratch / name for name in (MODELING, OPTIMIZER, MASTERS, RNG))):
            (folder / PIPELINE_INDICES).mkdir(parents=True)

    def _finish(self, target: Path, scratch: Path, writer: FileWriter, group: Any = None) -> None:
        """Write what waits, describe it, and publish the folder; in a thread with a ``group`` of its own."""

        def publish() -> None:
            if self._rank == 0:
                remove_empty_folders(scratch)
                if target.name != MODELING:
                    write_manifest(scratch, {name: entry for part in records for name, entry in part.items()})
                flush_tree(scratch)
                publish_directory(scratch, target)
                flush_directory(target.parent)

        with self._explaining(target.name, scratch):
            records = run_together(writer.finish, group)
            run_together(publish, group)
        if self._rank == 0 and target.name != MODELING:
            self._retire_older(target)

    def _retire_older(self, newest: Path) -> None:
        for folder in self._retention.expendable(newest):
            if folder != self._resumed:
                try:
                    remove_directory(folder)
                except OSError as error:  # in use, or not ours: no reason to stop a training
                    print(f"--keep_last: cannot delete {folder}: {error.strerror}", flush=True)

    @contextmanager
    def _explaining(self, name: str, scratch: Path) -> Iterator[None]:
        """Turn a failed write into one line, and leave nothing of it."""
        try:
            yield
        except Exception as error:
            if self._rank == 0:
                shutil.rmtree(scratch, ignore_errors=True)
            if not isinstance(error, WriteFailedError):
                raise
            complete = existing_checkpoints(self._save_dir)
            raise UserError(
                f"--save_dir {self._save_dir}: cannot write {name}: {error}; "
                + (f"the last complete checkpoint is {complete[-1].name}" if complete else "no checkpoint is complete")
                + ". Make room, and go on with --load_checkpoint auto"
            ) from error

    def _write_model(self, folder: Path) -> None:
        if self._lora:
            self._booster.save_lora_as_pretrained(self._model, str(folder), use_safetensors=True)
        else:
            self._booster.save_model(self._model, str(folder), shard=True, use_safetensors=True)

    def _complete_model(self, folder: Path) -> None:
        if self._rank == 0:
            self._finish_export(folder)

    def _write_optimizer(self, folder: Path, writer: FileWriter) -> None:
        self._store.save(folder / OPTIMIZER, writer)
        self._booster.save_lr_scheduler(self._lr_scheduler, str(folder / LR_SCHEDULER))

    def _write_rank_states(self, folder: Path, writer: FileWriter) -> None:
        save_masters(self._model, self._optimizer, folder / MASTERS, self._rank, self._world_size, writer)
        self._write_generators(folder, writer)

    def _write_generators(self, folder: Path, writer: FileWriter) -> None:
        save_rng(folder / RNG, self._rank, self._generators)
        self._save_loss_scale(folder / LOSS_SCALE)

    def _save_loss_scale(self, path: Path) -> None:
        import torch

        scaler = loss_scaler(self._optimizer)
        if scaler is not None and self._rank == 0:
            torch.save(scaler_state(scaler), path)

    def _load_loss_scale(self, path: Path, same_layout: bool) -> None:
        scaler = loss_scaler(self._optimizer)
        if scaler is None or not (same_layout or path.is_file()):  # another precision starts with a new scale
            return
        stored = load_safely(path, map_location=_scaler_device(scaler))
        if not same_layout:
            _carry_scale(scaler, stored)
            return
        restore_scaler(scaler, stored)


def _carry_scale(scaler: Any, stored: dict[str, Any]) -> None:
    """Go on with another scaler's scale; the step counters, which the kinds of scalers do not share, start anew.

    On a machine without a GPU torch's scaler (ddp) is switched off: it has no scale, and stores none.
    """
    if "_scale" not in stored or not hasattr(scaler, "_scale"):
        return
    if scaler._scale is None:  # torch's, which makes its tensors when first used
        scaler._init_scale = float(stored["_scale"])
    else:
        scaler._scale.fill_(float(stored["_scale"]))


def _scaler_device(scaler: Any) -> Any:
    scale = getattr(scaler, "_scale", None)
    return scale.device if scale is not None else "cpu"
