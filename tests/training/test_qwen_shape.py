"""Heads of a size of their own, and normalized before they turn: every layout has a plain model's gradients."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from nccl_replay import replay
from support.layouts import (
    Layout,
    RankOutcome,
    assemble,
    build_trainer,
    distance,
    global_batch,
    my_batches,
    owned_blocks,
)
from support.paper import assert_memory_is, memory_form, ranks_of, wide_config
from support.reference import objective as plain_objective

from megatron_lite.config import resolve
from megatron_lite.model.model import schedule_of
from megatron_lite.parallel.collectives import Recorder
from megatron_lite.parallel.ledger import ledger
from megatron_lite.planning.paper import step_on_paper
from megatron_lite.planning.traffic import step_traffic

QWEN = Layout(head_dim=12, qk_norm=True)  # of 4 heads over 32 numbers
CUBE = replace(QWEN, tensor=2, pipeline=2, data=2)
LAYOUTS = [
    QWEN,
    replace(QWEN, head_dim=None),
    replace(QWEN, qk_norm=False),
    replace(CUBE, schedule="zb_h1", tied=True),
    replace(CUBE, recompute="selective", sequence=False, loss_chunk=5),
    replace(QWEN, tensor=2, context=2, recompute="full", documents=True),
    replace(QWEN, context=2, context_kind="ulysses", data=2, zero_stage=0),
]


def spread(trainer) -> None:
    """Norms begin at one, whose gradients' sums would hide a weight at the wrong place."""
    for shards in trainer.stage.shards:
        for _, box in shards.layout.boxes(shards.sharding.rank):
            if "norm" in box.logical.name:
                place = shards.values[box.offset : box.offset + box.size]
                index = torch.arange(box.size) + box.start[0]
                place.copy_(1 + 0.3 * torch.sin(index * len(box.logical.name)))
        shards.refresh()


def run(layout: Layout) -> RankOutcome:
    """Weights, and of step 1 gradients, loss, norm and transcript."""
    recorder = Recorder()
    trainer = build_trainer(layout, recorder)
    spread(trainer)
    weights = owned_blocks(trainer, "master")
    result = trainer.gradients(my_batches(trainer, 1))
    return RankOutcome(
        losses=[result.loss.item()],
        norms=[result.grad_norm.item()],
        weights=weights,
        gradients=owned_blocks(trainer, "gradient"),
        events=recorder.events,
    )


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout}-{layout.head_dim}-{layout.qk_norm}")
def test_a_layout_has_the_gradients_of_a_plain_model(ranks, layout):
    found = [run(layout)] if layout.world == 1 else ranks.run(run, layout.world, layout)
    weights = {name: torch.from_numpy(w).requires_grad_() for name, w in assemble([r.weights for r in found]).items()}
    assert ("model.layers.0.self_attn.q_norm.weight" in weights) == layout.qk_norm
    config = layout.config()
    if layout.documents:
        expected = run(layout.single())
        gradients, loss, norm = assemble([expected.gradients]), expected.losses[0], expected.norms[0]
    else:
        plain, total = plain_objective(weights, global_batch(1, config), config.model, config.train.z_loss)
        total.backward()
        gradients, loss = {name: weight.grad.numpy() for name, weight in weights.items()}, plain.item()
        norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
    ours = assemble([rank.gradients for rank in found])
    errors = {name: distance(ours[name], gradients[name]) for name in gradients}
    assert max(errors.values()) < 1e-10, errors
    for rank in found:
        assert (rank.losses[0], rank.norms[0]) == pytest.approx((loss, norm), rel=1e-10)
    if layout.world > 1:
        replay([rank.events for rank in found])
        traffic = step_traffic(config, resolve(config, layout.world), schedule(layout), 0)
        events = [event for event in found[0].events if event.phase != "connect"]
        assert {key: (entry.calls, entry.bytes) for key, entry in ledger(events).items()} == traffic


def schedule(layout: Layout):
    config = layout.config()
    resolved = resolve(config, layout.world)
    return schedule_of(config, resolved, resolved.microbatches)


PAPER = [
    replace(QWEN, dtype="bfloat16"),
    replace(CUBE, dtype="bfloat16", recompute="selective"),
    pytest.param(replace(CUBE, dtype="bfloat16", schedule="zb_h1"), marks=pytest.mark.nightly),
    pytest.param(replace(QWEN, dtype="bfloat16", recompute="full", tensor=2), marks=pytest.mark.nightly),
    pytest.param(replace(QWEN, dtype="float32", context=2), marks=pytest.mark.nightly),
]


@pytest.mark.parametrize("layout", PAPER, ids=str)
def test_the_peak_on_paper_is_the_closed_forms(layout):
    config = wide_config(layout, sequence_length=256)
    for rank in ranks_of(layout):
        step = step_on_paper(config, layout.world, rank)
        assert_memory_is(step, memory_form(config, layout.world, step.stage))
