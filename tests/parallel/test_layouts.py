"""Every layout is one process: losses, gradient norms, raw gradients and weights, in float64 and in mixed precision."""

from dataclasses import replace

import numpy as np
import pytest
from nccl_replay import ReplayError, replay
from support.host_traffic import traffic_of
from support.layouts import (
    Layout,
    Outcome,
    assemble,
    build_trainer,
    differences,
    global_batch,
    owned_blocks,
    remembering,
    run_layout,
)
from support.reference import train as reference_train
from torch import from_numpy

from megatron_lite.config import LoraConfig, resolve
from megatron_lite.optim.schedule import learning_rate
from megatron_lite.parallel.ledger import Entry, connect_ledger, ledger
from megatron_lite.planning.traffic import connect_traffic, step_traffic

TOLERANCE = 1e-10
CUBE = Layout(tensor=2, pipeline=2, data=2)
EVERY_TARGET = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LORA = LoraConfig(rank=3, alpha=5.0, dropout=0.3, targets=EVERY_TARGET)

LAYOUTS = [
    *(Layout(tensor=2, sequence=sequence) for sequence in (True, False)),
    Layout(tensor=2, tied=True),
    *(Layout(pipeline=2, schedule=schedule) for schedule in ("1f1b", "gpipe", "zb_h1")),
    *(Layout(pipeline=p, tied=True) for p in (2, 4)),
    Layout(pipeline=4, layers=5),
    Layout(pipeline=2, stage_layers=(1, 3)),
    *(Layout(data=data, zero_stage=stage) for data, stage in ((2, 0), (3, 1), (2, 2), (3, 3))),
    Layout(data=3, zero_stage=3, zero_regather="step", tied=True),
    Layout(data=2, zero_stage=0, tied=True),
    *(replace(CUBE, zero_regather=r, schedule=s) for r, s in (("microbatch", "1f1b"), ("step", "gpipe"))),
    replace(CUBE, tied=True, zero_stage=1, sequence=False),
    replace(CUBE, tied=True, zero_regather="step", sequence=False),
    replace(CUBE, zero_stage=2, stage_layers=(3, 1)),
    replace(CUBE, recompute="full"),
    replace(CUBE, recompute="selective", split=2, tied=True),
    Layout(pipeline=2, virtual_stages=2),
    Layout(pipeline=2, schedule="zb_v", virtual_stages=2, tied=True),
    Layout(pipeline=3, virtual_stages=2, layers=8),
    Layout(pipeline=2, virtual_stages=2, stage_layers=(2, 1, 1, 1), layers=5, split=3),
    *(Layout(data=4, zero_group=2, zero_stage=stage) for stage in (1, 3)),
    Layout(pipeline=2, data=4, zero_group=2, tied=True, zero_regather="step"),
    *(Layout(context=2, context_kind=kind) for kind in ("ring", "ulysses")),
    Layout(context=2, data=2, context_kind="ring", zero_stage=0),
    Layout(context=2, tensor=2, pipeline=2, recompute="selective", split=1),
    Layout(context=4, pipeline=2, zero_group=2, schedule="zb_v", virtual_stages=2, tied=True),
    Layout(tensor=2, documents=True),
    *(Layout(context=2, context_kind=kind, documents=True) for kind in ("ring", "ulysses")),
    *(Layout(context=2, context_kind=kind, resets=True, documents=kind == "ring") for kind in ("ring", "ulysses")),
    *(Layout(tensor=2, loss_chunk=chunk, sequence=sequence) for chunk, sequence in ((3, True), (100, False))),
    Layout(pipeline=2, loss_chunk=5, schedule="gpipe", tied=True),
    replace(CUBE, loss_chunk=3, schedule="zb_h1", tied=True),
    replace(CUBE, schedule="zb_v", virtual_stages=2, zero_regather="step", recompute="full"),
    replace(CUBE, virtual_stages=2, recompute="selective", tied=True),
]
# Their neighbours: one choice apart, or more ranks.
MORE = [
    Layout(tensor=2, sequence=False, tied=True),
    *(Layout(pipeline=4, schedule=schedule) for schedule in ("1f1b", "gpipe", "zb_h1")),
    Layout(pipeline=2, layers=5),
    *(Layout(data=data, zero_stage=stage) for data in (2, 4, 3) for stage in (0, 1, 2, 3)),
    *(Layout(data=data, zero_stage=stage, zero_regather="step") for data in (2, 3) for stage in (2, 3)),
    Layout(data=3, zero_stage=3, tied=True),
    *(replace(CUBE, zero_regather=r, schedule=s) for r, s in (("microbatch", "gpipe"), ("step", "1f1b"))),
    replace(CUBE, tied=True),
    replace(CUBE, tied=True, zero_stage=0),
    replace(CUBE, sequence=False, schedule="gpipe"),
    replace(CUBE, layers=5),
    replace(CUBE, recompute="every_2", tied=True),
    replace(CUBE, recompute="selective", split=0),
    replace(CUBE, split=2, zero_regather="step", sequence=False),
    Layout(tensor=2, pipeline=4, tied=True),
    Layout(pipeline=4, data=2, split=1, tied=True),
    Layout(pipeline=2, virtual_stages=2, tied=True),
    Layout(pipeline=2, schedule="zb_v", virtual_stages=2),
    Layout(pipeline=3, schedule="zb_v", virtual_stages=2, layers=7),
    Layout(pipeline=1, virtual_stages=2),
    Layout(data=4, zero_group=2, zero_stage=2),
    Layout(data=4, zero_group=1),
    Layout(tensor=2, data=4, zero_group=2, tied=True),
    *(Layout(context=2, tensor=2, context_kind=kind, tied=True) for kind in ("ring", "ulysses")),
    Layout(context=2, data=2, context_kind="ulysses", zero_stage=3),
    Layout(context=2, tensor=2, pipeline=2, context_kind="ulysses", recompute="full", sequence=False),
    *(Layout(context=4, context_kind=kind, documents=d) for kind in ("ring", "ulysses") for d in (False, True)),
    Layout(context=2, tensor=2, pipeline=2, documents=True, recompute="selective"),
    *(Layout(tensor=2, loss_chunk=chunk, sequence=sequence) for chunk in (8, 100) for sequence in (True, False)),
    Layout(data=2, loss_chunk=5, zero_stage=2, tied=True),
    replace(CUBE, loss_chunk=3, schedule="gpipe"),
    replace(CUBE, loss_chunk=4, schedule="zb_v", virtual_stages=2, zero_regather="step"),
    Layout(context=2, tensor=2, loss_chunk=1, documents=True),
    replace(CUBE, schedule="zb_h1", tied=True),
    replace(CUBE, schedule="zb_v", virtual_stages=2, tied=True),
    replace(CUBE, virtual_stages=2, zero_stage=1, sequence=False),
    replace(CUBE, lora=LORA, neftune=5.0, recompute="selective"),
    replace(CUBE, lora=LORA, neftune=5.0, schedule="zb_h1", sequence=False, zero_regather="step", tied=True),
]
EVERY = [*LAYOUTS, *(pytest.param(layout, marks=pytest.mark.nightly) for layout in MORE if layout not in LAYOUTS)]


@pytest.fixture(scope="module")
def outcomes(ranks):
    return remembering(ranks)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_one_process_trains_as_plain_pytorch_does(outcomes, tied):
    layout = Layout(tied=tied)
    trainer = build_trainer(layout)
    config = trainer.config
    initial = {name: from_numpy(value) for name, value in assemble([owned_blocks(trainer, "master")]).items()}
    steps = range(1, layout.steps + 1)
    batches = [global_batch(step, config) for step in steps]
    expected = Outcome(
        *reference_train(initial, batches, config, [learning_rate(step, config.optim) for step in steps])
    )
    found = differences(outcomes(layout), expected)
    assert max(found.values()) < TOLERANCE, found


@pytest.mark.parametrize("layout", EVERY, ids=str)
def test_layout_equals_one_process_in_float64(outcomes, layout):
    found = differences(outcomes(layout), outcomes(layout.single()))
    assert max(found.values()) < TOLERANCE, {name: value for name, value in found.items() if value >= TOLERANCE}


@pytest.mark.parametrize("layout", EVERY, ids=str)
def test_transcript_completes_under_nccl_rules(outcomes, layout):
    replay(outcomes(layout).transcripts)


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout.pipeline > 1], ids=str)
def test_without_the_connect_phase_every_pipeline_stands_still_in_its_first_step(outcomes, layout):
    steps = [[event for event in events if event.phase != "connect"] for events in outcomes(layout).transcripts]
    with pytest.raises(ReplayError, match=r"deadlock: .* is held by the first recv pipeline\."):
        replay(steps)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("layout", EVERY, ids=str)
def test_ledger_equals_its_closed_forms_to_the_byte(outcomes, layout, dtype):
    layout = layout if dtype == "float64" else replace(layout, dtype=dtype, steps=1)
    config = layout.config()
    resolved = resolve(config, layout.world)
    schedule = layout.schedule_of(config, resolved, resolved.microbatches)
    for rank, events in enumerate(outcomes(layout).transcripts):
        stage = rank // (layout.world // layout.pipeline)
        step = step_traffic(config, resolved, schedule, stage)
        expected = {key: (layout.steps * calls, layout.steps * size) for key, (calls, size) in step.items()}
        assert shown(ledger(events)) == expected, f"rank {rank}"
        assert shown(connect_ledger(events)) == connect_traffic(config, resolved, schedule, stage), f"rank {rank}"


def shown(entries: dict[tuple[str, str], Entry]) -> dict[tuple[str, str], tuple[int, int]]:
    return {key: (entry.calls, entry.bytes) for key, entry in entries.items()}


def _error(ours: np.ndarray, exact: np.ndarray) -> float:
    """Root of the mean squared difference; of the same tensors, so no scale is needed to compare two of them."""
    return float(np.sqrt(np.mean((ours - exact) ** 2)))


@pytest.mark.parametrize("layout", EVERY, ids=str)
def test_layout_in_bfloat16_errs_at_most_twice_as_much_as_one_process(outcomes, layout):
    layout = replace(layout, dtype="bfloat16", steps=1)
    exact = outcomes(replace(layout.single(), dtype="float64"))
    ours, one = outcomes(layout), outcomes(layout.single())
    ratios = {
        name: _error(ours.gradients[name], truth) / _error(one.gradients[name], truth)
        for name, truth in exact.gradients.items()
    }
    assert max(ratios.values()) <= 2, {name: ratio for name, ratio in ratios.items() if ratio > 2}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_runs_of_one_layout_agree_to_the_bit(ranks, dtype):
    layout = replace(CUBE, tied=True, dtype=dtype)
    first, second = run_layout(ranks, layout), run_layout(ranks, layout)
    assert (first.losses, first.norms) == (second.losses, second.norms)
    for kind in ("gradients", "weights"):
        for name, values in getattr(first, kind).items():
            assert np.array_equal(values, getattr(second, kind)[name]), name


@pytest.mark.parametrize("layout", EVERY, ids=str)
def test_a_step_copies_nothing_between_host_and_device_and_reads_nothing_back(layout):
    """Inside `Trainer.train_step`, from samples on the device to updated weights, where the pipeline begins and ends.

    The step's totals come back as tensors on the device. The loop reads them once, when the update is issued.
    """
    for rank in sorted({0, layout.world - 1} if layout.pipeline > 1 else {layout.world - 1}):
        assert traffic_of(layout, rank) == []
