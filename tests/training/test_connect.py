"""What runs before the first step: it leaves no trace in weights, moments, gradients and losses."""

import copy

import pytest
import torch
from support.layouts import Layout, build_trainer, my_batches

from megatron_lite.optim.schedule import learning_rate
from megatron_lite.parallel.pipeline.stage import kinds_of


def state_of(trainer) -> list[torch.Tensor]:
    moments = [moment for pair in trainer.optimizer.moments for moment in pair]
    return [
        copy.deepcopy(tensor) for shards in trainer.stage.trained for tensor in (shards.master, shards.compute)
    ] + moments


def two_steps(layout: Layout, rehearsals: int) -> list[torch.Tensor]:
    trainer = build_trainer(layout)  # which rehearses once
    for _ in range(rehearsals - 1):
        trainer.rehearse()
    results = []
    for step in (1, 2):
        result = trainer.train_step(my_batches(trainer, step), learning_rate(step, trainer.config.optim))
        results += [result.loss, result.grad_norm, *(shards.gradient.clone() for shards in trainer.stage.trained)]
    return results + state_of(trainer)


@pytest.mark.parametrize("layout", [Layout(), Layout(recompute="full", tied=True, loss_chunk=5)], ids=str)
def test_rehearsing_changes_no_bit_of_a_step(layout):
    for once, thrice in zip(two_steps(layout, 1), two_steps(layout, 3), strict=True):
        assert torch.equal(once, thrice)


def test_rehearsing_in_the_middle_of_a_run_leaves_weights_and_moments():
    trainer = build_trainer(Layout())
    trainer.train_step(my_batches(trainer, 1), 0.01)
    before = state_of(trainer)
    trainer.rehearse()
    assert all(torch.equal(a, b) for a, b in zip(before, state_of(trainer), strict=True))
    assert not any(shards.held for shards in trainer.stage.shards)


def test_each_kind_of_unit_is_rehearsed_once():
    trainer = build_trainer(Layout(layers=5, recompute="every_2"))
    names = [(type(unit).__name__, unit.recompute) for unit in kinds_of(trainer.stage)]
    assert names == [("Embedding", "none"), ("Block", "full"), ("Block", "none"), ("Head", "none")]
