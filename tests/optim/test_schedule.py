"""The learning rate against its closed form at the steps where that is a plain number."""

import pytest

from megatron_lite.config import OptimConfig
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
