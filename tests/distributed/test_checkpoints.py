"""Checkpoints that a kill, a full disk or a flipped byte cannot fool; stopping for a signal and going on."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
import torch.distributed as dist

from colossal_llama.checkpoint.folders import existing_checkpoints
from colossal_llama.checkpoint.verification import Verifier
from tests.distributed.cases import SP
from tests.distributed.test_plugins import flags, load_weights
from tests.helpers.launching import read_losses, run_training

BF16 = ("--mixed_precision", "bf16")
ZERO2 = (*BF16, "--plugin", "zero2", "--batch_size", "2")
TP2 = (*BF16, "--plugin", "3d", "--zero", "0", "--tp", "2", "--batch_size", "4")
PP2 = (*BF16, "--plugin", "3d", "--zero", "0", "--pp", "2", "--batch_size", "4")
DP2 = (*BF16, "--plugin", "3d", "--zero", "1", "--batch_size", "2")
SP2 = (*BF16, "--plugin", "3d", "--zero", "1", "--sp", "2", *SP, "all_to_all", "--batch_size", "4")
ZERO2_CPU = (*BF16, "--plugin", "zero2_cpu", "--batch_size", "2")
GEMINI = (*BF16, "--plugin", "gemini", "--batch_size", "2")
GEMINI_AUTO = (*BF16, "--plugin", "gemini_auto", "--batch_size", "2")
DDP = ("--mixed_precision", "fp32", "--plugin", "ddp", "--batch_size", "2")
AUTO = ("--load_checkpoint", "auto")


class Job:
    """A training that is started again and again with the same command, as a scheduler would."""

    def __init__(self, folder: Path, model: Path, rows: Path, *more: str, save_dir: Path | None = None) -> None:
        self.folder = folder
        self.save_dir = save_dir or folder / "checkpoints"
        self._arguments = [
            *flags(model, rows, *more), "--save_dir", str(self.save_dir), "--tensorboard_dir", str(folder / "logs"),
            "--config_file", str(folder / "config.json"),
        ]  # fmt: skip

    def run(self, *more: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run to the end that is expected; ``environment`` switches hooks on."""
        done = run_training([*self._arguments, *more], environment=environment)
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr[-6000:]}"
        return done

    @property
    def checkpoints(self) -> list[str]:
        return [folder.name for folder in existing_checkpoints(self.save_dir)]

    @property
    def leftovers(self) -> list[str]:
        return [path.name for path in self.save_dir.glob(".*")]


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one error that a run has printed."""
    assert "Traceback" not in done.stderr, done.stderr[-6000:]
    lines = [line for line in done.stderr.splitlines() if "error:" in line]
    assert lines, done.stderr[-6000:]
    # Ranks that the launcher is slow to end repeat what rank 0 has said.
    assert {line.removeprefix("[rank 1] ") for line in lines} == {lines[0]}
    return lines[0]


@pytest.fixture(scope="session")
def whole(tmp_path_factory, tiny_model, rows_20_steps):
    """Runs that nothing interrupted, by layout: started when first asked for."""
    runs = {}

    def get(*layout: str) -> Job:
        if layout not in runs:
            folder = tmp_path_factory.mktemp("whole")
            runs[layout] = Job(folder, tiny_model, rows_20_steps, *layout, "--save_interval", "8")
            runs[layout].run()
        return runs[layout]

    return get


@pytest.fixture
def verifier(tmp_path):
    """A verifier in a process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield Verifier(0, 1, lambda line: None)
    dist.destroy_process_group()


def assert_same_run(job: Job, other: Job) -> None:
    assert read_losses(job.folder) == read_losses(other.folder)
    expected, found = load_weights(other.save_dir / "modeling"), load_weights(job.save_dir / "modeling")
    assert expected.keys() == found.keys()
    assert all(expected[name].equal(found[name]) for name in expected)


KILLS = ["torch:2:0", "safetensors:3:1", "step:4:1", "flush:3:0", "manifest:1:0", "publish:2:0", "retire:1:0"]
"""At which events a run is killed, one start after the other: while tensors of the first checkpoint are written, in the
fourth step, and so on. The last two come after a checkpoint has been written in that start."""


@pytest.mark.parametrize("background", [(), ("--async_save",)], ids=["sync", "async"])
def test_killed_again_and_again_it_ends_as_if_it_never_was(background, tmp_path, tiny_model, rows_20_steps, whole):
    kills = KILLS.copy()
    random.Random(len(background)).shuffle(kills)
    options = (*ZERO2, "--save_interval", "3", "--keep_last", "2", *background, *AUTO)
    job = Job(tmp_path, tiny_model, rows_20_steps, *options)
    for kill in kills:
        before = job.checkpoints
        job.run(code=-9, KILL_AT=kill)
        assert set(before[-1:]) <= set(job.checkpoints)
    done = job.run()
    assert "verified" in done.stdout
    assert_same_run(job, whole(*ZERO2))
    assert job.checkpoints[-2:] == ["epoch-0_step-15", "epoch-0_step-18"]
    assert len(job.checkpoints) <= 3  # the one that the last start went on from stays
    assert job.leftovers == []


@pytest.mark.parametrize(
    "layout",
    [DDP, ZERO2_CPU, GEMINI, GEMINI_AUTO, DP2, TP2, PP2, SP2],
    ids=["ddp", "zero2_cpu", "gemini", "gemini_auto", "dp2", "tp2", "pp2", "sp2"],
)
def test_killed_while_it_publishes_it_goes_on_with_every_plugin(layout, tmp_path, tiny_model, rows_20_steps, whole):
    job = Job(tmp_path, tiny_model, rows_20_steps, *layout, "--save_interval", "8", *AUTO)
    job.run(code=-9, KILL_AT="publish:2:0")
    assert job.checkpoints == ["epoch-0_step-8"]
    assert job.leftovers == [".epoch-0_step-16.tmp"]
    job.run()
    assert_same_run(job, whole(*layout))
    assert job.leftovers == []


def test_every_damage_to_every_file_is_found_and_named(tmp_path, whole, verifier):
    folder = tmp_path / "epoch-0_step-8"
    shutil.copytree(whole(*ZERO2).save_dir / "epoch-0_step-8", folder)
    assert verifier.find_faults(folder) == []
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    # Weights, their index, configurations, tokenizer; optimizer; schedule; masters and generators of both ranks.
    assert len(names) >= 14
    assert {name.split("/")[0] for name in names} == {
        "modeling", "optimizer", "masters", "rng", "lr_scheduler", "running_states.json", "manifest.json",
    }  # fmt: skip
    chance = random.Random(0)
    for name in names:
        content = (folder / name).read_bytes()
        flipped = bytearray(content)
        flipped[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        for damaged in (bytes(flipped), content[: chance.randrange(len(content))]):
            (folder / name).write_bytes(damaged)
            (fault,) = verifier.find_faults(folder)
            assert fault.startswith(f"{name}: ")
        (folder / name).unlink()
        assert [fault.split(":")[0] for fault in verifier.find_faults(folder)] == [name]
        (folder / name).write_bytes(content)
    assert verifier.find_faults(folder) == []


def test_a_damaged_checkpoint_is_refused_or_skipped_for_the_one_before(tmp_path, tiny_model, rows_20_steps, whole):
    job = Job(tmp_path, tiny_model, rows_20_steps, *ZERO2, "--save_interval", "8")
    shutil.copytree(whole(*ZERO2).save_dir, job.save_dir)
    shutil.rmtree(job.save_dir / "modeling")
    newest, before = job.save_dir / "epoch-0_step-16", job.save_dir / "epoch-0_step-8"
    states = next((newest / "optimizer").glob("rank-*.safetensors"))
    content = bytearray(states.read_bytes())
    content[len(content) // 2] ^= 4
    states.write_bytes(content)

    line = error_line(job.run("--load_checkpoint", str(newest), code=2))
    assert f"--load_checkpoint {newest}: damaged, optimizer/{states.name}: its content is not" in line
    assert f"resume it with --load_checkpoint {before}" in line

    done = job.run(*AUTO)
    assert f"skipped {newest}: damaged, optimizer/{states.name}" in done.stdout
    assert f"resumed {before}: epoch 0, 8 steps done" in done.stdout
    assert read_losses(tmp_path) == read_losses(whole(*ZERO2).folder)[8:]
    assert len(job.checkpoints) == 2

    for folder in (newest, before):
        (folder / "lr_scheduler").unlink()
    line = error_line(job.run("--load_checkpoint", str(newest), code=2))
    assert "lr_scheduler: missing" in line
    assert "no earlier checkpoint beside it is whole" in line


def test_auto_starts_resumes_and_finishes(tmp_path, tiny_model, rows_1_step):
    job = Job(tmp_path, tiny_model, rows_1_step, *DDP, "--skip_save_each_epoch", "false", *AUTO)
    assert f"no whole checkpoint in {job.save_dir}; starting from {tiny_model}" in job.run().stdout
    assert job.checkpoints == ["epoch-1_step-0"]
    losses, weights = read_losses(tmp_path), load_weights(job.save_dir / "modeling")
    shutil.rmtree(job.save_dir / "modeling")
    for path in job.save_dir.rglob("*.json"):  # a checkpoint of before
        if path.name == "manifest.json":
            path.unlink()
        elif path.name == "running_states.json":
            states = json.loads(path.read_text(encoding="utf-8"))
            path.write_text(json.dumps({key: value for key, value in states.items() if key != "manifest"}))
    done = job.run()
    assert "has no manifest.json (an earlier version wrote it)" in done.stdout
    assert "the run is finished" in done.stdout
    assert read_losses(tmp_path) == losses
    found = load_weights(job.save_dir / "modeling")
    assert all(weights[name].equal(found[name]) for name in weights)
    line = error_line(job.run("--overwrite", code=2))
    assert "--overwrite starts from scratch and --load_checkpoint auto goes on" in line


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB: room for one checkpoint of the tiny model in bf16, not for two."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"this process may not mount a file system: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("layout", [ZERO2, PP2, (*ZERO2, "--async_save")], ids=["zero2", "pp2", "zero2-async"])
def test_a_full_disk_stops_all_ranks_and_leaves_what_was_good(
    layout, tmp_path, small_disk, tiny_model, rows_20_steps, whole
):
    options = (*layout, "--save_interval", "4", *AUTO)
    job = Job(tmp_path, tiny_model, rows_20_steps, *options, save_dir=small_disk / "checkpoints")
    line = error_line(job.run(code=2))
    assert "No space left on device" in line
    assert "Make room, and go on with --load_checkpoint auto" in line
    assert job.checkpoints
    assert f"the last complete checkpoint is {job.checkpoints[-1]}" in line
    assert job.leftovers == []
    done_before = len(read_losses(tmp_path))
    assert done_before < 20
    subprocess.run(["mount", "-o", "remount,size=30m", str(small_disk)], check=True)
    job.run()
    assert_same_run(job, whole(*[option for option in layout if option != "--async_save"]))


def test_a_write_that_fails_on_one_rank_stops_all(tmp_path, tiny_model, rows_1_step):
    """Rank 1 writes nothing but its pieces and generators; rank 0's files are longer than the limit."""
    job = Job(tmp_path, tiny_model, rows_1_step, *ZERO2, "--save_interval", "1")
    line = error_line(job.run(code=2, FILE_LIMIT="1:20000"))
    assert "optimizer/rank-00001-of-00002-00000.safetensors: File too large (rank 1)" in line
    assert "no checkpoint is complete" in line
    assert os.listdir(job.save_dir) == []


@pytest.mark.parametrize(
    ("layout", "when"),
    [(ZERO2, "5:1:SIGTERM"), ((*ZERO2, "--async_save"), "8:0:SIGUSR1"), (TP2, "5:1:SIGTERM"), (PP2, "5:0:SIGTERM")],
    ids=["zero2", "zero2-async-at-a-save", "tp2", "pp2"],
)
def test_a_signal_to_one_rank_saves_and_the_next_start_goes_on(
    layout, when, tmp_path, tiny_model, rows_20_steps, whole
):
    job = Job(tmp_path, tiny_model, rows_20_steps, *layout, "--save_interval", "8", *AUTO)
    done = job.run(code=75, SIGNAL_AT=when)
    step, rank, name = when.split(":")
    assert f"stopped by {name} (rank {rank}) after step {step}; saved" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(read_losses(tmp_path)) == int(step)
    assert job.checkpoints == [f"epoch-0_step-{step}"]
    assert not (job.save_dir / "modeling").exists()
    assert f"{step} steps done" in job.run().stdout
    assert_same_run(job, whole(*[option for option in layout if option != "--async_save"]))


def test_milestones_and_the_resumed_checkpoint_stay(tmp_path, tiny_model, rows_20_steps):
    job = Job(tmp_path, tiny_model, rows_20_steps, *DDP, "--save_interval", "3", "--keep_last", "1")
    job.run(code=75, SIGNAL_AT="4:0:SIGTERM")
    assert job.checkpoints == ["epoch-0_step-4"]
    job.run(*AUTO, "--keep_every", "9")
    assert job.checkpoints == ["epoch-0_step-4", "epoch-0_step-9", "epoch-0_step-18"]
