"""A run that is killed again and again ends as one that never was: same losses and weights, each step logged once."""

import itertools
import random

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from colossal_llama.checkpoint.manager import existing_checkpoints
from tests.distributed.test_plugins import flags, load_weights
from tests.helpers.launching import outputs_in, read_metrics, run_training, train
from tests.helpers.tiny import save_rows

KILLS = 20
STEPS = 30


def logged_losses(folder):
    """Step and loss (in fp32) of each step, as TensorBoard shows them."""
    events = EventAccumulator(str(folder / "logs"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("train/loss")]


def seconds_of_a_step(folder):
    """Time from one step to the next, with a checkpoint between them, where nothing else took the processors."""
    events = EventAccumulator(str(folder / "logs"))
    events.Reload()
    times = [event.wall_time for event in events.Scalars("train/loss")]
    return min(later - earlier for earlier, later in itertools.pairwise(times))


@pytest.mark.timeout(3600)  # on a busy machine; it takes 20 short runs
def test_killed_at_random_moments(tmp_path, tiny_model):
    rows = save_rows(tmp_path / "rows", 4 * STEPS)
    arguments = flags(
        tiny_model, rows, "--mixed_precision", "bf16", "--plugin", "zero2", "--batch_size", "2", "--save_interval", "1"
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(whole, arguments)
    # Most runs get one or two steps far, so that none comes to its end.
    longest = 2 * seconds_of_a_step(whole)
    moments = random.Random(0)
    for _ in range(KILLS):
        done = run(
            killed, arguments, {"file": str(killed / "logs" / "metrics.jsonl"), "seconds": moments.uniform(0, longest)}
        )
        assert done.returncode == -9, f"{done.stdout}\n{done.stderr[-3000:]}"
    done = run(killed, arguments, None)
    assert done.returncode == 0, done.stderr[-3000:]

    expected, found = read_metrics(whole), read_metrics(killed)
    for name in ("step", "loss", "lr", "grad_norm", "tokens", "target_tokens"):
        assert [entry[name] for entry in found] == [entry[name] for entry in expected], name
    assert [entry["step"] for entry in found] == list(range(1, STEPS + 1))
    assert logged_losses(killed) == logged_losses(whole)
    weights = load_weights(killed / "checkpoints" / "modeling")
    for name, tensor in load_weights(whole / "checkpoints" / "modeling").items():
        assert torch.equal(tensor, weights[name]), name


def run(folder, arguments, kill):
    """One run, from the newest checkpoint if there is one."""
    checkpoints = existing_checkpoints(folder / "checkpoints")
    resume = ["--load_checkpoint", str(checkpoints[-1])] if checkpoints else []
    return run_training([*arguments, *outputs_in(folder), *resume], kill=kill)
