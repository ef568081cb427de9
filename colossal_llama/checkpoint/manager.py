"""Checkpoints: complete or absent, and enough to go on exactly where the run stood.

Layout of ``<save_dir>/epoch-E_step-S/``, upstream's with additions:

- ``modeling/``: weights in safetensors shards, configuration, tokenizer; opens with plain transformers
- ``optimizer/``: the optimizer's state: the Booster's shards, or a file of each rank
- ``lr_scheduler``: the schedule's state
- ``running_states.json``: :class:`state.TrainState`, the layout of the ranks and the data it belongs to
- ``masters/``: fp32 master weights, in pieces; ``rng/``: generator states per rank; ``loss_scale.pt`` (fp16)
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from colossal_llama.atomic import publish_directory
from colossal_llama.checkpoint.masters import MASTERS, MODELING, load_masters, save_masters
from colossal_llama.checkpoint.optimizer_state import OptimizerStore
from colossal_llama.checkpoint.resharding import check_reshardable, keeping_settings, restore_step_counts
from colossal_llama.checkpoint.rng import load_rng, reseed_rng, save_rng
from colossal_llama.constants import ADAPTER_CONFIG_FILE, CONFIG_FILE
from colossal_llama.errors import UserError
from colossal_llama.state import TrainState

OPTIMIZER = "optimizer"
LR_SCHEDULER = "lr_scheduler"
RUNNING_STATES = "running_states.json"
RNG = "rng"
LOSS_SCALE = "loss_scale.pt"


@dataclass(frozen=True)
class RunIdentity:
    """What a run shares with the checkpoint it resumes.

    Attributes:
        layout: plugin, precision, number of processes and parallel sizes. Another is fine; see ``checkpoint.masters``
            and ``checkpoint.resharding``.
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
    if (path / RUNNING_STATES).is_file():
        return ResumePoint(folder=path, weights=path / MODELING)
    if (path / CONFIG_FILE).is_file() or (path / ADAPTER_CONFIG_FILE).is_file():
        return ResumePoint(folder=None, weights=path)
    raise UserError(
        f"--load_checkpoint {path}: neither a checkpoint (it has no {RUNNING_STATES}) nor a modeling folder (it has no "
        f"{CONFIG_FILE})"
    )


def read_running_states(folder: Path) -> dict[str, Any]:
    """The content of a checkpoint's ``running_states.json``.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / RUNNING_STATES
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        TrainState.from_mapping(content)
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); resume from an earlier checkpoint") from error
    return content


def existing_checkpoints(save_dir: Path) -> list[Path]:
    """Complete checkpoints in ``save_dir``, oldest first."""

    def progress(folder: Path) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", folder.name)]

    return sorted((path.parent for path in save_dir.glob(f"epoch-*_step-*/{RUNNING_STATES}")), key=progress)


def discard_checkpoints(save_dir: Path) -> None:
    """Delete all complete checkpoints in ``save_dir``."""
    for folder in existing_checkpoints(save_dir):
        shutil.rmtree(folder)


class CheckpointManager:
    """Saves and restores everything a run consists of.

    Every method is collective: all ranks call it. A checkpoint is written under a temporary name and renamed
    when all ranks have finished, so a killed save leaves no checkpoint rather than half of one.

    Args:
        save_dir: folder of the checkpoints, on a file system that all ranks share.
        booster, model, optimizer, lr_scheduler: as boosted.
        identity: stored with each checkpoint and compared on resume.
        rank, world_size: of this process.
        finish_export: called on rank 0 with each modeling folder, to put tokenizer and such beside the weights.
        generators: further random generators to save, by name.
        store: writes and reads the optimizer's state.
        lora: save adapters instead of the whole weights.
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

    def save(self, state: TrainState) -> Path:
        """Write the checkpoint ``epoch-E_step-S``; returns its folder."""
        target = self._save_dir / f"epoch-{state.epoch}_step-{state.step}"

        def write(folder: Path) -> None:
            self._write_model(folder / MODELING)
            self._write_optimizer(folder)
            if self._rank == 0:
                content = asdict(state) | self._identity.content() | {"sample_start_index": state.consumed_samples}
                (folder / RUNNING_STATES).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

        self._publish(target, write)
        return target

    def export(self) -> Path:
        """Write the final weights to ``<save_dir>/modeling``, ready for transformers; returns that folder."""
        target = self._save_dir / MODELING
        self._publish(target, self._write_model)
        return target

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
        if not same_layout:
            check_reshardable(folder / OPTIMIZER, folder)
        with keeping_settings(self._optimizer):
            self._store.load(self._optimizer, folder / OPTIMIZER)
        restore_step_counts(self._optimizer)
        self._booster.load_lr_scheduler(self._lr_scheduler, str(folder / LR_SCHEDULER))
        load_masters(self._model, self._optimizer, folder, same_layout)
        self._load_loss_scale(folder / LOSS_SCALE, same_layout)
        if not same_layout:
            reseed_rng(self._identity.data["seed"], state.global_step, self._generators)
        elif not load_rng(folder / RNG, self._rank, self._generators):
            raise UserError(f"{folder / RNG}: no generator state of rank {self._rank}; resume from another checkpoint")
        _barrier()
        return state

    def _publish(self, target: Path, write: Callable[[Path], None]) -> None:
        scratch = target.with_name(f".{target.name}.tmp")
        if self._rank == 0:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
        _barrier()
        write(scratch)
        _barrier()
        if self._rank == 0:
            publish_directory(scratch, target)
        _barrier()

    def _write_model(self, folder: Path) -> None:
        if self._lora:
            self._booster.save_lora_as_pretrained(self._model, str(folder), use_safetensors=True)
        else:
            self._booster.save_model(self._model, str(folder), shard=True, use_safetensors=True)
        # Colossal-AI returns before other ranks have written; nothing may read or move the files until then.
        _barrier()
        if self._rank == 0:
            self._finish_export(folder)

    def _write_optimizer(self, folder: Path) -> None:
        self._store.save(self._optimizer, folder / OPTIMIZER)
        self._booster.save_lr_scheduler(self._lr_scheduler, str(folder / LR_SCHEDULER))
        save_masters(self._model, self._optimizer, folder / MASTERS, self._rank, self._world_size)
        save_rng(folder / RNG, self._rank, self._generators)
        self._save_loss_scale(folder / LOSS_SCALE)
        _barrier()

    def _save_loss_scale(self, path: Path) -> None:
        import torch

        scaler = _loss_scaler(self._optimizer)
        if scaler is not None and self._rank == 0:
            torch.save(_scaler_state(scaler), path)

    def _load_loss_scale(self, path: Path, same_layout: bool) -> None:
        import torch

        scaler = _loss_scaler(self._optimizer)
        if scaler is None or not (same_layout or path.is_file()):  # another precision starts with a new scale
            return
        stored = torch.load(path, map_location=_scaler_device(scaler), weights_only=True)
        if not same_layout:
            _carry_scale(scaler, stored)
            return
        for name, value in stored.items():
            setattr(scaler, name, value)


def _loss_scaler(optimizer: Any) -> Any:
    """The fp16 gradient scaler inside a boosted optimizer, wherever that plugin keeps it, or None."""
    for holder_name in ("mixed_precision_mixin", "mix_precision_mixin", "mixed_precision"):
        scaler = getattr(getattr(optimizer, holder_name, None), "grad_scaler", None)
        if scaler is not None:
            return scaler
    return getattr(optimizer, "scaler", None)


def _scaler_state(scaler: Any) -> dict[str, Any]:
    """All that changes in a scaler. Colossal-AI's own state_dict leaves the step counters out."""
    return {name: getattr(scaler, name) for name in _SCALER_FIELDS if hasattr(scaler, name)}


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


_SCALER_FIELDS = ("_scale", "_growth_step", "_hysteresis_step", "_growth_tracker")


def _barrier() -> None:
    import torch.distributed as dist

    dist.barrier()
