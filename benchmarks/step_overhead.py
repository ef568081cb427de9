"""What the training loop itself costs, seen from inside and against a bare loop in the same run.

    python benchmarks/step_overhead.py --pretrained FOLDER [--steps 10] [--max_length 512]

One process, plugin ddp, random rows, and everything else as train.py has it: its loader, collator, step, schedule,
metrics and all its writers. From inside: the part of an optimizer step that is not forward, backward or optimizer.
Forward includes the loss; optimizer includes clipping and zeroing the gradients.

The bare loop has the same booster, model, optimizer and rows: batches that lie ready, forward, loss, backward,
clipping, update, schedule, and the loss read at the end of each step. Rounds of both alternate, so that what else the
machine does hits both; processor time, which other programs hardly touch, is compared too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PHASES = ("forward", "backward", "optimizer")


@dataclass
class Clock:
    """Seconds of each phase and of each whole step.

    A step lasts from the end of the one before to its own end, so that loading, schedule and metrics are in it.
    """

    synchronize: Callable[[], None]
    steps: list[dict[str, float]] = field(default_factory=list)
    current: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    last: float = 0.0

    def now(self) -> float:
        """Time when the device has finished what it was given."""
        self.synchronize()
        return time.perf_counter()

    def timed(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, charging its time to ``phase``."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            started = self.now()
            result = function(*args, **kwargs)
            self.current[phase] += self.now() - started
            return result

        return wrapped

    def ending_steps(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """``run``, each call of which ends a step."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            result = run(*args, **kwargs)
            now = self.now()
            self.steps.append({**self.current, "step": now - self.last})
            self.current = dict.fromkeys(PHASES, 0.0)
            self.last = now
            return result

        return wrapped


def build_boosted(arguments: argparse.Namespace, device: str, total_steps: int) -> tuple[Any, Any]:
    """Model and optimizer under the plugin ddp, and the learning-rate schedule."""
    from colossalai.booster import Booster

    from colossal_llama.model.loader import load_model
    from colossal_llama.optim import OPTIMIZERS, GroupOptions, build_lr_scheduler, parameter_groups
    from colossal_llama.plugins import PLUGINS, PluginOptions
    from colossal_llama.plugins.steps import Boosted

    spec = PLUGINS.get("ddp")
    options = PluginOptions(
        precision=arguments.mixed_precision,
        max_norm=1.0,
        rows_per_step=arguments.micro_batch_size * arguments.accumulation_steps,
        accumulation_steps=arguments.accumulation_steps,
        on_host=device == "cpu",
    )
    plugin = spec.make(options)
    model = load_model(Path(arguments.pretrained), "--pretrained", "fp32", "sdpa")
    groups = parameter_groups(model, GroupOptions(lr=1e-5, weight_decay=0.1))
    optimizer = OPTIMIZERS.get("hybrid_adam").make(groups)
    lr_scheduler = build_lr_scheduler(optimizer, total_steps, warmup_steps=1)
    booster: Any = Booster(plugin=plugin)
    model, optimizer, _, _, lr_scheduler = booster.boost(model, optimizer, lr_scheduler=lr_scheduler)
    return Boosted(booster, model, optimizer, spec.layout(plugin, options), spec, options, device), lr_scheduler


def run_bare(boosted: Any, lr_scheduler: Any, steps: list[list[Any]], now: Callable[[], float]) -> list[float]:
    """The loop that anyone would write first; returns the seconds of each step."""
    import torch

    dtype = {"bf16": torch.bfloat16}.get(boosted.options.precision)
    parameters = [param for group in boosted.optimizer.param_groups for param in group["params"]]
    boosted.model.train()
    seconds = []
    for micro_batches in steps:
        started = now()
        for batch in micro_batches:
            targets = batch["targets"].to(boosted.device)
            with torch.autocast(boosted.device.split(":")[0], dtype=dtype, enabled=dtype is not None):
                logits = boosted.model(input_ids=batch["input_ids"].to(boosted.device), use_cache=False)["logits"]
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
            boosted.booster.backward(loss / len(micro_batches), boosted.optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        boosted.optimizer.step()
        boosted.optimizer.zero_grad()
        lr_scheduler.step()
        loss.item()
        seconds.append(now() - started)
    return seconds


@dataclass
class Figures:
    """Seconds of steps and processor seconds of rounds: the project's loop with its phases, and the bare one."""

    ours: list[dict[str, float]] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    ours_processor: float = 0.0
    bare_processor: float = 0.0
    wait: float = 0.0


def measure(arguments: argparse.Namespace, logs: Path) -> Figures:
    """Train on random rows, round by round with either loop; warm-up steps are not counted."""
    from colossal_llama.distributed.launch import launch, shut_down

    env = launch(seed=0)
    import torch

    from colossal_llama.data.collator import PackedCollator
    from colossal_llama.data.loader import StepLoader
    from colossal_llama.data.random_rows import RandomRows
    from colossal_llama.data.sampler import BucketSampler
    from colossal_llama.metrics.tracker import MetricTracker
    from colossal_llama.metrics.writers import ConsoleWriter, JsonlWriter, TensorBoardWriter
    from colossal_llama.model.loader import read_model_config
    from colossal_llama.plugins.steps import DataParallelStep
    from colossal_llama.schedule import TrainSchedule
    from colossal_llama.state import TrainState
    from colossal_llama.trainer import Intervals, Trainer

    size = arguments.micro_batch_size * arguments.accumulation_steps
    clock = Clock(torch.cuda.synchronize if torch.cuda.is_available() else lambda: None)
    total_steps = 2 * (arguments.warmup + arguments.rounds * arguments.steps)
    boosted, lr_scheduler = build_boosted(arguments, env.device, total_steps)
    step: Any = DataParallelStep(boosted)
    step._forward = clock.timed("forward", step._forward)
    step._update = clock.timed("optimizer", step._update)
    step.run = clock.ending_steps(step.run)
    backward = boosted.booster.backward
    vocab_size = read_model_config(Path(arguments.pretrained), "--pretrained")["vocab_size"]
    tracker = MetricTracker([ConsoleWriter(total_steps, 0), JsonlWriter(logs, 0), TensorBoardWriter(logs, 0)])
    figures = Figures()
    for number, steps in enumerate([arguments.warmup] + [arguments.steps] * arguments.rounds):
        schedule = TrainSchedule(
            steps * size, 1, arguments.micro_batch_size, arguments.accumulation_steps, num_epochs=1
        )
        rows = RandomRows(schedule.num_samples, arguments.max_length, vocab_size, seed=number)
        sampler = BucketSampler(rows.bucket_sizes, 0)
        collate = PackedCollator(0, arguments.max_length, "max_length")
        loader = StepLoader(rows, sampler, collate, schedule, env.rank)
        trainer = Trainer(
            step=step,
            lr_scheduler=lr_scheduler,
            loader=loader,
            sampler=sampler,
            schedule=schedule,
            state=TrainState(),
            tracker=tracker,
            intervals=Intervals(),
            save=lambda state: logs,
            device=env.device,
        )
        ready = [loaded.micro_batches for loaded in loader.epoch(0)]
        began = time.process_time()
        bare = run_bare(boosted, lr_scheduler, ready, clock.now)
        between = time.process_time()
        boosted.booster.backward = clock.timed("backward", backward)
        clock.last = clock.now()
        trainer.fit()
        boosted.booster.backward = backward
        if number:
            figures.bare += bare
            figures.bare_processor += between - began
            figures.ours_processor += time.process_time() - between
    tracker.close()
    shut_down()
    figures.ours = clock.steps[arguments.warmup :]
    lines = [json.loads(line) for line in (logs / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    figures.wait = sum(line["loader_wait_seconds"] for line in lines[arguments.warmup :])
    return figures


def main() -> None:
    """Measure, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained", required=True, help="model folder")
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps of a round with either loop")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that are counted")
    parser.add_argument("--warmup", type=int, default=2, help="steps with either loop before them that are not")
    parser.add_argument("--max_length", type=int, default=512, help="tokens per row")
    parser.add_argument("--micro_batch_size", type=int, default=1)
    parser.add_argument("--accumulation_steps", type=int, default=1)
    parser.add_argument("--mixed_precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as logs:
        figures = measure(arguments, Path(logs))
    total = sum(step["step"] for step in figures.ours)
    share = {phase: sum(step[phase] for step in figures.ours) / total for phase in PHASES}
    share["everything else"] = 1 - sum(share.values())
    share["of that, waiting for rows"] = figures.wait / total
    print("\n| part of a step | share |\n|---|---:|")
    for name, value in share.items():
        print(f"| {name} | {value:.2%} |")
    ours = statistics.median(step["step"] for step in figures.ours)
    bare = statistics.median(figures.bare)
    processor = figures.ours_processor / figures.bare_processor - 1
    print(f"\n{len(figures.ours)} steps with either loop\n")
    print("| | bare loop | this loop | difference |\n|---|---:|---:|---:|")
    print(f"| median step (s) | {bare:.4f} | {ours:.4f} | {ours / bare - 1:+.2%} |")
    print(f"| processor time (s) | {figures.bare_processor:.2f} | {figures.ours_processor:.2f} | {processor:+.2%} |")
    if arguments.output:
        content = {
            "share": share,
            "median_step": {"bare": bare, "ours": ours},
            "processor_seconds": {"bare": figures.bare_processor, "ours": figures.ours_processor},
            "steps": figures.ours,
            "bare_steps": figures.bare,
            "arguments": {name: str(value) for name, value in vars(arguments).items()},
        }
        arguments.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
