"""One optimizer step, for plugins that run micro-batches in turn and for those that run a pipeline.

Both minimise the same loss: the sum over all target tokens of the step, on all ranks, divided by their number.
Plugins average gradients over the ranks of ``layout.token_group``; multiplying each rank's sum by the size of
that group turns the average back into a sum. Micro-batches of different length thus weigh what they should.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist

from colossal_llama.constants import IGNORE_INDEX
from colossal_llama.plugins.base import ParallelLayout, PluginOptions, PluginSpec
from colossal_llama.plugins.documents import document_boundaries, document_mask, takes_boundaries
from colossal_llama.plugins.loss import local_targets, token_loss_sum, token_losses
from colossal_llama.plugins.update_guard import APPLIED, UpdateGuard

Batch = dict[str, torch.Tensor]
"""``input_ids`` and ``targets``: int64 ``[batch, sequence]`` each; targets are shifted by one. With
``position_ids``, of the same shape and 0 wherever a document begins, attention stays inside the documents."""

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step reports, equal on every rank.

    Attributes:
        loss: mean negative log-likelihood per target token of the step's global batch, in nats.
        target_tokens: number of target tokens in the global batch.
        grad_norm: gradient norm before clipping, or None where nothing computed it.
        update: whether the weights changed, see :mod:`.update_guard`.
        stop: whether any rank wanted to stop (:attr:`Boosted.wants_to_stop`) when the step ended.
    """

    loss: float
    target_tokens: int
    grad_norm: float | None
    update: str = APPLIED
    stop: bool = False


NOT_FOR_THE_MODEL = ("targets", "groups")
"""What a batch holds for the loss and for its evaluation."""

TokenLossSink = Callable[[torch.Tensor, Batch], None]
"""Takes the losses of one forward pass, fp32 ``[batch, sequence / sp_size]`` in nats, 0 where there is no target, and
the batch on the device, its tensors cut to the same positions."""


class TrainStep(Protocol):
    """Runs one optimizer step on this rank's micro-batches."""

    def run(self, micro_batches: Sequence[Batch]) -> StepResult:
        """Forward, backward and update; the gradients are zero afterwards."""
        ...

    def evaluate(self, steps: Iterable[Sequence[Batch]], sink: TokenLossSink) -> None:
        """Forward only, in evaluation mode, as many micro-batches a time as :meth:`run` takes.

        Args:
            steps: the same number on all ranks; batches may hold further tensors ``[batch, sequence]``.
            sink: called on the ranks that hold logits; ranks of one tensor-parallel group get the same losses.
        """
        ...


@dataclass(frozen=True)
class Boosted:
    """Model and optimizer as the Booster returned them, with what a step needs to know about them.

    ``wants_to_stop`` is asked at the end of each step; what one rank says reaches all of them with the loss.
    """

    booster: Any
    model: Any
    optimizer: Any
    layout: ParallelLayout
    spec: PluginSpec
    options: PluginOptions
    device: str
    skips_not_finite: bool = False
    """Drop the update of a step whose loss or gradient norm is not finite."""
    wants_to_stop: Callable[[], bool] = lambda: False


def build_step(boosted: Boosted) -> TrainStep:
    """The step that fits the layout."""
    if boosted.layout.pp_group is not None:
        return PipelineStep(boosted)
    return DataParallelStep(boosted)


def _count_targets(batches: Sequence[Batch], boosted: Boosted) -> torch.Tensor:
    """Target tokens of this rank's batches, summed over the token group: int64 scalar on the device."""
    layout = boosted.layout
    counts = [(local_targets(batch["targets"], layout) != IGNORE_INDEX).sum() for batch in batches]
    total = torch.stack(counts).sum().to(boosted.device)
    dist.all_reduce(total, group=layout.token_group)
    return total


def _loss_weight(target_tokens: torch.Tensor, layout: ParallelLayout) -> torch.Tensor:
    """Factor that turns a rank's loss sum into its share of the global mean after gradient averaging."""
    return dist.get_world_size(layout.token_group) / target_tokens.clamp(min=1)


def _on_device(batch: Batch, boosted: Boosted) -> Batch:
    return {name: tensor.to(boosted.device, non_blocking=True) for name, tensor in batch.items()}


def _prepare(batch: Batch, boosted: Boosted) -> dict[str, Any]:
    """The batch on the device, with what keeps its documents apart, or else the mask that the attention insists on."""
    moved: dict[str, Any] = _on_device(batch, boosted)
    if "position_ids" in batch and takes_boundaries(boosted.spec, boosted.options):
        boundaries = document_boundaries(batch["position_ids"])
        return moved | {
            name: value.to(boosted.device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for name, value in boundaries.items()
        }
    return moved | _attention_mask(moved, boosted)


def _attention_mask(batch: dict[str, Any], boosted: Boosted) -> dict[str, torch.Tensor]:
    """``attention_mask`` for a batch on the device, or nothing where the attention needs none.

    Rows are padded on the right, so that causal attention alone keeps padding out. Without documents, only the eager
    attention of sequence parallelism wants a mask: transformers 4.51 makes its causal mask one column too wide
    without.
    """
    if "position_ids" in batch:
        dtype = AUTOCAST_DTYPES.get(boosted.options.precision, torch.float32)
        return {"attention_mask": document_mask(batch["position_ids"], dtype)}
    if boosted.options.sp_mode and not boosted.options.flash_attention:
        return {"attention_mask": torch.ones_like(batch["input_ids"])}
    return {}


def _sum_over_ranks(loss: torch.Tensor, boosted: Boosted) -> tuple[float, bool]:
    """A loss summed over token group and pipeline, and whether any rank of the run wants to stop.

    Both travel and are read together: asking costs no synchronisation of its own.
    """
    layout = boosted.layout
    stop = torch.full_like(loss, float(boosted.wants_to_stop()))
    values = torch.stack([loss, stop])
    dist.all_reduce(values, group=layout.token_group)
    if layout.tp_group is not None:  # tensor parallel ranks have the same loss, but signals of their own
        dist.all_reduce(values[1:], group=layout.tp_group)
    if layout.pp_group is not None:
        dist.all_reduce(values, group=layout.pp_group)
    total, votes = values.tolist()
    return total, votes > 0


@contextlib.contextmanager
def _evaluation_mode(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _pass_on(logits: torch.Tensor, batch: Batch, layout: ParallelLayout, sink: TokenLossSink) -> None:
    losses = token_losses(logits, batch["targets"], layout)
    sink(losses, {name: local_targets(tensor, layout) for name, tensor in batch.items()})


class DataParallelStep:
    """Micro-batches one after the other, gradients accumulated (every plugin without a pipeline)."""

    def __init__(self, boosted: Boosted) -> None:
        self._boosted = boosted
        self._autocast_dtype = (
            AUTOCAST_DTYPES.get(boosted.options.precision) if boosted.spec.keeps_fp32_weights else None
        )
        self._guard = UpdateGuard(boosted.optimizer, boosted.skips_not_finite, boosted.device)

    def run(self, micro_batches: Sequence[Batch]) -> StepResult:
        """See :class:`TrainStep`."""
        boosted = self._boosted
        target_tokens = _count_targets(micro_batches, boosted)
        weight = _loss_weight(target_tokens, boosted.layout)
        loss_sum = torch.zeros((), device=boosted.device)
        for index, batch in enumerate(micro_batches):
            inputs = _prepare(batch, boosted)
            with self._sync_context(is_last=index == len(micro_batches) - 1):
                loss = self._forward(inputs, inputs.pop("targets"))
                boosted.booster.backward(loss * weight, boosted.optimizer)
            loss_sum += loss.detach()
        total, stop = _sum_over_ranks(loss_sum, boosted)
        count = int(target_tokens.item())
        loss_value = total / max(count, 1)
        update, grad_norm = self._update(loss_value)
        return StepResult(loss_value, count, grad_norm, update, stop)

    def evaluate(self, steps: Iterable[Sequence[Batch]], sink: TokenLossSink) -> None:
        """See :class:`TrainStep`."""
        boosted = self._boosted
        with _evaluation_mode(boosted.model):
            for batch in (batch for micro_batches in steps for batch in micro_batches):
                text: Batch = {name: batch[name] for name in ("input_ids", "position_ids") if name in batch}
                logits = self._logits(_prepare(text, boosted))
                _pass_on(logits, _on_device(batch, boosted), boosted.layout, sink)

    def _forward(self, inputs: dict[str, Any], targets: torch.Tensor) -> torch.Tensor:
        return token_loss_sum(self._logits(inputs), targets, self._boosted.layout)

    def _logits(self, inputs: dict[str, Any]) -> torch.Tensor:
        boosted = self._boosted
        device_type = boosted.device.split(":")[0]
        dtype = self._autocast_dtype
        with torch.autocast(device_type, dtype=dtype) if dtype else contextlib.nullcontext():
            return boosted.model(**inputs, use_cache=False)["logits"]

    def _sync_context(self, is_last: bool) -> Any:
        boosted = self._boosted
        # Torch's AMP (fp16) hides DDP's no_sync.
        if boosted.spec.can_skip_sync and boosted.options.precision != "fp16" and not is_last:
            return boosted.booster.no_sync(boosted.model, boosted.optimizer)
        return contextlib.nullcontext()

    def _update(self, loss: float) -> tuple[str, float | None]:
        boosted = self._boosted
        outcome = self._guard.step(loss, None if boosted.spec.clips_gradients else self._clip())
        boosted.optimizer.zero_grad()
        return outcome

    def _clip(self) -> float:
        optimizer = self._boosted.optimizer
        if self._boosted.options.precision == "fp16":  # the gradients carry AMP's loss scale
            optimizer.unscale_grad()
        parameters = [param for group in optimizer.param_groups for param in group["params"]]
        limit = self._boosted.options.max_norm or float("inf")
        return float(torch.nn.utils.clip_grad_norm_(parameters, limit))


class PipelineStep:
    """All micro-batches of a step through one pipeline call.

    One call per step, not one per accumulation step: Colossal-AI sums the gradients of shared (tied) weights over
    stages at the end of each call, so that a second call would count the first one's twice.
    """

    def __init__(self, boosted: Boosted) -> None:
        self._boosted = boosted
        self._num_micro_batches = boosted.options.rows_per_step // boosted.options.microbatch_size
        self._length: int | None = None
        # The masks of all rows of a step would fill the memory: each micro-batch gets its own when a stage runs it.
        boosted.model.register_forward_pre_hook(self._prepare_inputs, with_kwargs=True)
        self._guard = UpdateGuard(boosted.optimizer, boosted.skips_not_finite, boosted.device)

    def run(self, micro_batches: Sequence[Batch]) -> StepResult:
        """See :class:`TrainStep`."""
        boosted = self._boosted
        target_tokens = _count_targets(micro_batches, boosted)
        batch = _on_device(_concatenate(micro_batches), boosted)
        self._announce_shapes(batch["input_ids"].shape[1])
        result = boosted.booster.execute_pipeline(
            iter([batch]),
            boosted.model,
            self._criterion(_loss_weight(target_tokens, boosted.layout)),
            boosted.optimizer,
            return_loss=True,
        )
        loss, stop = self._mean_loss(result["loss"])
        update, grad_norm = self._guard.step(loss)
        boosted.optimizer.zero_grad()
        return StepResult(loss, int(target_tokens.item()), grad_norm, update, stop)

    def evaluate(self, steps: Iterable[Sequence[Batch]], sink: TokenLossSink) -> None:
        """See :class:`TrainStep`."""
        boosted = self._boosted

        def criterion(outputs: Any, batch: Batch) -> torch.Tensor:
            _pass_on(outputs["logits"], batch, boosted.layout, sink)
            return torch.zeros((), device=boosted.device)

        with _evaluation_mode(boosted.model):
            for micro_batches in steps:
                batch = _on_device(_concatenate(micro_batches), boosted)
                self._announce_shapes(batch["input_ids"].shape[1])
                boosted.booster.execute_pipeline(iter([batch]), boosted.model, criterion, None, return_loss=False)

    def _announce_shapes(self, length: int) -> None:
        """Let stages tell each other the shapes of what they send again when the rows' length changes.

        Colossal-AI tells them once, and again only when the number of rows changes
        (pipeline/schedule/one_f_one_b.py, load_batch); rows padded to the longest of a step then do not fit.
        """
        if length != self._length:
            schedule = self._boosted.booster.plugin.scheduler
            schedule.send_tensor_metadata = schedule.send_grad_metadata = True
            schedule.tensor_metadata_recv = schedule.grad_metadata_recv = None
        self._length = length

    def _prepare_inputs(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Colossal-AI hands the whole batch to the model; Llama's forward alone puts up with arguments it does not know.
        inputs = {name: value for name, value in kwargs.items() if name not in NOT_FOR_THE_MODEL}
        if "attention_mask" not in inputs:
            inputs |= _attention_mask(inputs, self._boosted)
        return args, inputs

    def _criterion(self, weight: torch.Tensor) -> Callable[[Any, Batch], torch.Tensor]:
        # The schedule divides each micro-batch's loss by their number; the weight already covers the whole step.
        factor = weight * self._num_micro_batches

        def criterion(outputs: Any, batch: Batch) -> torch.Tensor:
            return token_loss_sum(outputs["logits"], batch["targets"], self._boosted.layout) * factor

        return criterion

    def _mean_loss(self, weighted: torch.Tensor | None) -> tuple[float, bool]:
        """The step's loss on every rank; only the last stage has ``weighted``, its ranks' shares of it."""
        share = (
            torch.zeros((), device=self._boosted.device) if weighted is None else weighted.detach().float().reshape(())
        )
        total, stop = _sum_over_ranks(share, self._boosted)
        return total / dist.get_world_size(self._boosted.layout.token_group), stop


def _concatenate(micro_batches: Sequence[Batch]) -> Batch:
    """One batch of all rows; shorter micro-batches are padded on the right to the longest.

    Each token of that padding is a document of its own.
    """
    length = max(batch["input_ids"].shape[1] for batch in micro_batches)

    def padded(batch: Batch, name: str, fill: int) -> torch.Tensor:
        return torch.nn.functional.pad(batch[name], (0, length - batch[name].shape[1]), value=fill)

    return {
        name: torch.cat([padded(batch, name, IGNORE_INDEX if name == "targets" else 0) for batch in micro_batches])
        for name in micro_batches[0]
    }
