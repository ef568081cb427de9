"""What a run must share with the checkpoint it resumes, and what may change."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from colossal_llama.checkpoint.manager import RunIdentity
from colossal_llama.checkpoint.optimizer_state import PieceStore, RankStore
from colossal_llama.commands.train_update import update_settings
from colossal_llama.config.cli import parse_config
from colossal_llama.config.train import TrainConfig
from colossal_llama.errors import UserError

IDENTITY = RunIdentity(
    layout={"plugin": "zero2", "world_size": 2},
    batch={"global_batch": 8},
    data={"rows": "1f2e", "seed": 42, "num_epochs": 1},
    trained={"lora_rank": 0},
    defaults={"rows": "1f2e"},
)
SOURCE = Path("runs/epoch-0_step-3")


def test_the_same_run_is_accepted() -> None:
    IDENTITY.check(IDENTITY.content(), SOURCE)
    assert IDENTITY.layout_changes(IDENTITY.content()) == []


def test_another_layout_and_batch_are_accepted_and_told() -> None:
    other = replace(IDENTITY, layout={"plugin": "ddp", "world_size": 1}, batch={"global_batch": 4})
    other.check(IDENTITY.content(), SOURCE)
    assert other.layout_changes(IDENTITY.content()) == ["plugin was zero2, now ddp", "world_size was 2, now 1"]
    assert other.batch_changes(IDENTITY.content()) == ["global_batch was 8, now 4"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"rows": "aaaa", "seed": 42, "num_epochs": 1}}, "rows was 1f2e, now aaaa"),
        ({"data": {"rows": "1f2e", "seed": 7, "num_epochs": 2}}, "seed was 42, now 7; num_epochs was 1, now 2"),
        ({"trained": {"lora_rank": 8}}, "lora_rank was 0, now 8"),
    ],
)
def test_another_run_is_refused_with_all_that_differs(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=f"cannot resume, {message}.*--load_checkpoint {SOURCE}/modeling"):
        replace(IDENTITY, **change).check(IDENTITY.content(), SOURCE)


def test_a_checkpoint_from_before_the_fingerprint_is_accepted() -> None:
    old = {"layout": IDENTITY.layout, "trained": {"lora_rank": 0}}
    old |= {"data": {"global_batch": 8, "seed": 42, "num_epochs": 1}}
    IDENTITY.check(old, SOURCE)
    assert IDENTITY.batch_changes(old) == IDENTITY.layout_changes(old) == []


def test_states_of_single_ranks_cannot_change_their_layout(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"layout that wrote them; .* --load_checkpoint {SOURCE}/modeling"):
        RankStore(None, 0, 0).load(SOURCE / "optimizer", same_layout=False)


def test_states_of_an_older_version_are_refused(tmp_path: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "pytorch_optim.bin.index.json").touch()
    with pytest.raises(UserError, match=r"no file that this version can read; .* --load_checkpoint .*modeling"):
        PieceStore(None, None, 0, 1).load(tmp_path / "optimizer", same_layout=True)


def identity(*flags: str) -> RunIdentity:
    config = parse_config(TrainConfig, ["--pretrained", "m", "--dataset", "d", *flags], "")
    trained = {"lora_rank": config.lora_rank, **update_settings(config)}
    return RunIdentity({"plugin": "ddp"}, {"global_batch": 8}, {"seed": 1}, trained, defaults=update_settings(None))


def test_the_same_flags_resume_after_a_round_trip_through_json() -> None:
    flags = ("--lora_rank", "4", "--lora_target_modules", "q_proj", "v_proj", "--embedding_lr", "1e-3")
    stored = json.loads(json.dumps(identity(*flags).content()))
    identity(*flags).check(stored, Path("c"))


def test_checkpoints_from_before_a_flag_resume_with_its_default_only() -> None:
    stored = identity().content()
    stored["trained"] = {"lora_rank": 0}
    identity().check(stored, Path("c"))
    with pytest.raises(UserError, match="cannot resume, optimizer was hybrid_adam, now lion"):
        identity("--optimizer", "lion").check(stored, Path("c"))


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (("--optimizer", "lion"), "optimizer"),
        (("--decay_norms_and_biases", "false"), "decay_norms_and_biases"),
        (("--embedding_lr", "1e-3"), "own_embedding_lr"),
        (("--freeze_old_embedding_rows", "9"), "freeze_old_embedding_rows"),
        (("--lora_alpha", "8"), "lora_alpha"),
    ],
)
def test_what_differs_in_the_update_is_named(flags: tuple[str, str], name: str) -> None:
    with pytest.raises(UserError, match=f"cannot resume, {name} was"):
        identity(*flags).check(identity().content(), Path("c"))


def test_learning_rates_and_schedule_may_change() -> None:
    stored = identity("--embedding_lr", "1e-3").content()
    identity("--embedding_lr", "2e-3", "--lr", "1e-5", "--lr_schedule", "wsd", "--lr_floor", "0.2").check(
        stored, Path("c")
    )
