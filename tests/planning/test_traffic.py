"""The closed forms are what the ledger shows, to the byte, for every layout of the equality tests."""

import pytest
from parallel.test_layouts import LAYOUTS
from support.layouts import run_rank

from megatron_lite.config import resolve
from megatron_lite.parallel.ledger import ledger
from megatron_lite.parallel.pipeline.schedules import split_backward
from megatron_lite.planning.traffic import step_traffic
from megatron_lite.training.step import schedule_of


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_every_byte_of_a_step_is_the_formulas(ranks, layout, dtype):
    from dataclasses import replace

    layout = replace(layout, dtype=dtype, steps=1)
    config = layout.config()
    resolved = resolve(config, layout.world)
    schedule = schedule_of(config, resolved, resolved.microbatches)
    if layout.split is not None:
        schedule = split_backward(schedule, layout.split)
    results = [run_rank(layout)] if layout.world == 1 else ranks.run(run_rank, layout.world, layout)
    for rank, result in enumerate(results):
        stage = rank // (layout.world // layout.pipeline)
        shown = {key: (entry.calls, entry.bytes) for key, entry in ledger(result.events).items()}
        assert shown == step_traffic(config, resolved, schedule, stage), f"rank {rank}"
