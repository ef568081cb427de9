"""A checkpoint that somebody else made, with a manifest that fits, runs nothing on any rank that resumes it."""

import shutil

import pytest
import torch

from colossal_llama.checkpoint.manager import existing_checkpoints
from colossal_llama.checkpoint.manifest import all_files, write_manifest
from tests.distributed.test_plugins import flags
from tests.helpers.hostile_pickle import RunsCode
from tests.helpers.launching import outputs_in, run_training, train

LAYOUTS = {
    "galore": ("--mixed_precision", "bf16", "--plugin", "ddp", "--optimizer", "galore"),
    "fp16": ("--mixed_precision", "fp16", "--plugin", "zero2"),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, tiny_model, rows_6_steps):
    """Flags and a checkpoint of each layout, which together have every kind of file."""
    made = {}
    for name, options in LAYOUTS.items():
        folder = tmp_path_factory.mktemp(name)
        arguments = flags(tiny_model, rows_6_steps, "--batch_size", "2", "--save_interval", "3", *options)
        train(folder, arguments)
        made[name] = arguments, existing_checkpoints(folder / "checkpoints")[0]
    return made


def pickled_files(checkpoint):
    """Paths below a checkpoint of the files that torch.save wrote."""
    torch_files = [path for path in all_files(checkpoint) if path.read_bytes()[:2] == b"PK"]
    return {path.relative_to(checkpoint).as_posix() for path in torch_files}


def test_these_files_are_all(checkpoints):
    found = set().union(*(pickled_files(checkpoint) for _, checkpoint in checkpoints.values()))
    assert found == {name for _, name in PLACES}


PLACES = [
    ("galore", "rng/rank-00000.pt"),
    ("galore", "rng/rank-00001.pt"),
    ("galore", "lr_scheduler"),
    ("galore", "optimizer/rank-00000.pt"),
    ("fp16", "loss_scale.pt"),
]


@pytest.mark.parametrize(("layout", "place"), PLACES)
def test_a_hostile_file_is_refused(layout, place, tmp_path, checkpoints):
    arguments, checkpoint = checkpoints[layout]
    hostile = tmp_path / checkpoint.name
    shutil.copytree(checkpoint, hostile)
    (hostile / "manifest.json").unlink()
    torch.save({"states": RunsCode(tmp_path / "mark")}, hostile / place)
    write_manifest(hostile, {})
    done = run_training([*arguments, *outputs_in(tmp_path / "run"), "--load_checkpoint", str(hostile)])
    assert done.returncode == 2, done.stderr[-3000:]
    assert f"{hostile / place}: not read" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_whole_one_is_resumed(layout, tmp_path, checkpoints):
    arguments, checkpoint = checkpoints[layout]
    train(tmp_path, [*arguments, "--load_checkpoint", str(checkpoint)])
