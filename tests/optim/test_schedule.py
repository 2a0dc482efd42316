"""The learning rate against its closed form at the steps where that is a plain number."""

from typing import Any

import pytest

from megatron_lite.config import OptimConfig
from megatron_lite.errors import UsageError
from megatron_lite.optim.schedule import learning_rate

OPTIM = OptimConfig(lr=1.0, min_lr=0.2, warmup_steps=10, decay_steps=34)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (1, 0.1),  # the first step already learns
        (5, 0.5),
        (10, 1.0),  # the peak, at the last step of the warmup
        (18, 0.2 + 0.8 * 0.75),  # a third of the cosine: cos(60 degrees) = 1/2
        (22, 0.6),  # half of it: the mean of peak and floor
        (26, 0.2 + 0.8 * 0.25),  # two thirds
        (34, 0.2),  # the floor, at the last step of the decay
        (1000, 0.2),
    ],
)
def test_warmup_is_linear_decay_is_a_cosine_and_the_floor_stays(step: int, expected: float) -> None:
    assert learning_rate(step, OPTIM) == pytest.approx(expected, rel=1e-12)


def test_without_warmup_the_first_step_is_just_under_the_peak() -> None:
    optim = OptimConfig(lr=1.0, min_lr=0.0, warmup_steps=0, decay_steps=3)
    assert learning_rate(1, optim) == pytest.approx(0.75)


def test_a_warmup_as_long_as_the_decay_ends_at_the_peak_then_falls_to_the_floor() -> None:
    optim = OptimConfig(lr=1.0, min_lr=0.5, warmup_steps=4, decay_steps=4)
    assert [learning_rate(step, optim) for step in (3, 4, 5)] == [0.75, 1.0, 0.5]


def test_the_reference_run_warms_up_over_10000_steps_to_2e_5_and_ends_at_2e_6() -> None:
    optim = OptimConfig(lr=2e-5, min_lr=2e-6, warmup_steps=10_000, decay_steps=834_465)
    assert learning_rate(10_000, optim) == pytest.approx(2e-5)
    assert learning_rate(834_465, optim) == pytest.approx(2e-6)
    rates = [learning_rate(step, optim) for step in range(10_000, 834_466, 5_000)]
    assert rates == sorted(rates, reverse=True)


def test_a_warmup_longer_than_the_decay_runs_to_its_end() -> None:
    optim = OptimConfig(lr=1.0, min_lr=0.5, warmup_steps=4, decay_steps=2)
    assert [learning_rate(step, optim) for step in (1, 3, 4, 5)] == [0.25, 0.75, 1.0, 0.5]


@pytest.mark.parametrize(
    ("step", "expected"),
    [(5, 0.5), (10, 1.0), (16, 0.8), (22, 0.6), (28, 0.4), (34, 0.2), (35, 0.2)],  # 0.8 lower over 24 steps
)
def test_linear_falls_by_equal_steps_to_the_floor(step: int, expected: float) -> None:
    optim = OptimConfig(lr=1.0, min_lr=0.2, schedule="linear", warmup_steps=10, decay_steps=34)
    assert learning_rate(step, optim) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(5, 0.5), (10, 1.0), (11, 1.0), (30, 1.0), (31, 0.8), (32, 0.6), (33, 0.4), (34, 0.2), (1000, 0.2)],
)
def test_wsd_stays_at_the_peak_until_its_cooldown(step: int, expected: float) -> None:
    optim = OptimConfig(lr=1.0, min_lr=0.2, schedule="wsd", warmup_steps=10, decay_steps=34, cooldown_steps=4)
    assert learning_rate(step, optim) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("steps", "cooldown"), [(2, 1), (4, 1), (34, 3), (36, 4), (834_465, 83_446)])
def test_a_cooldown_that_is_not_given_is_a_tenth_of_the_decay_and_at_least_a_step(steps: int, cooldown: int) -> None:
    optim = OptimConfig(lr=1.0, min_lr=0.0, schedule="wsd", decay_steps=steps)
    assert learning_rate(steps - cooldown, optim) == 1.0
    assert learning_rate(steps - cooldown + 1, optim) == pytest.approx(1 - 1 / cooldown)
    assert learning_rate(steps, optim) == 0.0


def test_wsd_may_fall_as_soon_as_it_has_risen() -> None:
    optim = OptimConfig(lr=1.0, min_lr=0.0, schedule="wsd", warmup_steps=2, decay_steps=6, cooldown_steps=4)
    assert [learning_rate(step, optim) for step in range(1, 8)] == [0.5, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]


def test_constant_keeps_the_peak_for_ever_and_is_its_own_floor() -> None:
    optim = OptimConfig(lr=0.3, schedule="constant", warmup_steps=3, decay_steps=5)  # type: ignore[call-arg]
    assert [learning_rate(step, optim) for step in (1, 2, 3, 4, 5, 6, 10**6)] == [0.3 / 3, 0.6 / 3, *[0.3] * 5]
    assert optim.min_lr == 0.3


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"schedule": "constant", "min_lr": 0.1}, "optim.min_lr = 0.1: must be null or optim.lr = 1.0 where"),
        ({"schedule": "linear", "cooldown_steps": 2}, "optim.cooldown_steps = 2: optim.schedule = linear has none"),
        ({"cooldown_steps": 2}, "optim.cooldown_steps = 2: optim.schedule = cosine has none; wsd has"),
        ({"schedule": "wsd", "warmup_steps": 5, "cooldown_steps": 6}, "optim.cooldown_steps = 6: 6 steps must fit"),
        ({"schedule": "wsd", "warmup_steps": 10}, "optim.cooldown_steps = null: 1 steps must fit between optim.warmup"),
    ],
)
def test_what_a_schedule_does_not_take_is_refused_by_name(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError) as refused:
        OptimConfig.model_validate({"lr": 1.0, "decay_steps": 10} | settings)
    assert str(refused.value).startswith(complaint)
