"""Step arithmetic, learning-rate curve and progress of a run."""

from dataclasses import asdict

import pytest

from colossal_llama.optim import FINAL_LR_FRACTION, cosine_with_warmup
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
    factor = cosine_with_warmup(total_steps=104, warmup_steps=4)
    assert [factor(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert factor(4) == 1.0
    assert factor(54) == pytest.approx((1 + FINAL_LR_FRACTION) / 2)
    assert factor(104) == pytest.approx(FINAL_LR_FRACTION)
    assert factor(10_000) == pytest.approx(FINAL_LR_FRACTION)
    curve = [factor(step) for step in range(4, 105)]
    assert curve == sorted(curve, reverse=True)


def test_learning_rate_without_warm_up_and_of_a_single_step() -> None:
    assert cosine_with_warmup(10, 0)(0) == 1.0
    assert cosine_with_warmup(1, 0)(0) == 1.0


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


def test_a_state_of_an_older_checkpoint_counts_what_it_knows() -> None:
    older = {"epoch": 1, "step": 2, "global_step": 7, "consumed_samples": 16, "target_tokens": 900}
    assert TrainState.from_mapping(older) == TrainState(1, 2, 7, 16, 900)


@pytest.mark.parametrize("values", [{"epoch": -1}, {"consumed_samples": -5}, {"step": 3, "global_step": 2}])
def test_impossible_states_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"negative counter|more steps in the epoch"):
        TrainState(**values)


def test_a_state_without_a_counter_is_refused() -> None:
    with pytest.raises(KeyError):
        TrainState.from_mapping({"epoch": 0, "step": 0})
