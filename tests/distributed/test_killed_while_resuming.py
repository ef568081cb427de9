"""A run that is killed while it resumes, before any one of its changes to the disk, loses nothing of its history."""

import json
import shutil

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from colossal_llama.checkpoint.manager import existing_checkpoints
from tests.distributed.test_plugins import flags
from tests.helpers.launching import outputs_in, read_metrics, run_training, train
from tests.helpers.tiny import save_rows
from tests.helpers.train_worker import NO_MORE_CHANGES

STEPS, SAVED, KILLED = 8, 4, 7
"""Steps of the run, steps that its checkpoint has, and the step in which it is killed for the first time."""


@pytest.fixture(scope="module")
def arguments(tmp_path_factory, tiny_model):
    rows = save_rows(tmp_path_factory.mktemp("rows"), 4 * STEPS)
    return flags(
        tiny_model, rows, "--mixed_precision", "bf16", "--plugin", "ddp", "--batch_size", "4",
        "--save_interval", str(SAVED),
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory, arguments):
    folder = tmp_path_factory.mktemp("whole")
    train(folder, arguments, processes=1)
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory, arguments):
    """A run with a checkpoint of some steps and the metrics of more, which a resumed run does again."""
    folder = tmp_path_factory.mktemp("killed")
    done = run_training([*arguments, *outputs_in(folder)], 1, {"KILL_AT": f"step:{KILLED}:0"})
    assert done.returncode == -9, done.stderr[-3000:]
    assert [entry["step"] for entry in read_metrics(folder)] == list(range(1, KILLED))
    return folder


def resume(folder, arguments, environment=None):
    checkpoint = existing_checkpoints(folder / "checkpoints")[-1]
    done = run_training([*arguments, *outputs_in(folder), "--load_checkpoint", str(checkpoint)], 1, environment)
    return done


def read_events(folder):
    lines = (folder / "logs" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def losses_in_tensorboard(folder):
    events = EventAccumulator(str(folder / "logs"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("train/loss")]


def check_history(folder, whole):
    """Everything up to the checkpoint is there, and nothing is there twice or half."""
    expected = read_metrics(whole)[:SAVED]
    found = read_metrics(folder)[:SAVED]
    assert [(entry["step"], entry["loss"]) for entry in found] == [(one["step"], one["loss"]) for one in expected]
    assert [event["step"] for event in read_events(folder) if event["kind"] == "checkpoint"] == [SAVED]
    assert losses_in_tensorboard(folder)[:SAVED] == losses_in_tensorboard(whole)[:SAVED]
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["save_interval"] == SAVED
    assert len(existing_checkpoints(folder / "checkpoints")) == 1


@pytest.mark.timeout(1800)  # a short run for each change
def test_before_every_change(tmp_path, arguments, whole, killed):
    number = 0
    while True:
        number += 1
        folder = tmp_path / str(number)
        shutil.copytree(killed, folder)
        done = resume(folder, arguments, {"KILL_AT_CHANGE": f"{number}:{folder}"})
        assert done.returncode in (-9, NO_MORE_CHANGES), f"{done.stdout}\n{done.stderr[-3000:]}"
        check_history(folder, whole)
        done_all = done.returncode == NO_MORE_CHANGES
        if done_all or number % 3 == 0:
            finished = resume(folder, arguments)
            assert finished.returncode == 0, finished.stderr[-3000:]
            for read in (read_metrics, read_events):
                names = ("step", "loss") if read is read_metrics else ("step", "kind", "name")
                assert [[one.get(name) for name in names] for one in read(folder)] == [
                    [one.get(name) for name in names] for one in read(whole)
                ]
            assert losses_in_tensorboard(folder) == losses_in_tensorboard(whole)
        shutil.rmtree(folder)
        if done_all:
            break
    assert number > 10, "the changes of a resumed start are not seen"
