"""The moving average of weights: a plain loop's numbers on every layout, for one buffer and no message."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from support.checkpoints import owned
from support.host_traffic import traffic_of
from support.layouts import Blocks, Layout, Tensors, assemble, build_trainer, distance, my_batches, owned_blocks

from megatron_lite.config import config_from_tree
from megatron_lite.errors import UsageError
from megatron_lite.optim.schedule import learning_rate
from megatron_lite.parallel.collectives import Event, Recorder

STEPS = 3
DECAY = 0.7
ONE = Layout(layers=2, ema=DECAY)
LAYOUTS = [
    ONE,
    replace(ONE, tensor=2),
    replace(ONE, pipeline=2, tied=True),
    replace(ONE, data=2),
    replace(ONE, data=2, zero_stage=0),
    replace(ONE, pipeline=2, data=2, trainable=("*.mlp.*", "model.norm.weight")),
]


@dataclass
class Found:
    """Of one rank: its part of the weights before the first step and after each one, of the average at the end, and
    what was sent.
    """

    masters: list[Blocks]
    average: Blocks
    events: list[Event]


def run(layout: Layout) -> Found:
    recorder = Recorder()
    trainer = build_trainer(layout, recorder)
    masters = [owned_blocks(trainer, "master")]
    for step in range(1, STEPS + 1):
        trainer.train_step(my_batches(trainer, step), learning_rate(step, trainer.config.optim))
        masters.append(owned_blocks(trainer, "master"))
    return Found(masters, owned(trainer)["ema"], recorder.events)


def runs(ranks, layout: Layout) -> list[Found]:
    return [run(layout)] if layout.world == 1 else ranks.run(run, layout.world, layout)


def plain_average(masters: list[Tensors], decay: float) -> Tensors:
    """In float64, from the weights before the first step and after each one."""
    average = masters[0]
    for master in masters[1:]:
        average = {name: decay * average[name] + (1 - decay) * master[name] for name in master}
    return average


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_average_is_a_plain_loops_over_what_is_trained_and_over_nothing_else(ranks, layout):
    found = runs(ranks, layout)
    masters = [assemble([rank.masters[step] for rank in found]) for step in range(STEPS + 1)]
    ours, expected = assemble([rank.average for rank in found]), plain_average(masters, DECAY)
    assert ours.keys() == expected.keys() == masters[0].keys()
    errors = {name: distance(ours[name], expected[name]) for name in expected}
    assert max(errors.values()) < 1e-14, errors
    assert all(distance(ours[name], masters[-1][name]) > 1e-4 for name in ours)


def test_beside_bfloat16_it_is_kept_in_float32():
    found = run(replace(ONE, dtype="bfloat16"))
    expected = plain_average([assemble([blocks]) for blocks in found.masters], DECAY)
    for name, average in assemble([found.average]).items():
        assert distance(average, expected[name]) < 1e-6
        assert distance(average, torch.from_numpy(average).bfloat16().double().numpy()) > 1e-4  # as rounding would move


@pytest.mark.parametrize("layout", [ONE, replace(ONE, data=2)], ids=str)
def test_it_sends_nothing_and_changes_no_bit_of_the_weights(ranks, layout):
    with_it, without = (runs(ranks, one) for one in (layout, replace(layout, ema=None)))
    for ours, theirs in zip(with_it, without, strict=True):
        assert ours.events == theirs.events
        for (_, _, here), (_, _, there) in zip(ours.masters[-1], theirs.masters[-1], strict=True):
            assert np.array_equal(here, there)
        assert ours.average and not theirs.average


def test_the_host_only_gives_orders_for_it():
    assert traffic_of(ONE, 0) == []


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, True])
def test_a_decay_that_is_none_is_refused_by_name(decay):
    tree = Layout().config().model_dump(mode="json")
    with pytest.raises(UsageError, match=rf"train\.ema = {str(decay).lower()}: must be"):
        config_from_tree(tree | {"train": tree["train"] | {"ema": decay}})
