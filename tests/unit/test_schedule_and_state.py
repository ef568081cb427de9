"""Step arithmetic, learning-rate curve and progress of a run."""

from dataclasses import asdict

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from colossal_llama.optim import DEFAULT_FLOOR, build_lr_scheduler, lr_factor, seek_lr_scheduler
from colossal_llama.schedule import TrainSchedule
from colossal_llama.state import TrainState


def schedule(**changes: int | None) -> TrainSchedule:
    values = {
        "num_samples": 103,
        "data_parallel_size": 2,
        "micro_batch_size": 3,
        "accumulation_steps": 4,
        "num_epochs": 5,
    }
    return TrainSchedule(**{**values, **changes})  # type: ignore[arg-type]


def test_steps_round_up_so_that_no_sample_is_left_out() -> None:
    assert schedule().global_batch == 24
    assert schedule().steps_per_epoch == 5
    assert schedule().total_steps == 25
    assert schedule(num_samples=96).steps_per_epoch == 4
    assert schedule(num_samples=1).steps_per_epoch == 1


@pytest.mark.parametrize(
    ("samples", "wanted", "warmup"),
    [(2400, None, 12), (240, None, 1), (24, None, 0), (2400, 7, 7), (2400, 0, 0), (48, 100, 9)],
)
def test_warm_up_is_a_fortieth_of_all_steps_or_what_is_asked(samples: int, wanted: int | None, warmup: int) -> None:
    assert schedule(num_samples=samples, warmup_steps=wanted).resolved_warmup_steps == warmup


def test_learning_rate_rises_linearly_and_falls_to_the_floor() -> None:
    factor = lr_factor("cosine", total_steps=104, warmup_steps=4)
    assert [factor(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert factor(4) == 1.0
    assert factor(54) == pytest.approx((1 + DEFAULT_FLOOR) / 2)
    assert factor(104) == pytest.approx(DEFAULT_FLOOR)
    assert factor(10_000) == pytest.approx(DEFAULT_FLOOR)
    curve = [factor(step) for step in range(4, 105)]
    assert curve == sorted(curve, reverse=True)


def test_learning_rate_without_warm_up_and_of_a_single_step() -> None:
    assert lr_factor("cosine", 10, 0)(0) == 1.0
    assert lr_factor("cosine", 1, 0)(0) == 1.0


def test_the_position_is_the_number_of_steps_while_the_global_batch_stays() -> None:
    steps = schedule()
    state = TrainState()
    for done in range(steps.total_steps):
        assert steps.position(state.epoch, state.consumed_samples) == state.global_step == done
        assert steps.remaining_steps(state.epoch, state.consumed_samples) == steps.total_steps - done
        state.finish_step(samples=min(24, 103 - state.consumed_samples), target_tokens=1)
        if state.consumed_samples == 103:
            state.finish_epoch()
    assert state.epoch == 5
    assert (steps.remaining_steps(5, 0), steps.position(5, 0)) == (0, 25)


def test_the_position_after_a_change_of_the_global_batch_is_counted_from_the_end() -> None:
    # 48 of 103 samples of the second of two epochs are done.
    assert schedule(num_epochs=2).position(1, 48) == 5 + 2
    assert schedule(num_epochs=2, micro_batch_size=6).position(1, 48) == 3 + 1
    # 55 samples are left: 19 steps of 3 rows, of 35 in each epoch.
    small = schedule(num_epochs=2, data_parallel_size=1, accumulation_steps=1)
    assert small.remaining_steps(1, 48) == 19
    assert small.position(1, 48) == 70 - 19


def new_scheduler(lr: float) -> LambdaLR:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    return build_lr_scheduler(optimizer, total_steps=20, warmup_steps=4)


def test_a_schedule_can_be_put_anywhere_and_keeps_its_own_peak() -> None:
    stepped, saved = new_scheduler(0.3), new_scheduler(0.7)
    for step in range(1, 21):
        for scheduler in (stepped, saved):
            scheduler.optimizer.step()
            scheduler.step()
        sought = new_scheduler(0.3)
        sought.load_state_dict(saved.state_dict())
        seek_lr_scheduler(sought, step)
        assert sought.last_epoch == stepped.last_epoch == step
        assert sought.get_last_lr() == stepped.get_last_lr()
        assert [group["lr"] for group in sought.optimizer.param_groups] == stepped.get_last_lr()


def test_state_counts_steps_epochs_and_samples() -> None:
    state = TrainState()
    for _ in range(3):
        state.finish_step(samples=8, target_tokens=100, tokens=150)
    assert state == TrainState(0, 3, 3, consumed_samples=24, target_tokens=300, samples=24, tokens=450)
    state.finish_epoch()
    assert state == TrainState(1, 0, 3, consumed_samples=0, target_tokens=300, samples=24, tokens=450)


def test_state_survives_a_round_trip_with_foreign_keys() -> None:
    state = TrainState(1, 2, 7, 16, 900, samples=56, tokens=1200, skipped_steps=1)
    assert TrainState.from_mapping(asdict(state) | {"sample_start_index": 16, "data": {"seed": 1}}) == state


def test_a_state_of_an_older_version_gets_defaults() -> None:
    stored = {"epoch": 1, "step": 2, "global_step": 7, "consumed_samples": 16}
    assert TrainState.from_mapping(stored) == TrainState(1, 2, 7, 16)


@pytest.mark.parametrize("values", [{"epoch": -1}, {"consumed_samples": -5}, {"step": 3, "global_step": 2}])
def test_impossible_states_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"negative counter|more steps in the epoch"):
        TrainState(**values)


def test_a_state_without_a_counter_is_refused() -> None:
    with pytest.raises(KeyError):
        TrainState.from_mapping({"epoch": 0, "step": 0})
