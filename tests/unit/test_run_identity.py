"""What a resumed run must share with its checkpoint."""

import json
from pathlib import Path

import pytest

from colossal_llama.checkpoint.manager import RunIdentity
from colossal_llama.commands.train_update import UPDATE_FLAGS, update_settings
from colossal_llama.config.cli import parse_config
from colossal_llama.config.train import TrainConfig
from colossal_llama.errors import UserError


def identity(*flags: str) -> RunIdentity:
    config = parse_config(TrainConfig, ["--pretrained", "m", "--dataset", "d", *flags], "")
    trained = {"lora_rank": config.lora_rank, **update_settings(config)}
    return RunIdentity({"plugin": "ddp"}, {"seed": 1}, trained, defaults=update_settings(None))


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
    "flags",
    [
        ("--lr_schedule", "linear"), ("--lr_floor", "0.2"), ("--decay_norms_and_biases", "false"),
        ("--embedding_lr", "1e-3"), ("--freeze_old_embedding_rows", "9"), ("--lora_alpha", "8"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_differs_is_named(flags: tuple[str, str]) -> None:
    assert flags[0].removeprefix("--") in UPDATE_FLAGS
    with pytest.raises(UserError, match=f"cannot resume, {flags[0].removeprefix('--')} was"):
        identity(*flags).check(identity().content(), Path("c"))
