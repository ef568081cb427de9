"""How long a checkpoint keeps the training waiting, at once and with --async_save, and what its manifest costs.

    torchrun --nproc_per_node 2 benchmarks/checkpoint_stall.py --plugin zero2 [--hidden_size 1024] [--layers 8]

A random Llama is boosted as train.py does it, trained for a step so that there are optimizer states, and saved
repeatedly with the project's own CheckpointManager. The stall is the time that save() takes; in the background, the
time until the checkpoint is whole is given too. The first background save makes the host memory that the next ones use
again, and is listed apart.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any


def build(arguments: argparse.Namespace, env: Any) -> tuple[Any, ...]:
    """Booster, model, optimizer and schedule after one optimizer step."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from colossal_llama.optim import OPTIMIZERS, GroupOptions, build_lr_scheduler, parameter_groups
    from colossal_llama.plugins import PLUGINS, PluginOptions, build_booster

    spec = PLUGINS.get(arguments.plugin)
    options = PluginOptions(precision=arguments.mixed_precision, max_norm=1.0, on_host=env.device == "cpu")
    config = LlamaConfig(
        vocab_size=arguments.vocab_size,
        hidden_size=arguments.hidden_size,
        intermediate_size=arguments.hidden_size * 3,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.hidden_size // 64,
    )
    model: Any = LlamaForCausalLM(config)
    booster = build_booster(spec.make(options), spec, options)
    groups = parameter_groups(model, GroupOptions(lr=1e-4, weight_decay=0.1))
    optimizer = OPTIMIZERS.get("hybrid_adam").make(groups)
    lr_scheduler = build_lr_scheduler(optimizer, 100, 1)
    model, optimizer, _, _, lr_scheduler = booster.boost(model, optimizer, lr_scheduler=lr_scheduler)
    ids = torch.arange(64, device=env.device)[None]
    booster.backward(model(input_ids=ids, labels=ids, use_cache=False)["loss"], optimizer)
    optimizer.step()
    optimizer.zero_grad()
    return booster, model, optimizer, lr_scheduler


def measure(arguments: argparse.Namespace, folder: Path, env: Any, parts: tuple[Any, ...]) -> dict[str, Any]:
    """Seconds of saves at once and in the background, of the manifest and of its verification."""
    import torch.distributed as dist

    from colossal_llama.checkpoint.manager import CheckpointManager, RunIdentity
    from colossal_llama.checkpoint.optimizer_state import PieceStore
    from colossal_llama.checkpoint.verification import Verifier
    from colossal_llama.state import TrainState

    def make_manager(background: bool) -> CheckpointManager:
        return CheckpointManager(
            folder, *parts, identity=RunIdentity({}, {}, {}), rank=env.rank, world_size=env.world_size,
            finish_export=lambda path: None, generators={}, background=background,
            store=PieceStore(parts[1], parts[2], env.rank, env.world_size),
        )  # fmt: skip

    figures: dict[str, Any] = {"sync": [], "stall": [], "whole": []}
    for background in (False, True):
        manager: Any = make_manager(background)
        for step in range(arguments.saves + 1):
            dist.barrier()
            started = time.perf_counter()
            target = manager.save(TrainState(0, step, step))
            stalled = time.perf_counter() - started
            manager.wait()
            figures["stall" if background else "sync"].append(stalled)
            if background:
                figures["whole"].append(time.perf_counter() - started)
            size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
            dist.barrier()
            started = time.perf_counter()
            assert not Verifier(env.rank, env.world_size, lambda line: None).find_faults(target)
            figures["verify"] = time.perf_counter() - started
            dist.barrier()
            if env.is_main:
                figures["checksums"] = time_checksums(target)
                shutil.rmtree(target)
        manager.close()
    return figures | {"bytes": size}


def time_checksums(folder: Path) -> float:
    """Seconds that one process takes to read and describe all files, as for the manifest."""
    from colossal_llama.checkpoint.manifest import all_files, record_file

    started = time.perf_counter()
    for path in all_files(folder):
        record_file(path)
    return time.perf_counter() - started


def main() -> None:
    """Measure, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plugin", default="zero2", choices=("ddp", "zero2", "zero2_cpu", "gemini", "3d"))
    parser.add_argument("--mixed_precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--hidden_size", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocab_size", type=int, default=32000)
    parser.add_argument(
        "--saves", type=int, default=3, help="saves of each kind that are counted, after one that is not"
    )
    parser.add_argument(
        "--folder", type=Path, help="where checkpoints are written for the moment; default: the system's"
    )
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    from colossal_llama.distributed.agreement import gather
    from colossal_llama.distributed.launch import launch, shut_down

    env = launch(seed=0)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as own:
        folder = Path(gather(own)[0])
        figures = measure(arguments, folder, env, build(arguments, env))
    if env.is_main:
        report(arguments, env, figures)
    shut_down()


def report(arguments: argparse.Namespace, env: Any, figures: dict[str, Any]) -> None:
    """Print the medians; the first save of each kind is left out of them."""
    medians = {name: statistics.median(figures[name][1:]) for name in ("sync", "stall", "whole")}
    size = figures["bytes"] / 1e9
    print(f"{arguments.plugin}, {arguments.mixed_precision}, {env.world_size} processes, {size:.2f} GB a checkpoint")
    print("| | seconds |\n|---|---:|")
    print(f"| save at once | {medians['sync']:.2f} |")
    print(f"| --async_save: the training waits | {medians['stall']:.2f} |")
    print(f"| --async_save: the checkpoint is whole after | {medians['whole']:.2f} |")
    print(f"| --async_save: the training waits for the first save | {figures['stall'][0]:.2f} |")
    print(f"| checksums of all files for the manifest, by one process | {figures['checksums']:.2f} |")
    print(f"| verification of all files | {figures['verify']:.2f} |")
    print(f"stall / save at once: {medians['stall'] / medians['sync']:.1%} (bar: below 20 %)")
    if arguments.output:
        arguments.output.write_text(json.dumps(figures | {"medians": medians}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
