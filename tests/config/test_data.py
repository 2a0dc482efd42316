"""Blends, their schedule and their names: what fits, and the one line for what does not."""

from typing import Any

import pytest

from megatron_lite.config import Config, config_from_tree, dump, samples_of_run
from megatron_lite.config.yaml_reader import parse_yaml
from megatron_lite.errors import UsageError


def make(data: dict[str, Any], **train: Any) -> Config:
    return config_from_tree(
        {
            "model": {"preset": "nano"},
            "data": data,
            "optim": {"lr": 1e-3},
            "train": {"steps": 10, "global_batch_size": 8, "sequence_length": 16, "run_dir": "unused", **train},
        }
    )


TWO = [{"prefix": "a", "weight": 0.8}, {"prefix": "b", "weight": 0.2}]


def test_weights_change_by_tokens_and_a_source_may_begin_later():
    train = [{"prefix": "a"}, {"prefix": "late", "weight": 0, "fim": {"rate": 0.9}}]
    data = make({"train": train, "schedule": [{"from_tokens": 3_000_000_000_000, "weights": [0.5, 0.5]}]}).data
    assert (data.schedule[0].from_tokens, data.schedule[0].weights) == (3_000_000_000_000, (0.5, 0.5))
    assert (data.train[1].fim.rate, data.train[1].fim.spm_rate, data.train[0].fim) == (0.9, 0.5, None)


def test_what_is_dumped_loads_as_the_same_blend():
    data = {
        "train": TWO,
        "schedule": [{"from_tokens": 5, "weights": [1.0, 0.0]}],
        "valid": [{"prefix": "v", "name": "V"}],
    }
    config = make(data)
    assert config_from_tree(parse_yaml(dump(config), "dump")) == config


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"train": [{"prefix": "a", "weight": 0}]}, "data.train: every weight is 0"),
        ({"train": TWO, "valid": [{"prefix": "a", "weight": 0}]}, "data.valid: every weight is 0"),
        ({"train": [{"prefix": "a", "weight": -1}]}, "data.train[0].weight = -1"),
        ({"train": [*TWO, {"prefix": "c", "weight": 0}]}, "data.train[2].weight = 0: must be above 0, here or in"),
        (
            {"valid": [{"prefix": "a", "name": "x"}, {"prefix": "b", "name": "x"}]},
            "data.valid: the name 'x' stands twice",
        ),
        (
            {"train": TWO, "schedule": [{"from_tokens": 5, "weights": [1.0]}]},
            "data.schedule[0].weights = [1.0]: must be 2, one for each of data.train",
        ),
        ({"train": TWO, "schedule": [{"from_tokens": 5, "weights": [0, 0]}]}, "not all 0"),
        ({"train": TWO, "schedule": [{"from_tokens": 0, "weights": [1, 1]}]}, "data.schedule[0].from_tokens = 0"),
        (
            {"train": TWO, "schedule": [{"from_tokens": n, "weights": [1, 1]} for n in (5, 5)]},
            "data.schedule[1].from_tokens = 5: must be above 5, the one before",
        ),
        ({"train": TWO, "shedule": []}, "data.shedule"),
        ({"train": [{"prefix": "a", "fim": {"rate": 0}}]}, "data.train[0].fim.rate = 0"),
        ({"train": [{"prefix": "a", "fim": {"rat": 1}}]}, "did you mean data.train[0].fim.rate?"),
        ({"order": "megatron", "train": [{"prefix": "a", "fim": {}}]}, "data.order = megatron: does not go with fim"),
        (
            {"order": "megatron", "train": TWO, "schedule": [{"from_tokens": 5, "weights": [1, 1]}]},
            "data.order = megatron: does not go with data.schedule",
        ),
        (
            {"order": "megatrn"},
            "data.order = megatrn: not available; accepted today: stable or megatron; did you mean megatron?",
        ),
        ({"seed": 2**64}, "data.seed = 18446744073709551616"),
    ],
)
def test_a_blend_that_does_not_fit_ends_in_one_line(data, words):
    with pytest.raises(UsageError) as error:
        make(data)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_run_reads_what_its_steps_take():
    assert samples_of_run(make({}).train) == 80
    ramp = {"start": 2, "increment": 2, "samples": 20}
    # 2, 2, 2, 2 to sample 8 (increments at 20/3 and 40/3 samples), then 4, 4, then 6 and on with 8.
    for steps in range(1, 12):
        train = make({}, steps=steps, batch_ramp=ramp).train
        sizes = [2, 2, 2, 2, 4, 4, 6, 8, 8, 8, 8][:steps]
        assert samples_of_run(train) == sum(sizes)
