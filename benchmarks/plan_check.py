"""The planner's memory and traffic against what a training really takes and sends, on a machine without a GPU.

    python benchmarks/plan_check.py [--cases WORD ...] [--output FILE.json]

Each case runs scripts/benchmark.py in processes of its own with --trace_memory: PyTorch's profiler is told of every
block that the CPU allocator hands out and takes back, from before the model is made to the end of the last step; the
peak of the running sum is what torch.cuda.max_memory_allocated is on a GPU. (The resident set of a process says little:
it holds libraries, and what malloc keeps.) Bytes sent are counted at torch.distributed's functions.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
GIB, MIB = 2**30, 2**20
SHAPES = {
    "40m": {
        "model_type": "llama", "vocab_size": 16_384, "hidden_size": 512, "intermediate_size": 1408,
        "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""Sizes between those that have a name."""


@dataclass(frozen=True)
class Case:
    """One training."""

    model: str
    plugin: str
    precision: str
    processes: int = 1
    flags: tuple[str, ...] = ("-l", "256", "-b", "2")

    @property
    def name(self) -> str:
        """For the table and for --cases."""
        return f"{self.model} {self.plugin} {self.precision} x{self.processes} {' '.join(self.flags)}"


LONG = ("-l", "512", "-b", "4")
SHORT = ("-l", "128", "-b", "1")
TP, PP = ("--tp", "2", "--zero", "0"), ("--pp", "2", "--zero", "0")
CASES = (
    Case("tiny", "ddp", "fp32", 1, LONG),
    Case("tiny", "zero2", "bf16", 2, LONG),
    Case("40m", "ddp", "fp32"),
    Case("40m", "ddp", "fp32", 1, LONG),
    Case("40m", "ddp", "bf16", 1, LONG),
    Case("40m", "ddp", "fp32", 1, (*LONG, "-g")),
    Case("40m", "ddp", "fp32", 2, LONG),
    Case("40m", "ddp", "fp32", 1, ("-l", "256", "-b", "2", "--accumulation_steps", "2")),
    Case("40m", "zero2", "fp32", 1, LONG),
    Case("40m", "zero2", "bf16", 1, LONG),
    Case("40m", "zero2", "bf16", 2, LONG),
    Case("40m", "zero2", "bf16", 2, (*LONG, "-g")),
    Case("40m", "3d", "fp32", 2, (*LONG, *TP)),
    Case("40m", "3d", "bf16", 2, (*LONG, *TP)),
    Case("40m", "3d", "bf16", 2, (*LONG, "--zero", "1")),
    Case("40m", "3d", "bf16", 2, (*LONG, "--zero", "2")),
    Case("40m", "3d", "fp32", 2, (*LONG, *TP, "--enable_sequence_parallelism")),
    Case("40m", "3d", "fp32", 2, ("-l", "512", "-b", "4", "--mbs", "1", *PP)),
    Case("smollm2-135m", "ddp", "fp32", 1, SHORT),
    Case("smollm2-135m", "ddp", "fp32", 1, ("-l", "512", "-b", "2")),
    Case("smollm2-135m", "zero2", "bf16", 2, SHORT),
    Case("smollm2-135m", "gemini", "bf16", 2, SHORT),
    Case("smollm2-135m", "3d", "bf16", 2, (*SHORT, "--zero", "1")),
)


def run(case: Case, folder: Path) -> dict[str, Any]:
    """Run a case; returns what the benchmark measured, and the configuration it ran with."""
    model = case.model
    if model in SHAPES:
        model = str(folder / f"{case.model}.json")
        Path(model).write_text(json.dumps(SHAPES[case.model]), encoding="utf-8")
    output = folder / "figures.json"
    launcher = [sys.executable]
    if case.processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(case.processes)]
    command = [
        *launcher, str(ROOT / "scripts" / "benchmark.py"), "-c", model, "-p", case.plugin, "--mixed_precision",
        case.precision, *case.flags, "--trace_memory", "-i", "1", "-s", "1", "--split_steps", "1", "--output",
        str(output),
    ]  # fmt: skip
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{case.name}: exit code {done.returncode}\n{done.stdout}\n{done.stderr[-4000:]}")
    return json.loads(output.read_text(encoding="utf-8"))


def compare(case: Case, measured: dict[str, Any]) -> dict[str, Any]:
    """Measured and planned bytes of a case."""
    from colossal_llama.config.benchmark import BenchmarkConfig
    from colossal_llama.planning.communication import estimate_traffic
    from colossal_llama.planning.shapes import KNOWN_SHAPES, ModelShape
    from colossal_llama.planning.workload import training_memory, workload_of
    from colossal_llama.plugins import build_options

    config = BenchmarkConfig(**measured["settings"])
    settings = config.train_config()
    model = SHAPES.get(case.model) or KNOWN_SHAPES[case.model]
    memory = training_memory(settings, model, case.model, case.processes)
    options = build_options(settings, on_host=True, flash_attention=False)
    shape = ModelShape.from_config(model, case.model)
    traffic = estimate_traffic(shape, settings, options, workload_of(settings, options), case.processes)
    (figures,) = measured["contenders"]
    planned = memory.total(settings.use_grad_checkpoint) + memory.host_optimizer
    between = memory.between_steps + memory.host_optimizer
    return {
        "case": case.name,
        "measured": figures["tensor_bytes"],
        "planned": planned,
        "ratio": planned / figures["tensor_bytes"],
        "measured_between_steps": figures["tensor_bytes_between_steps"],
        "planned_between_steps": between,
        "ratio_between_steps": between / figures["tensor_bytes_between_steps"],
        "measured_sent": figures["sent_bytes"],
        "planned_sent": traffic.total,
        "parts": dataclasses.asdict(memory),
        "load": measured["machine"]["load"],
    }


def shown(bytes_: float) -> str:
    return f"{bytes_ / MIB:,.1f}"


def main() -> None:
    """Run the cases, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=[], help="only those whose name holds all of these words")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    results = []
    print("| training | measured MiB | planned | ratio | between steps | planned | ratio | sent MiB | planned |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for case in CASES:
        if not all(word in case.name.split() for word in arguments.cases):
            continue
        with tempfile.TemporaryDirectory() as folder:
            result = compare(case, run(case, Path(folder)))
        results.append(result)
        print(
            f"| {case.name} | {shown(result['measured'])} | {shown(result['planned'])} | {result['ratio']:.2f} | "
            f"{shown(result['measured_between_steps'])} | {shown(result['planned_between_steps'])} | "
            f"{result['ratio_between_steps']:.2f} | {shown(result['measured_sent'])} | "
            f"{shown(result['planned_sent'])} |",
            flush=True,
        )
        if arguments.output:
            arguments.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    off = [result["case"] for result in results if not 1 / 1.15 <= result["ratio"] <= 1.15]
    print(f"\nwithin 15 %: {len(results) - len(off)} of {len(results)}" + "".join(f"\n- not: {name}" for name in off))


if __name__ == "__main__":
    main()
