"""The ledger by phase: what forward, backward and the end of a step hand to each axis, against counts made by hand."""

from support.layouts import Layout

from megatron_lite.planning.paper import step_on_paper

REGION = 16 * 32 * 8  # bytes of one microbatch's activations: positions x hidden size x float64


def phases_of(layout: Layout):
    step = step_on_paper(layout.config(), layout.world, 0)
    return {key: (entry.calls, entry.bytes) for key, entry in step.phases.items()}, step


def test_tensor_traffic_by_phase_is_that_of_sequence_parallelism():
    """Korthikanti et al. 2022: a block gathers and scatters twice each way; we gather both inputs once more."""
    found, step = phases_of(Layout(tensor=2, pipeline=2))
    m, blocks = step.microbatches, 2
    embedding = 1  # scattered in its forward, gathered in its backward
    assert found["F", "tensor"] == (m * (4 * blocks + embedding), m * (4 * blocks + embedding) * REGION)
    assert found["B", "tensor"] == (m * (6 * blocks + embedding), m * (6 * blocks + embedding) * REGION)


def test_split_backwards_gather_their_inputs_again_with_the_weights():
    found, step = phases_of(Layout(tensor=2, pipeline=2, schedule="zb_h1"))
    m, blocks = step.microbatches, 2
    assert ("B", "tensor") not in found
    assert found["I", "tensor"] == (m * (4 * blocks + 1), m * (4 * blocks + 1) * REGION)
    assert found["W", "tensor"] == (m * 2 * blocks, m * 2 * blocks * REGION)


def test_phases_add_up_to_the_ledger_by_site():
    _, step = phases_of(Layout(tensor=2, pipeline=2, data=2, tied=True, recompute="full"))
    for field in ("calls", "bytes"):
        by_phase, by_site = ([getattr(entry, field) for entry in side.values()] for side in (step.phases, step.traffic))
        assert sum(by_phase) == sum(by_site)
