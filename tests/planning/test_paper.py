"""The 65B step on paper: it fits, its ledger is the closed forms', its memory is what a real step holds."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.layouts import Layout, build_trainer, my_batches

from megatron_lite.config import load_config, resolve
from megatron_lite.model.model import schedule_of
from megatron_lite.planning.memory import StorageTracker
from megatron_lite.planning.memory_forms import peak_memory
from megatron_lite.planning.paper import step_on_paper
from megatron_lite.planning.traffic import regather_costs, step_traffic
from tools.step_on_paper import enough, phase_table, recompute_table, table

EXAMPLES = Path(__file__).parents[2] / "examples" / "pretrain_65b"
WORLDS = (64, 128, 256, 512, 1024, 2048)
LIMIT = 72 * 2**30  # of 80: the rest is the context's, NCCL's buffers' and fragmentation's


def of(world: int):
    return load_config(EXAMPLES / f"gpus_{world}.yaml")


def forms(config, world: int, stage: int, microbatches: int):
    resolved = replace(resolve(config, world), microbatches=microbatches)
    return step_traffic(config, resolved, schedule_of(config, resolved, microbatches), stage)


def memory(config, world: int, stage: int, microbatches: int):
    resolved = replace(resolve(config, world), microbatches=microbatches)
    return peak_memory(config, resolved, schedule_of(config, resolved, microbatches), stage)


def shown(step):
    return {key: (entry.calls, entry.bytes) for key, entry in step.traffic.items()}


@pytest.mark.parametrize("stage", [0, 4, 7])
@pytest.mark.parametrize("world", WORLDS)
def test_every_role_fits_an_80_gb_gpu_and_sends_what_the_forms_say(world, stage):
    config = of(world)
    count = enough(config, world)
    step = step_on_paper(config, world, stage * world // 8, count)
    assert step.stage == stage
    assert step.peak < LIMIT
    assert step.peak == pytest.approx(memory(config, world, stage, count).total, rel=0.01)
    assert shown(step) == forms(config, world, stage, count)


@pytest.mark.parametrize("world", [pytest.param(64, marks=pytest.mark.nightly), 512])
def test_memory_stays_and_traffic_grows_evenly_once_the_pipeline_is_full(world):
    config = of(world)
    steps = [step_on_paper(config, world, 0, count) for count in (24, 32, 40)]
    # Token ids of the whole step are there from its start: samples, tokens and labels, 8 bytes each.
    ids = 8 * (3 * config.train.sequence_length + 1)
    assert len({step.peak - step.microbatches * ids for step in steps}) == 1
    for key in steps[0].traffic:
        sizes = [step.traffic[key].bytes for step in steps]
        assert sizes[2] - sizes[1] == sizes[1] - sizes[0], key


def test_regathering_each_microbatch_is_shown_with_what_once_would_cost():
    """By hand, for the last of two stages: two blocks and the head, 1F1B over two data ranks."""
    layout = Layout(pipeline=2, data=2, dtype="float32")
    config = layout.config()
    resolved = resolve(config, 4)
    costs = regather_costs(config, resolved, schedule_of(config, resolved, resolved.microbatches), 1)
    qkv, o, feed, norms = (32 + 2 * 16) * 32, 32 * 32, 3 * 40 * 32, 2 * 32
    block, head = qkv + o + feed + norms, 64 * 32 + 32  # 61 rows pad to 64; half of either is a multiple of 16
    m = resolved.microbatches
    # Blocks: F and B of each microbatch, less the pass where a block's B follows its F or its F follows its B.
    gathers = {"first": 2 * m - (m - 1), "second": 2 * m, "head": 2 * m - m}
    once = 2 * block + head
    assert costs.step == once * (4 + 4)
    assert costs.held == once * (4 + 4)
    moved = gathers["first"] * block + gathers["second"] * block + gathers["head"] * head
    assert costs.microbatch == 4 * moved + 4 * m * once


@pytest.mark.nightly
@pytest.mark.parametrize("world", WORLDS)
def test_the_whole_step_sends_what_the_forms_say(world):
    config = of(world)
    step = step_on_paper(config, world, 0)
    assert step.microbatches == resolve(config, world).microbatches
    assert shown(step) == forms(config, world, 0, step.microbatches)


TABLES = [
    ("512 GPUs", table),
    pytest.param("What recomputation saves", recompute_table, marks=pytest.mark.nightly),
    pytest.param("When a step sends", phase_table, marks=pytest.mark.nightly),
]


@pytest.mark.parametrize(("heading", "drawn"), TABLES)
def test_the_tables_in_the_examples_readme_are_todays(heading, drawn):
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"### {heading}\n\n[^|]*(\|.*?)\n\n", text, re.DOTALL)
    assert found.group(1).splitlines() == drawn(of(512), 512)


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_peak_on_paper_is_that_of_a_real_step(recompute, dtype):
    """On one process, where both can be seen; the tracker counts real storages as it counts meta ones. In bfloat16
    PyTorch's operations take more for a moment than kernels, so both run those.
    """
    layout = Layout(recompute=recompute, dtype=dtype, layers=6)
    config = layout.config(sequence_length=256, micro_batch_size=4)
    config = config.model_copy(update={"kernels": config.kernels.model_copy(update={"backend": "torch"})})
    tracker = StorageTracker(torch.device("cpu"))
    with tracker:
        trainer = build_trainer(layout, config=config)
        trainer.train_step(my_batches(trainer, 1), learning_rate=1e-3)
    paper = step_on_paper(config, 1, 0)
    assert paper.peak == pytest.approx(tracker.peak, rel=0.02)
