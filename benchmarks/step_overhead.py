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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colossal_llama.benchmarking.split import BACKWARD, FORWARD, OPTIMIZER

PHASES = (FORWARD, BACKWARD, OPTIMIZER)


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


@dataclass
class Figures:
    """Seconds of steps and processor seconds of rounds: the project's loop with its phases, and the bare one."""

    ours: list[dict[str, float]] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    ours_processor: float = 0.0
    bare_processor: float = 0.0
    wait: float = 0.0


class Bench:
    """Both loops around the same booster, model and optimizer."""

    def __init__(self, arguments: argparse.Namespace, env: Any, logs: Path) -> None:
        from colossal_llama.benchmarking.clock import PhaseClock, device_synchronizer
        from colossal_llama.benchmarking.recorder import StepRecorder
        from colossal_llama.benchmarking.split import time_phases
        from colossal_llama.metrics.tracker import MetricTracker
        from colossal_llama.metrics.writers import ConsoleWriter, JsonlWriter, TensorBoardWriter
        from colossal_llama.model.model_folder import read_model_config
        from colossal_llama.plugins.steps import DataParallelStep

        total_steps = 2 * (arguments.warmup + arguments.rounds * arguments.steps)
        self.arguments, self.env, self.logs = arguments, env, logs
        self.boosted, self.lr_scheduler = build_boosted(arguments, env.device, total_steps)
        self.model_config = read_model_config(Path(arguments.pretrained), "--pretrained")
        self.clock = PhaseClock(device_synchronizer(env.device))
        self.recorder = StepRecorder(self.clock)
        writers = [ConsoleWriter(total_steps, 0), JsonlWriter(logs, 0), TensorBoardWriter(logs, 0)]
        self.tracker = MetricTracker([self.recorder, *writers])
        self._plain_backward = self.boosted.booster.backward
        self.step = DataParallelStep(self.boosted)
        time_phases(self.step, self.boosted, self.clock)

    def loader(self, steps: int, seed: int) -> tuple[Any, Any, Any]:
        """The loader of a round, its order and its schedule; the same for the same seed."""
        from colossal_llama.benchmarking.rows import random_rows
        from colossal_llama.data.collator import PackedCollator
        from colossal_llama.data.loader import StepLoader
        from colossal_llama.data.sampler import BucketSampler
        from colossal_llama.schedule import TrainSchedule

        arguments = self.arguments
        size = arguments.micro_batch_size * arguments.accumulation_steps
        schedule = TrainSchedule(
            steps * size, 1, arguments.micro_batch_size, arguments.accumulation_steps, num_epochs=1
        )
        rows = random_rows(self.model_config, arguments.max_length, schedule.num_samples, seed)
        sampler = BucketSampler(rows.bucket_sizes, 0)
        collate = PackedCollator(0, arguments.max_length, "max_length")
        return StepLoader(rows, sampler, collate, schedule, self.env.rank), sampler, schedule

    def run_ours(self, steps: int, seed: int) -> None:
        """A round of the project's loop."""
        from colossal_llama.state import TrainState
        from colossal_llama.trainer import Intervals, Trainer

        loader, sampler, schedule = self.loader(steps, seed)
        trainer = Trainer(
            step=self.step,
            lr_scheduler=self.lr_scheduler,
            loader=loader,
            sampler=sampler,
            schedule=schedule,
            state=TrainState(),
            tracker=self.tracker,
            intervals=Intervals(),
            save=lambda state: self.logs,
            device=self.env.device,
        )
        self.clock.start()
        trainer.fit()

    def run_bare(self, steps: Sequence[Sequence[Any]]) -> list[float]:
        """A round of the bare loop on batches that lie ready; returns the seconds of its steps."""
        import torch

        from colossal_llama.benchmarking.bare_loop import BareLoop, run_bare

        boosted = self.boosted
        loop = BareLoop(
            boosted.model,
            boosted.optimizer,
            boosted.device,
            {"bf16": torch.bfloat16}.get(boosted.options.precision),
            max_norm=1.0,
            backward=lambda loss: self._plain_backward(loss, boosted.optimizer),
            after_step=self.lr_scheduler.step,
        )
        return run_bare(loop, steps)[1]


def measure(arguments: argparse.Namespace, logs: Path) -> Figures:
    """Train on random rows, round by round with either loop; warm-up steps are not counted."""
    from colossal_llama.distributed.launch import launch, shut_down

    bench = Bench(arguments, launch(seed=0), logs)
    figures = Figures()
    for number, steps in enumerate([arguments.warmup] + [arguments.steps] * arguments.rounds):
        ready = [loaded.micro_batches for loaded in bench.loader(steps, seed=number)[0].epoch(0)]
        began = time.process_time()
        bare = bench.run_bare(ready)
        between = time.process_time()
        bench.run_ours(steps, seed=number)
        ours = bench.recorder.taken().phases
        if number:
            figures.bare += bare
            figures.ours += [phases | {"step": sum(phases.values())} for phases in ours]
            figures.bare_processor += between - began
            figures.ours_processor += time.process_time() - between
    bench.tracker.close()
    shut_down()
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
