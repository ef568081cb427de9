"""Small, whole inputs of every command, in one folder; each is made by the command that makes it for users."""

from __future__ import annotations

import gzip
import json
import shutil
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.helpers import benchmark_files
from tests.helpers.fault_runner import Run, run_all

CHAT_TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)
TEXT = "明月几时有，the quick brown fox jumps over {number} lazy dogs. "
CHECKPOINT, NEXT_CHECKPOINT = "epoch-0_step-4", "epoch-0_step-8"
LORA_FLAGS = ("--lora_rank", "2")
TRAIN_FLAGS = (
    *("--plugin", "zero2", "--mixed_precision", "bf16", "--max_length", "64", "--micro_batch_size", "16"),
    *("--padding_mode", "longest", "--skip_save_each_epoch"),
)
"""Of a training whose checkpoints hold every kind of file."""


def main_of(command: str) -> Callable[[list[str]], int]:
    """The ``main`` of a module in ``colossal_llama.commands``."""
    import importlib

    return importlib.import_module(f"colossal_llama.commands.{command}").main


def records(count: int) -> list[dict[str, str]]:
    """Pretraining records of two categories."""
    texts = (TEXT.format(number=number) * 3 for number in range(count))
    return [{"source": "", "target": text, "category": "ab"[len(text) % 2]} for text in texts]


def conversations(count: int) -> list[dict]:
    """Records of one question and one answer."""
    return [
        {"messages": [{"from": "human", "content": f"{n}?"}, {"from": "assistant", "content": f"{n}."}]}
        for n in range(count)
    ]


INPUTS = Path("in")
"""All inputs, seen from the folder that a command runs in; recipes and adapters name others by such paths."""


def build_inputs(folder: Path) -> None:
    """Make ``in`` in ``folder``.

    Raises:
        AssertionError: a step failed; says what it printed.
    """
    (folder / INPUTS).mkdir(parents=True)
    for step in (_write_files, _write_models, _prepare, _train, _train_adapters, _run_stages, _evaluate):
        ((_, done),) = run_all([Run(lambda _, step=step: step(INPUTS) or 0, (), folder)], 1)
        assert done.code == 0, f"{step.__name__}: {done.stdout}\n{done.stderr}"


def run_here(command: str, *arguments: object) -> None:
    """Run a command in this process, which must succeed."""
    code = main_of(command)([str(argument) for argument in arguments])
    assert code == 0, f"{command} ended with {code}"


def write_lines(path: Path, *entries: object) -> None:
    """JSON, one a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    path.write_bytes(gzip.compress(text.encode())) if path.suffix == ".gz" else path.write_text(text, encoding="utf-8")


def _write_files(root: Path) -> None:
    import datasets
    import pyarrow as pa
    from pyarrow import parquet

    write_lines(root / "texts" / "a.jsonl", *records(40))
    write_lines(root / "texts" / "b.jsonl.gz", *records(20))
    (root / "texts" / "c.json").write_text(json.dumps(records(20)), encoding="utf-8")
    parquet.write_table(pa.Table.from_pylist(records(20)), root / "texts" / "d.parquet")
    datasets.Dataset.from_list(records(20)).save_to_disk(str(root / "saved"))
    write_lines(root / "chats" / "a.jsonl", *conversations(40))
    exam = "What does a question of an exam about foxes and dogs ask of the one who learns? It asks number {number}."
    write_lines(root / "held_out" / "exam.jsonl", *({"source": "", "target": exam.format(number=n)} for n in range(3)))
    (root / "held_out" / "text.txt").write_text(
        "Some long text that is measured and has at least thirteen words for all who look.\n" * 20, encoding="utf-8"
    )
    write_lines(root / "prompts" / "prompts.jsonl", {"prompt": "The quick"}, {"prompt": "A lazy"})
    (root / "prompts" / "prompts.txt").write_text("The quick\nA lazy\n", encoding="utf-8")
    write_lines(root / "pieces" / "pieces.jsonl", {"piece": "foxes"}, {"piece": "lazy dogs"}, {"piece": "明月"})
    (root / "settings").mkdir()
    (root / "settings" / "plan.yaml").write_text("model: tiny\ngpus: 8\nmixed_precision: bf16\n", encoding="utf-8")
    (root / "settings" / "hostfile").write_text("localhost\n", encoding="utf-8")
    benchmarks = root / "benchmarks"
    benchmark_files.write_mmlu(benchmarks, ("anatomy",), 2)
    benchmark_files.write_cmmlu(benchmarks, ("agronomy",), 2)
    benchmark_files.write_ceval(benchmarks, ("law",), 2)
    benchmark_files.write_agieval(benchmarks, ("sat-math",), ("logiqa-zh",), 2)
    benchmark_files.write_gaokao(benchmarks, ("2010-2022_Biology_MCQs",), 2)
    benchmark_files.write_gsm8k(benchmarks, 2)
    benchmark_files.write_bbh(benchmarks, ("navigate",), 4)
    benchmark_files.write_boolq(benchmarks, 2)
    benchmark_files.write_humaneval(benchmarks, 2)


def _write_models(root: Path) -> None:
    import numpy as np
    from transformers import AutoTokenizer, LlamaForCausalLM

    from tests.helpers.assets import write_sentencepiece_dir
    from tests.helpers.tiny import save_tiny_model

    save_tiny_model(root / "model")
    config = root / "model" / "config.json"
    # Room for the examples of the benchmarks.
    config.write_text(
        json.dumps(json.loads(config.read_text(encoding="utf-8")) | {"max_position_embeddings": 2048}), encoding="utf-8"
    )
    settings = root / "model" / "tokenizer_config.json"
    content = json.loads(settings.read_text(encoding="utf-8")) | {"chat_template": CHAT_TEMPLATE}
    settings.write_text(json.dumps(content), encoding="utf-8")
    model = LlamaForCausalLM.from_pretrained(str(root / "model"))
    tokenizer = AutoTokenizer.from_pretrained(str(root / "model"))
    model.save_pretrained(str(root / "sharded"), max_shard_size="200KB")
    tokenizer.save_pretrained(str(root / "sharded"))
    write_sentencepiece_dir(root / "sentencepiece")
    flags = ("--source_tokenizer_dir", root / "model", "--expand_tokens_file", root / "pieces" / "pieces.jsonl")
    run_here("init_tokenizer", *flags, "--target_tokenizer_dir", root / "wide")
    wide = AutoTokenizer.from_pretrained(str(root / "wide"))
    tokens = list(wide.get_vocab())
    vectors = np.random.default_rng(0).normal(size=(len(tokens), 4)).astype(np.float32)
    (root / "vectors").mkdir()
    np.savez(root / "vectors" / "vectors.npz", tokens=np.array(tokens), vectors=vectors)
    lines = (f"{token} {' '.join(map(str, vector))}\n" for token, vector in zip(tokens, vectors, strict=True))
    (root / "vectors" / "vectors.vec").write_text("".join(lines), encoding="utf-8")


def _prepare(root: Path) -> None:
    flags = ("--tokenizer_dir", root / "model", "--max_length", 64, "--num_spliced_dataset_bins", 2, "--num_workers", 1)
    flags += ("--validation_fraction", 0.1, "--sub_dataset_by", "category")
    run_here(
        "prepare_pretrain_dataset", "--data_input_dirs", root / "texts", "--data_output_dirs", root / "data", *flags
    )
    shutil.move(root / "data" / "arrow" / "validation", root / "validation")


def _train(root: Path) -> None:
    flags = ("--pretrained", root / "model", "--dataset", root / "data" / "arrow", *TRAIN_FLAGS, "--save_interval", 4)
    run_here("train", *flags, *train_outputs(root / "run"))
    for folder in (root / "run" / "checkpoints").glob("epoch-*"):
        if folder.name not in (CHECKPOINT, NEXT_CHECKPOINT):
            shutil.rmtree(folder)


def _train_adapters(root: Path) -> None:
    flags = ("--pretrained", root / "model", "--dataset", root / "data" / "arrow", *TRAIN_FLAGS, *LORA_FLAGS)
    run_here("train", *flags, "--save_interval", 100, *train_outputs(root / "lora_run"))
    shutil.move(root / "lora_run" / "checkpoints" / "modeling", root / "adapters")
    shutil.rmtree(root / "lora_run")
    path = root / "adapters" / "adapter_config.json"
    content = json.loads(path.read_text(encoding="utf-8")) | {"base_model_name_or_path": str(root / "model")}
    path.write_text(json.dumps(content), encoding="utf-8")


def _run_stages(root: Path) -> None:
    """Run a recipe; its training runs in this process instead of behind a launcher."""
    from colossal_llama.commands import train
    from colossal_llama.stages import runner

    def run_logged(command: list[str], *rest: object, **more: object) -> Any:
        flags = command[command.index(str(runner.TRAIN_SCRIPT)) + 1 :]
        return types.SimpleNamespace(code=train.main(flags), signal=None)

    runner.run_logged = run_logged
    recipe = {
        "pretrained": str(root / "model"),
        "output_dir": str(root / "staged"),
        "launcher": {"nproc_per_node": 1, "hostfile": str(root / "settings" / "hostfile")},
        "defaults": {"plugin": "ddp", "mixed_precision": "fp32", "max_length": 64, "micro_batch_size": 32},
        "stages": [{"name": "first", "dataset": str(root / "data" / "arrow"), "skip_save_each_epoch": True}],
    }
    (root / "settings" / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    run_here("run_stages", root / "settings" / "recipe.yaml")


def _evaluate(root: Path) -> None:
    flags = ("--tasks", "boolq", "--data_dir", root / "benchmarks", "--output_dir", root / "results")
    run_here("evaluate", root / "model", *flags, "--device", "cpu")


def train_outputs(folder: Path) -> tuple[object, ...]:
    """Flags that put all outputs of a training into ``folder``."""
    places = {"save_dir": "checkpoints", "tensorboard_dir": "logs", "config_file": "config.json"}
    return tuple(word for flag, name in places.items() for word in (f"--{flag}", folder / name))
