"""Bad input through the real programs: one line that names the flag or the file, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from colossal_llama.commands.prepare_pretrain_dataset import main as prepare
from tests.helpers.tiny import save_rows, save_tiny_model, save_tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Places:
    """Good inputs, bad inputs, and ``out``, the empty folder that a program runs in."""

    root: Path
    out: Path

    def __getattr__(self, name: str) -> str:
        return str(self.root / name)


def write_lines(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    save_tiny_model(root / "model")
    save_tiny_model(root / "shallow_model", layers=1)
    (root / "other_tokenizer").mkdir()
    save_tiny_tokenizer(root / "other_tokenizer", vocab_size=400)
    (root / "wide_tokenizer").mkdir()
    save_tiny_tokenizer(root / "wide_tokenizer", vocab_size=600)
    shutil.copytree(root / "model", root / "mismatched_model")
    shutil.copytree(root / "wide_tokenizer", root / "mismatched_model", dirs_exist_ok=True)
    good = json.dumps({"source": "", "target": "some text to learn from " * 20, "category": "a"})
    write_lines(root / "texts" / "a.jsonl", *[good] * 20)
    for name, tokenizer in (("data", "model"), ("foreign_data", "other_tokenizer")):
        flags = ["--data_input_dirs", str(root / "texts"), "--tokenizer_dir", str(root / tokenizer)]
        flags += ["--data_output_dirs", str(root / name), "--max_length", "64", "--num_spliced_dataset_bins", "2"]
        assert prepare([*flags, "--num_workers", "1"]) == 0
    save_rows(root / "wide_rows", 8, vocab_size=6000)
    shutil.copytree(root / "model", root / "remote_model")
    config = json.loads((root / "remote_model" / "config.json").read_text(encoding="utf-8"))
    write_lines(root / "remote_model" / "config.json", json.dumps(config | {"model_type": "chatglm"}))
    (root / "empty_folder").mkdir()
    write_lines(root / "empty_file" / "a.jsonl")
    write_lines(root / "broken_json" / "a.jsonl", good, '{"target": "no end')
    write_lines(root / "wrong_type" / "a.jsonl", good, good, '{"target": 5}')
    write_lines(root / "wrong_messages" / "a.jsonl", '{"messages": "hello"}')
    write_lines(root / "pieces.jsonl", '{"piece": "你好"}')
    write_lines(root / "broken_pieces.jsonl", '{"piece": "你好"}', '{"piece": 7}')
    checkpoint = root / "checkpoints" / "epoch-0_step-3"
    shutil.copytree(root / "model", checkpoint / "modeling")
    write_lines(checkpoint / "running_states.json", "{}")
    return root


def tokenizer(p: Places, **changes: str) -> dict[str, str]:
    flags = {"source_tokenizer_dir": p.model, "expand_tokens_file": f"{p.root}/pieces.jsonl"}
    return {"script": "init_tokenizer.py", **flags, "target_tokenizer_dir": str(p.out / "new"), **changes}


def model(p: Places, **changes: str) -> dict[str, str]:
    flags = {"source_model_and_tokenizer_path": p.model, "target_tokenizer_path": p.wide_tokenizer}
    return {"script": "init_model.py", **flags, "target_model_path": str(p.out / "new"), **changes}


def pretrain(p: Places, **changes: str) -> dict[str, str]:
    flags = {"data_input_dirs": p.texts, "tokenizer_dir": p.model, "num_workers": "1"}
    return {"script": "prepare_pretrain_dataset.py", **flags, **changes}


def sft(p: Places, **changes: str) -> dict[str, str]:
    return pretrain(p, **{"script": "prepare_sft_dataset.py", **changes})


def train(p: Places, **changes: str) -> dict[str, str]:
    flags = {"pretrained": p.model, "dataset": f"{p.data}/arrow", "plugin": "ddp", "mixed_precision": "fp32"}
    return {"script": "train.py", **flags, "max_length": "64", **changes}


def inference(p: Places, **changes: str) -> dict[str, str]:
    return {"script": "../inference_example.py", "model_path": p.model, **changes}


Case = tuple[Callable[[Places], dict[str, str]], str]
CASES: dict[str, Case] = {
    "tokenizer: missing source": (
        lambda p: tokenizer(p, source_tokenizer_dir=p.nowhere),
        "--source_tokenizer_dir {nowhere}",
    ),
    "tokenizer: missing pieces": (lambda p: tokenizer(p, expand_tokens_file=p.nowhere), "{nowhere}"),
    "tokenizer: piece of a wrong type": (
        lambda p: tokenizer(p, expand_tokens_file=f"{p.root}/broken_pieces.jsonl"),
        "{root}/broken_pieces.jsonl:2",
    ),
    "tokenizer: target exists": (
        lambda p: tokenizer(p, target_tokenizer_dir=p.other_tokenizer),
        "--target_tokenizer_dir {other_tokenizer}",
    ),
    "model: missing source": (
        lambda p: model(p, source_model_and_tokenizer_path=p.nowhere),
        "--source_model_and_tokenizer_path {nowhere}",
    ),
    "model: target exists": (
        lambda p: model(p, target_model_path=p.shallow_model),
        "--target_model_path {shallow_model}",
    ),
    "model: tokenizer that does not extend the model's": (
        lambda p: model(p, target_tokenizer_path=p.other_tokenizer),
        "tokenizer",
    ),
    "data: missing directory": (lambda p: pretrain(p, data_input_dirs=p.nowhere), "--data_input_dirs {nowhere}"),
    "data: directory without files": (
        lambda p: pretrain(p, data_input_dirs=f"{p.texts},{p.empty_folder}"),
        "--data_input_dirs {empty_folder}",
    ),
    "data: empty file": (lambda p: pretrain(p, data_input_dirs=p.empty_file), "--data_input_dirs {empty_file}"),
    "data: invalid JSON": (lambda p: pretrain(p, data_input_dirs=p.broken_json), "{broken_json}/a.jsonl:2"),
    "data: field of a wrong type": (lambda p: pretrain(p, data_input_dirs=p.wrong_type), "{wrong_type}/a.jsonl:3"),
    "data: missing tokenizer": (lambda p: pretrain(p, tokenizer_dir=p.nowhere), "--tokenizer_dir {nowhere}"),
    "data: target exists": (
        lambda p: pretrain(p, data_output_dirs=p.foreign_data),
        "--data_arrow_output_dir {foreign_data}/arrow",
    ),
    "data: no bins": (lambda p: pretrain(p, num_spliced_dataset_bins="0"), "--num_spliced_dataset_bins"),
    "sft: messages of a wrong type": (lambda p: sft(p, data_input_dirs=p.wrong_messages), "{wrong_messages}/a.jsonl:1"),
    "sft: pretraining records": (lambda p: sft(p), "{texts}/a.jsonl: holds pretraining texts"),
    "train: missing model": (lambda p: train(p, pretrained=p.nowhere), "--pretrained {nowhere}"),
    "train: folder without a model": (lambda p: train(p, pretrained=p.empty_folder), "--pretrained {empty_folder}"),
    "train: missing data": (lambda p: train(p, dataset=p.nowhere), "--dataset {nowhere}"),
    "train: folder above the parts": (lambda p: train(p, dataset=p.data), "--dataset {data}"),
    "train: data of another tokenizer": (
        lambda p: train(p, dataset=f"{p.foreign_data}/arrow"),
        "--dataset {foreign_data}/arrow/part-00000",
    ),
    "train: rows longer than max_length": (lambda p: train(p, max_length="32"), "--max_length 32"),
    "train: ids beyond the vocabulary": (
        lambda p: train(p, dataset=p.wide_rows),
        "--dataset {wide_rows}/part-00000: token ids up to",
    ),
    "train: code in the model's folder": (lambda p: train(p, pretrained=p.remote_model), "of type 'chatglm'"),
    "train: checkpoint of another architecture": (
        lambda p: train(p, pretrained=p.model, load_checkpoint=p.remote_model),
        "model_type chatglm instead of llama",
    ),
    "train: tokenizer wider than the model": (
        lambda p: train(p, pretrained=p.mismatched_model),
        "--pretrained {mismatched_model}",
    ),
    "train: tp does not divide the world": (lambda p: train(p, plugin="3d", zero="0", tp="2"), "--tp"),
    "train: pp and sp do not divide the world": (
        lambda p: train(p, plugin="3d", zero="0", pp="2", micro_batch_size="2"),
        "--pp",
    ),
    "train: fp32 with Gemini": (lambda p: train(p, plugin="gemini"), "--mixed_precision fp32"),
    "train: missing checkpoint": (lambda p: train(p, load_checkpoint=p.nowhere), "--load_checkpoint {nowhere}"),
    "train: checkpoint of another model": (
        lambda p: train(p, load_checkpoint=p.shallow_model),
        "--load_checkpoint {shallow_model}",
    ),
    "train: folder that is no checkpoint": (
        lambda p: train(p, load_checkpoint=p.empty_folder),
        "--load_checkpoint {empty_folder}",
    ),
    "train: save_dir in use": (lambda p: train(p, save_dir=p.checkpoints), "--save_dir {checkpoints}"),
    "train: unknown plugin": (lambda p: train(p, plugin="zero9"), "--plugin"),
    "inference: missing model": (lambda p: inference(p, model_path=p.nowhere), "--model_path {nowhere}"),
}


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_in_one_line(name: str, inputs: Path, tmp_path: Path) -> None:
    places = Places(inputs, tmp_path)
    make_flags, expected = CASES[name]
    flags = make_flags(places)
    command = [sys.executable, str(ROOT / "scripts" / flags.pop("script"))]
    for flag, value in flags.items():
        command += [f"--{flag}", value]
    before = tree(inputs)
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    everything = done.stdout + done.stderr
    assert done.returncode not in (0, 1), everything
    assert "Traceback" not in everything
    (line,) = [line for line in everything.splitlines() if "error:" in line]
    assert line.startswith("error: ")
    fragment = expected
    for key in ("root", *(path.name for path in inputs.iterdir()), "nowhere"):
        fragment = fragment.replace("{" + key + "}", str(inputs if key == "root" else inputs / key))
    assert fragment in line
    assert tree(inputs) == before
    assert list(tmp_path.iterdir()) == []
