"""What the training loop itself costs: the part of an optimizer step that is not forward, backward or optimizer.

    python benchmarks/step_overhead.py --pretrained FOLDER [--steps 10] [--max_length 512]

One process, plugin ddp, random rows, and everything else as train.py has it: its loader, collator, step, schedule,
metrics and all its writers. Forward includes the loss; optimizer includes clipping and zeroing the gradients.
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


def build_clocked_step(arguments: argparse.Namespace, device: str, total_steps: int, clock: Clock) -> tuple[Any, Any]:
    """The ddp plugin's step on a loaded model, each phase charged to ``clock``, and its learning-rate schedule."""
    from colossalai.booster import Booster

    from colossal_llama.model.loader import load_model
    from colossal_llama.optim import OPTIMIZERS, GroupOptions, build_lr_scheduler, parameter_groups
    from colossal_llama.plugins import PLUGINS, PluginOptions
    from colossal_llama.plugins.steps import Boosted, DataParallelStep

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
    step: Any = DataParallelStep(
        Boosted(booster, model, optimizer, spec.layout(plugin, options), spec, options, device)
    )
    step._forward = clock.timed("forward", step._forward)
    step._update = clock.timed("optimizer", step._update)
    step.run = clock.ending_steps(step.run)
    booster.backward = clock.timed("backward", booster.backward)
    return step, lr_scheduler


def measure(arguments: argparse.Namespace, logs: Path) -> list[dict[str, float]]:
    """Train on random rows; returns the seconds of each step after the warm-up."""
    from colossal_llama.distributed.launch import launch, shut_down

    env = launch(seed=0)
    import torch

    from colossal_llama.data.collator import PackedCollator
    from colossal_llama.data.loader import StepLoader
    from colossal_llama.data.random_rows import RandomRows
    from colossal_llama.data.sampler import BucketSampler
    from colossal_llama.metrics.tracker import MetricTracker
    from colossal_llama.metrics.writers import JsonlWriter, ProgressWriter, TensorBoardWriter
    from colossal_llama.model.loader import read_model_config
    from colossal_llama.schedule import TrainSchedule
    from colossal_llama.state import TrainState
    from colossal_llama.trainer import Trainer

    count = (arguments.warmup + arguments.steps) * arguments.micro_batch_size * arguments.accumulation_steps
    schedule = TrainSchedule(count, 1, arguments.micro_batch_size, arguments.accumulation_steps, num_epochs=1)
    clock = Clock(torch.cuda.synchronize if torch.cuda.is_available() else lambda: None)
    step, lr_scheduler = build_clocked_step(arguments, env.device, schedule.total_steps, clock)
    vocab_size = read_model_config(Path(arguments.pretrained), "--pretrained")["vocab_size"]
    rows = RandomRows(count, arguments.max_length, vocab_size, seed=0)
    collate = PackedCollator(0, arguments.max_length, "max_length")
    tracker = MetricTracker([ProgressWriter(schedule.total_steps, 0), JsonlWriter(logs, 0), TensorBoardWriter(logs, 0)])
    trainer = Trainer(
        step=step,
        lr_scheduler=lr_scheduler,
        loader=StepLoader(rows, BucketSampler(rows.bucket_sizes, 0), collate, schedule, env.rank),
        schedule=schedule,
        state=TrainState(),
        tracker=tracker,
        save=lambda state: None,
        save_interval=0,
        save_each_epoch=False,
    )
    clock.last = clock.now()
    trainer.fit()
    tracker.close()
    shut_down()
    return clock.steps[arguments.warmup :]


def main() -> None:
    """Measure, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained", required=True, help="model folder")
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps that are counted")
    parser.add_argument("--warmup", type=int, default=2, help="optimizer steps before them that are not")
    parser.add_argument("--max_length", type=int, default=512, help="tokens per row")
    parser.add_argument("--micro_batch_size", type=int, default=1)
    parser.add_argument("--accumulation_steps", type=int, default=1)
    parser.add_argument("--mixed_precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as logs:
        steps = measure(arguments, Path(logs))
    total = sum(step["step"] for step in steps)
    share = {phase: sum(step[phase] for step in steps) / total for phase in PHASES}
    overhead = 1 - sum(share.values())
    print("\n| part of a step | share |\n|---|---:|")
    for name, value in {**share, "everything else": overhead}.items():
        print(f"| {name} | {value:.2%} |")
    print(f"median step: {statistics.median(step['step'] for step in steps):.3f} s over {len(steps)} steps")
    if arguments.output:
        figures = {
            "share": share | {"overhead": overhead},
            "steps": steps,
            "arguments": {name: str(value) for name, value in vars(arguments).items()},
        }
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
