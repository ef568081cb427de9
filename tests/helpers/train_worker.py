"""train.py for tests: the same main, with hooks that environment variables switch on.

GEMINI_SMALL_CHUNKS=1  chunks small enough that Gemini really shards a tiny model
DUMP_LOGITS=FILE       after training, write the model's logits on fixed ids (whole vocabulary) to FILE
DUMP_STATE_BYTES=FILE  after training, write rank 0's bytes of weights, gradients and optimizer states to FILE (JSON)
SLOW_RANK=1            that rank starts writing its part of a checkpoint two seconds late
UNDO=name,...          take single remedies out, to show what goes wrong without them
SIGNAL_AT=S:R:NAME     rank R sends itself the signal NAME in optimizer step S (counted from 1 in this process)
KILL_AT=EVENT:N:R      rank R kills itself (SIGKILL) when EVENT happens for the N-th time; see kill_at
KILL_AT_CHANGE=N:DIR   kill this process before its N-th change to files below DIR, or before its first optimizer step
                       with exit code NO_MORE_CHANGES if it makes fewer; see tests/helpers/kill_points.py
FILE_LIMIT=R:BYTES     rank R can write no file longer than this (RLIMIT_FSIZE)
SLOW_WRITER=SECONDS    files of a checkpoint are written that much later than they could be
NAN_LOSS=N,...         the loss of these steps is NaN, on the last rank that computes one
NAN_GRADIENT=N,...     the loss of these steps is what it is, but its gradient is NaN
WRITE_GRADIENTS=N      optimizer step N puts every gradient in the place of its parameter; no step before changes any
RESAVE=FOLDER          a resumed run first saves what it has loaded below FOLDER
LOG_ROWS=FOLDER        each rank writes the numbers of the rows it reads to a file there, one a line
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from colossal_llama.commands import train as command
from colossal_llama.distributed import upstream_fixes
from colossal_llama.model.lora import bare_model
from colossal_llama.plugins import gemini
from tests.helpers.kill_points import KillPoint

NO_MORE_CHANGES = 99


def fixed_ids(vocab_size: int) -> Any:
    import torch

    return torch.arange(2 * 32).view(2, 32) * 7 % vocab_size


def dump_logits(step: Any, path: str) -> None:
    """Write float32 logits of the boosted model on :func:`fixed_ids`; tensor-parallel shards are joined."""
    import torch
    import torch.distributed as dist

    boosted = step._boosted
    boosted.model.eval()
    dtypes = {buffer.dtype for name, buffer in bare_model(boosted.model).named_buffers() if name.endswith("inv_freq")}
    assert dtypes == {torch.float32}, f"RoPE frequencies are {dtypes}"
    with torch.no_grad():
        ids = fixed_ids(bare_model(boosted.model).config.vocab_size)
        logits = boosted.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)["logits"]
    if boosted.layout.tp_group is not None:
        shards = [torch.empty_like(logits) for _ in range(dist.get_world_size(boosted.layout.tp_group))]
        dist.all_gather(shards, logits.contiguous(), group=boosted.layout.tp_group)
        logits = torch.cat(shards, dim=-1)
    if dist.get_rank() == 0:
        torch.save(logits.float(), path)


def dump_state_bytes(step: Any, counted: dict[str, int], path: str) -> None:
    """Write the bytes of what a rank keeps from step to step; ``counted`` holds the gradients at the last step."""
    import json

    import torch
    import torch.distributed as dist

    optimizer = step._boosted.optimizer
    weights = {parameter.untyped_storage().data_ptr() for parameter in bare_model(step._boosted.model).parameters()}
    held = [parameter for group in optimizer.optim.param_groups for parameter in group["params"]]
    masters = [parameter for parameter in held if parameter.untyped_storage().data_ptr() not in weights]
    moments = [
        value
        for state in optimizer.optim.state.values()
        for value in state.values()
        if torch.is_tensor(value) and value.ndim
    ]
    sizes = {
        "weights": sum(parameter.nbytes for parameter in bare_model(step._boosted.model).parameters()),
        "gradients": counted["gradients"],
        "optimizer": sum(tensor.nbytes for tensor in [*masters, *moments]),
    }
    if dist.get_rank() == 0:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(sizes, file)


def count_gradients(step: Any) -> dict[str, int]:
    """Have the bytes of the gradients counted just before each optimizer step; ZeRO's are in a store of their own."""
    optimizer, counted = step._boosted.optimizer, {"gradients": 0}
    update = optimizer.step

    def counting_step(*args: Any, **kwargs: Any) -> Any:
        own = [
            parameter.grad for parameter in bare_model(step._boosted.model).parameters() if parameter.grad is not None
        ]
        stores = optimizer.pid_to_grad_store.values() if hasattr(optimizer, "pid_to_grad_store") else ()
        stored = [
            grad
            for store in {id(store): store for store in stores}.values()
            for group in store._grads_of_params.values()
            for grads in group.values()
            for grad in grads
            if grad is not None
        ]
        counted["gradients"] = sum(grad.nbytes for grad in [*own, *stored])
        return update(*args, **kwargs)

    optimizer.step = counting_step
    return counted


def install_hooks() -> None:
    if os.environ.get("GEMINI_SMALL_CHUNKS"):
        gemini.CHUNK_SEARCH.update(min_chunk_size_m=0.01, search_range_m=1)
    if rank := os.environ.get("SLOW_RANK"):
        delay_saving(rank)
    if when := os.environ.get("SIGNAL_AT"):
        signal_at(*when.split(":"))
    if when := os.environ.get("KILL_AT"):
        kill_at(*when.split(":"))
    if when := os.environ.get("KILL_AT_CHANGE"):
        kill_at_change(*when.split(":"))
    if limit := os.environ.get("FILE_LIMIT"):
        limit_files(*limit.split(":"))
    if seconds := os.environ.get("SLOW_WRITER"):
        delay_writing(float(seconds))
    for name in ("NAN_LOSS", "NAN_GRADIENT"):
        if steps := os.environ.get(name):
            spoil_losses({int(step) for step in steps.split(",")}, in_value=name == "NAN_LOSS")
    if step := os.environ.get("WRITE_GRADIENTS"):
        write_gradients(int(step))
    if folder := os.environ.get("RESAVE"):
        resave(Path(folder))
    if folder := os.environ.get("LOG_ROWS"):
        log_rows(Path(folder))
    for name in filter(None, os.environ.get("UNDO", "").split(",")):
        undo(name)
    if path := os.environ.get("DUMP_LOGITS"):
        fit = command.fit

        def fit_and_dump(setting: Any, step: Any, *rest: Any) -> None:
            fit(setting, step, *rest)
            dump_logits(step, path)

        command.fit = fit_and_dump
    if states_path := os.environ.get("DUMP_STATE_BYTES"):
        fit_before = command.fit

        def fit_and_count(setting: Any, step: Any, *rest: Any) -> None:
            counted = count_gradients(step)
            fit_before(setting, step, *rest)
            dump_state_bytes(step, counted, states_path)

        command.fit = fit_and_count


def delay_saving(rank: str) -> None:
    """Have one rank write its masters late, after the collective by which the ranks agree on who writes what."""
    from colossal_llama.checkpoint import masters

    write = masters.write_pieces

    def write_late(*args: Any) -> None:
        if os.environ["RANK"] == rank:
            time.sleep(2)
        write(*args)

    masters.write_pieces = write_late


def before_call(owner: Any, name: str, number: int, rank: str, action: Callable[..., None]) -> None:
    """Have ``action`` called, on one rank, before the ``number``-th call of ``owner.name`` and with its arguments."""
    original = getattr(owner, name)
    calls = 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and os.environ["RANK"] == rank:
            action(*args)
        return original(*args, **options)

    setattr(owner, name, counted)


def signal_at(step: str, rank: str, name: str) -> None:
    from colossal_llama.plugins import steps

    for kind in (steps.DataParallelStep, steps.PipelineStep):
        before_call(kind, "run", int(step), rank, lambda *args: os.kill(os.getpid(), getattr(signal, name)))


def kill_at(event: str, number: str, rank: str) -> None:
    """Events: ``step`` begins; ``torch`` or ``safetensors`` file is half written; ``flush`` of a file; ``manifest`` is
    to be written; ``publish`` renames a folder; ``retire`` deletes an old checkpoint.
    """
    from colossal_llama.checkpoint import file_writer, manager
    from colossal_llama.plugins import steps

    places = {
        "step": (steps.DataParallelStep, "run"),
        "torch": (file_writer, "write_torch"),
        "safetensors": (file_writer, "write_safetensors"),
        "flush": (file_writer, "flush_file"),
        "manifest": (manager, "write_manifest"),
        "publish": (manager, "publish_directory"),
        "retire": (manager, "remove_directory"),
    }

    def kill(*args: Any) -> None:
        if event in ("torch", "safetensors"):
            args[1].write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    before_call(*places[event], int(number), rank, kill)


def kill_at_change(number: str, folder: str) -> None:
    from colossal_llama.plugins import steps

    for kind in (steps.DataParallelStep, steps.PipelineStep):
        before_call(kind, "run", 1, os.environ["RANK"], lambda *args: os._exit(NO_MORE_CHANGES))
    KillPoint(int(number), Path(folder)).install()


def limit_files(rank: str, size: str) -> None:
    if os.environ["RANK"] == rank:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), resource.RLIM_INFINITY))


def delay_writing(seconds: float) -> None:
    from colossal_llama.checkpoint.file_writer import FileWriter

    finish = FileWriter.finish

    def finish_late(self: Any) -> Any:
        time.sleep(seconds)
        return finish(self)

    FileWriter.finish = finish_late


def spoil_losses(spoilt: set[int], in_value: bool) -> None:
    """Make losses of these steps NaN, or only their gradients, on one rank of those that see other data."""
    import torch

    from colossal_llama.plugins import steps

    class NanGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, loss: Any) -> Any:
            return loss.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            return gradient * float("nan")

    current = [0]
    token_loss_sum = steps.token_loss_sum

    def spoilt_sum(logits: Any, targets: Any, layout: Any) -> Any:
        loss = token_loss_sum(logits, targets, layout)
        if current[0] not in spoilt or layout.data_rank != layout.data_size - 1:
            return loss
        return loss * float("nan") if in_value else NanGradient.apply(loss)

    steps.token_loss_sum = spoilt_sum
    for kind in (steps.DataParallelStep, steps.PipelineStep):

        def run(self: Any, micro_batches: Any, original: Any = kind.run) -> Any:
            current[0] += 1
            return original(self, micro_batches)

        kind.run = run


def write_gradients(at_step: int) -> None:
    """Let the optimizer write gradients instead of using them.

    The plugin then does with them what it does with updated weights: an export holds the gradients as whole tensors,
    from wherever the plugin had put their parts. (Their buckets and chunks are the plugins' own affair, and are free
    again when a step ends.) Gemini takes no optimizer of another class than the library's, so that class gets the step.
    """
    build = command.build_optimizer
    steps = 0

    def step(self: Any, closure: Any = None, div_scale: float = -1) -> None:
        nonlocal steps
        steps += 1
        if steps < at_step:
            return
        for group in self.param_groups:
            for param in group["params"]:
                gradient = param.data.new_zeros(()) if param.grad is None else param.grad.float()
                param.data.copy_(gradient / div_scale if div_scale > 0 else gradient)

    def build_writer(*args: Any) -> Any:
        optimizer = build(*args)
        type(optimizer).step = step
        return optimizer

    command.build_optimizer = build_writer


def weigh_by_means() -> None:
    """The usual mistake: the mean over each rank's and micro-batch's own targets, and the mean of these means."""
    import torch

    from colossal_llama.plugins import steps
    from colossal_llama.plugins.loss import local_targets

    loss_sum, run_step, run_pipeline = steps.token_loss_sum, steps.DataParallelStep.run, steps.PipelineStep.run
    passes = 1

    def loss_mean(logits: Any, targets: Any, layout: Any) -> Any:
        count = (local_targets(targets, layout) != steps.IGNORE_INDEX).sum()
        return loss_sum(logits, targets, layout) / count.clamp(min=1)

    def counting(run: Any, passes_of: Any) -> Any:
        def run_and_count(self: Any, micro_batches: Any) -> Any:
            nonlocal passes
            passes = passes_of(self, micro_batches)
            return run(self, micro_batches)

        return run_and_count

    steps.token_loss_sum = loss_mean
    steps._loss_weight = lambda target_tokens, layout: torch.tensor(1 / passes)
    steps.DataParallelStep.run = counting(run_step, lambda self, micro_batches: len(micro_batches))
    steps.PipelineStep.run = counting(run_pipeline, lambda self, micro_batches: self._num_micro_batches)


def resave(folder: Path) -> None:
    """Have a resumed run's checkpoint manager save at once, below ``folder``."""
    from colossal_llama.checkpoint.manager import CheckpointManager

    load = CheckpointManager.load

    def load_and_save(self: Any, source: Path) -> Any:
        state = load(self, source)
        save_dir, self._save_dir = self._save_dir, folder
        self.save(state)
        self._save_dir = save_dir
        return state

    CheckpointManager.load = load_and_save


def log_rows(folder: Path) -> None:
    from colossal_llama.data.dataset import PackedDataset
    from colossal_llama.data.loader import StepLoader

    read = PackedDataset.__getitem__
    epoch = StepLoader.epoch

    def start(self: Any, *args: Any) -> Any:
        file = (folder / f"rank-{os.environ['RANK']}.txt").open("a", buffering=1)

        def read_and_log(rows: Any, index: int) -> Any:
            file.write(f"{index}\n")
            return read(rows, index)

        PackedDataset.__getitem__ = read_and_log  # only now: what is read before is not trained on
        yield from epoch(self, *args)
        PackedDataset.__getitem__ = read

    StepLoader.epoch = start


def undo(name: str) -> None:
    """Disable one remedy by its name."""
    if name == "rope":
        from colossal_llama.model import rope

        rope.restore_rope_precision = lambda model: 0
    elif name == "masters":
        from colossal_llama.checkpoint import manager

        manager.load_masters = lambda *args: None
    elif name == "barrier":
        from colossal_llama.checkpoint import manager

        manager.run_together = lambda action, group=None: [action()]
    elif name == "came":
        import dataclasses

        from colossalai.nn.optimizer import CAME

        from colossal_llama.optim import OPTIMIZERS

        OPTIMIZERS._entries["came"] = dataclasses.replace(
            OPTIMIZERS.get("came"),
            make=lambda groups: CAME(groups, lr=groups[0]["lr"]),
            works_on=OPTIMIZERS.get("hybrid_adam").works_on,
        )
    elif name == "eager":
        from colossal_llama.model import loader

        load = loader.load_model
        loader.load_model = lambda folder, flag, precision, attention: load(folder, flag, precision, "sdpa")
    elif name == "policies":
        from colossal_llama.plugins import models

        models._check_policy = lambda *args: None
        models._refuse_architecture = lambda *args: None
    elif name == "weighting":
        weigh_by_means()
    elif hasattr(upstream_fixes, name):
        setattr(upstream_fixes, name, lambda: None)
    else:
        raise ValueError(f"no remedy called {name}")


if __name__ == "__main__":
    install_hooks()
    sys.exit(command.main())
