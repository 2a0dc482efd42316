"""Simulated times against the closed forms, exactly, in integers and fractions."""

from fractions import Fraction

import pytest

from megatron_lite.parallel.pipeline.schedules import (
    gpipe,
    interleaved_1f1b,
    one_f_one_b,
    split_backward,
    zb_h1,
    zb_v,
)
from megatron_lite.parallel.pipeline.simulator import Costs, simulate

GRID = [(stages, microbatches) for stages in (1, 2, 3, 4, 8) for microbatches in (1, 2, 3, 4, 7, 8, 16)]
COSTS = [Costs(1, 1, 0), Costs(1, 1, 1), Costs(3, 2, 1), Costs(2, 7, 5)]


@pytest.mark.parametrize("build", [gpipe, one_f_one_b])
@pytest.mark.parametrize("costs", COSTS, ids=str)
@pytest.mark.parametrize(("stages", "microbatches"), GRID)
def test_bubble_is_stages_less_one_over_microbatches(build, stages, microbatches, costs):
    timeline = simulate(build(stages, 1, microbatches), costs)
    both = costs.forward + costs.backward_input + costs.backward_weight
    assert timeline.makespan == (microbatches + stages - 1) * both
    assert timeline.idle == ((stages - 1) * both,) * stages
    assert Fraction(sum(timeline.idle), stages * microbatches * both) == Fraction(stages - 1, microbatches)
    assert timeline.bubble == pytest.approx((stages - 1) / microbatches)


@pytest.mark.parametrize("costs", COSTS, ids=str)
@pytest.mark.parametrize("chunks", [2, 3, 4])
@pytest.mark.parametrize(("stages", "groups"), [(1, 4), (2, 1), (2, 4), (3, 2), (4, 1), (4, 4), (8, 2)])
def test_interleaving_divides_the_bubble_by_the_chunks(stages, groups, chunks, costs):
    """The costs are a chunk's, so a whole stage's are `chunks` times as much."""
    microbatches = groups * stages
    timeline = simulate(interleaved_1f1b(stages, chunks, microbatches), costs)
    whole_stage = chunks * (costs.forward + costs.backward_input + costs.backward_weight)
    assert timeline.idle == (Fraction((stages - 1) * whole_stage, chunks),) * stages
    assert timeline.bubble == pytest.approx((stages - 1) / (chunks * microbatches))


H1_COSTS = [Costs(f, i, w) for f in (1, 2, 3, 5) for i in (1, 2, 3, 5) for w in (0, 1, 2, 3) if w <= min(f, i)]


@pytest.mark.parametrize("costs", H1_COSTS, ids=str)
@pytest.mark.parametrize(("stages", "microbatches"), [(s, m) for s, m in GRID if m >= s])
def test_zb_h1_idles_for_forward_and_input_gradient_less_a_weight_gradient(stages, microbatches, costs):
    timeline = simulate(zb_h1(stages, 1, microbatches), costs)
    idle = (stages - 1) * (costs.forward + costs.backward_input - costs.backward_weight)
    assert timeline.idle == (idle,) * stages


@pytest.mark.parametrize(("stages", "microbatches"), [(s, m) for s, m in GRID if m >= 2 * s - 1] + [(16, 31), (16, 64)])
def test_zb_v_idles_only_for_its_first_activations_if_all_passes_cost_the_same(stages, microbatches):
    assert simulate(zb_v(stages, 2, microbatches), Costs(1, 1, 1)).idle == (stages - 1,) * stages


@pytest.mark.parametrize("costs", COSTS, ids=str)
def test_splitting_the_backward_without_delay_shortens_only_what_waits_for_input_gradients(costs):
    stages, microbatches = 4, 8
    timeline = simulate(split_backward(gpipe(stages, 1, microbatches), 0), costs)
    both = costs.forward + costs.backward_input + costs.backward_weight
    # The first gradient now climbs the stages in backward_input each; the rest keeps the pace of the last stage.
    assert timeline.makespan == (microbatches + stages - 1) * both - (stages - 1) * costs.backward_weight


def test_each_hop_adds_the_cost_of_a_message():
    for message in (0, 1, 5):
        timeline = simulate(gpipe(4, 1, 1), Costs(1, 1, 1, message))
        assert timeline.makespan == 4 * 3 + 6 * message


def test_spans_of_a_small_1f1b_are_those_drawn_by_hand():
    timeline = simulate(one_f_one_b(2, 1, 2), Costs(1, 1, 1))
    rows = [[(str(span.action), span.start, span.end) for span in row] for row in timeline.spans]
    assert rows == [
        [("F0", 0, 1), ("F1", 1, 2), ("B0", 4, 6), ("B1", 7, 9)],
        [("F0", 1, 2), ("B0", 2, 4), ("F1", 4, 5), ("B1", 5, 7)],
    ]
    assert timeline.idle == (3, 3)
