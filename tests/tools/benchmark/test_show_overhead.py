"""Where the time goes: the kinds of a rank's step add up to it, and waiting is told by axis."""

import argparse

import pytest

from tools.benchmark.compare_throughput import parse_layout
from tools.benchmark.show_overhead import KINDS, dividing_layout, growth_row, run

TINY = ["--num-hidden-layers=2", "--hidden-size=32", "--num-attention-heads=4", "--num-key-value-heads=2",
        "--intermediate-size=48", "--vocab-size=64", "--sequence-length=16", "--steps=3", "--warmup=1"]  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "axis"),
    [
        ("p2", "pipeline"),
        pytest.param("t2", "tensor", marks=pytest.mark.nightly),
        pytest.param("d2", "zero", marks=pytest.mark.nightly),
    ],
)
def test_the_kinds_add_up_to_the_step_and_only_its_axis_is_waited_for_between_steps(layout, axis):
    ranks = run(parse_layout(layout), "step", TINY)
    assert len(ranks) == 2
    for rank in ranks:
        assert sum(rank.get(kind, 0.0) for kind in KINDS) == pytest.approx(rank["step"], rel=1e-6)
        waited = {kind.removeprefix("waiting for ") for kind in rank if kind.startswith("waiting")}
        assert axis in waited
        assert waited <= {axis, "world"}
        assert rank["products"] > 0 and rank["attention"] > 0 and rank["processor"] > 0


def test_data_ranks_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(argparse.ArgumentTypeError, match="data 3 must divide the batch of 8 sequences"):
        dividing_layout("t2d3")


def test_growth_counts_the_processor_time_of_all_ranks():
    ranks = [{"step": 2.0, "processor": 1.5}, {"step": 2.0, "processor": 2.5}]
    assert growth_row(parse_layout("t2"), ranks, 3.2) == "| t2 | 2 | 2.00 | 4.00 | 1.25 |"
