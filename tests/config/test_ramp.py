"""The batch size by samples consumed, and ramps that do not fit."""

from typing import Any

import pytest

from megatron_lite.config import batch_size_after, config_from_tree, resolve
from megatron_lite.errors import UsageError


def make(ramp: dict[str, int] | None, global_batch_size: int = 32, **parallel: Any):
    return config_from_tree(
        {
            "model": {"preset": "nano"},
            "parallel": parallel,
            "optim": {"lr": 1e-3},
            "train": {
                "steps": 10, "global_batch_size": global_batch_size, "sequence_length": 16, "run_dir": "unused",
                "batch_ramp": ramp,
            },
        }
    )  # fmt: skip


def test_without_a_ramp_every_batch_is_the_global_one():
    train = make(None).train
    assert {batch_size_after(samples, train) for samples in (0, 1, 1000)} == {32}


def test_the_batch_grows_in_equal_shares_of_the_ramps_samples():
    train = make({"start": 8, "increment": 8, "samples": 300}).train
    assert [batch_size_after(samples, train) for samples in (0, 99, 100, 199, 200, 299, 300, 10**9)] == [
        8, 8, 16, 16, 24, 24, 32, 32,
    ]  # fmt: skip


def test_a_run_takes_the_samples_that_its_batches_add_up_to():
    train = make({"start": 8, "increment": 8, "samples": 64}).train
    samples, sizes = 0, []
    for _ in range(6):
        sizes.append(batch_size_after(samples, train))
        samples += sizes[-1]
    assert sizes == [8, 8, 8, 16, 16, 24]


@pytest.mark.parametrize(
    ("ramp", "parallel", "world", "expected"),
    [
        ({"start": 5, "increment": 8, "samples": 9}, {}, 1, "must reach train.global_batch_size = 32 in steps of"),
        ({"start": 40, "increment": 8, "samples": 9}, {}, 1, "train.batch_ramp.start = 40"),
        ({"start": 8, "increment": 6, "samples": 9}, {}, 4, "train.batch_ramp.increment = 6: must be a multiple of 4"),
        ({"start": 2, "increment": 6, "samples": 9}, {}, 4, "train.batch_ramp.start = 2: must be a multiple of 4"),
        (
            {"start": 8, "increment": 1, "samples": 9},
            {"pipeline": 2, "virtual_stages": 2},
            2,
            "train.batch_ramp.increment = 1: must be a multiple of 2",
        ),
    ],
)
def test_a_ramp_that_does_not_fit_is_refused(ramp, parallel, world, expected):
    with pytest.raises(UsageError, match=expected.replace(".", r"\.")):
        resolve(make(ramp, **parallel), world)
