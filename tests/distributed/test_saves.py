"""Every combination of plugin, precision and LoRA that starts also saves; what cannot be saved stops before step 1."""

import itertools
import json
import shutil

import pytest

from colossal_llama.checkpoint.manager import existing_checkpoints
from tests.distributed.test_plugins import flags
from tests.helpers.launching import outputs_in, run_training, train
from tests.helpers.tiny import save_rows

PLUGINS = {
    "ddp": ("--plugin", "ddp", "--batch_size", "2"),
    "zero2": ("--plugin", "zero2", "--batch_size", "2"),
    "zero2_cpu": ("--plugin", "zero2_cpu", "--batch_size", "2"),
    "gemini": ("--plugin", "gemini", "--batch_size", "2"),
    "gemini_auto": ("--plugin", "gemini_auto", "--batch_size", "2"),
    "3d-dp2": ("--plugin", "3d", "--zero", "0", "--batch_size", "2"),
    "3d-zero1": ("--plugin", "3d", "--zero", "1", "--batch_size", "2"),
    "3d-zero2": ("--plugin", "3d", "--zero", "2", "--batch_size", "2"),
    "3d-tp2": ("--plugin", "3d", "--zero", "0", "--tp", "2", "--batch_size", "4"),
    "3d-pp2": ("--plugin", "3d", "--zero", "0", "--pp", "2", "--batch_size", "4"),
}
ADAPTERS = {
    "weights": (),
    "lora": ("--lora_rank", "4"),
    "lora-embeddings": ("--lora_rank", "4", "--lora_modules_to_save", "embed_tokens", "lm_head"),
}
WHOLE_MODEL_ONLY = ("gemini", "gemini_auto", "3d-tp2", "3d-pp2")
NO_FP32 = ("gemini", "gemini_auto", "3d-zero1", "3d-zero2")


@pytest.fixture(scope="module")
def unwritable_model(tmp_path_factory, tiny_model):
    """A base with settings that transformers reads but refuses to write, as published ones have them."""
    folder = tmp_path_factory.mktemp("models") / "unwritable"
    shutil.copytree(tiny_model, folder)
    settings = {"bos_token_id": 0, "eos_token_id": 1, "temperature": 0.6, "top_p": 0.9}
    (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    change_config(folder, pad_token_id=-1)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return save_rows(tmp_path_factory.mktemp("rows"), 4)


def change_config(folder, **values):
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("plugin", "precision", "adapters"), itertools.product(PLUGINS, ("fp32", "bf16", "fp16"), ADAPTERS)
)
def test_what_starts_also_saves(plugin, precision, adapters, tmp_path, unwritable_model, rows):
    arguments = flags(
        unwritable_model, rows, "--mixed_precision", precision, "--save_interval", "1", *PLUGINS[plugin],
        *ADAPTERS[adapters],
    )  # fmt: skip
    refused = (precision == "fp32" and plugin in NO_FP32) or (adapters != "weights" and plugin in WHOLE_MODEL_ONLY)
    done = run_training([*arguments, *outputs_in(tmp_path)])
    if refused:
        assert done.returncode == 2, done.stderr[-3000:]
        assert not (tmp_path / "checkpoints").exists()
        return
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    assert done.stdout.count("do_sample set to true") == 1
    assert done.stdout.count("pad_token_id -1 left out") == 1
    (checkpoint,) = existing_checkpoints(tmp_path / "checkpoints")
    for folder in (tmp_path / "checkpoints" / "modeling", checkpoint / "modeling"):
        written = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
        assert written["temperature"] == 0.6
        assert written["do_sample"] is True
        if adapters == "weights":
            assert json.loads((folder / "config.json").read_text(encoding="utf-8")).get("pad_token_id") is None
        else:
            assert (folder / "adapter_model.safetensors").is_file()
    assert not list((tmp_path / "checkpoints").glob(".*"))


@pytest.mark.parametrize(
    ("undo", "more", "expected"),
    [
        ("generation_config", (), "error: --save_dir"),
        ("_fix_unwrapping_of_nested_wrappers", ("--mixed_precision", "fp16", "--lora_rank", "4"), "AssertionError"),
    ],
)
def test_without_the_remedies_a_run_ends_before_its_first_step(undo, more, expected, tmp_path, unwritable_model, rows):
    arguments = flags(unwritable_model, rows, "--mixed_precision", "bf16", *PLUGINS["ddp"], *more)
    done = run_training([*arguments, *outputs_in(tmp_path)], environment={"UNDO": undo})
    assert done.returncode != 0
    assert expected in done.stderr
    assert not (tmp_path / "logs" / "metrics.jsonl").exists()
    assert not (tmp_path / "checkpoints").exists()


def test_a_folder_that_cannot_be_written_ends_a_run_before_its_first_step(tmp_path, tiny_model, rows):
    """A limit on the size of files stands for a full disk: the tokenizer alone is larger."""
    arguments = flags(tiny_model, rows, "--mixed_precision", "bf16", *PLUGINS["zero2"])
    done = run_training([*arguments, *outputs_in(tmp_path)], environment={"FILE_LIMIT": "0:2000"})
    assert done.returncode == 2, done.stderr[-3000:]
    assert "cannot write a checkpoint: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "logs" / "metrics.jsonl").exists()
    assert not (tmp_path / "checkpoints").exists()


def test_the_rehearsal_of_a_killed_run_is_removed(tmp_path, tiny_model, rows):
    leftover = tmp_path / "checkpoints" / ".rehearsal.tmp"
    leftover.mkdir(parents=True)
    train(tmp_path, flags(tiny_model, rows, "--mixed_precision", "bf16", *PLUGINS["ddp"]))
    assert not leftover.exists()
