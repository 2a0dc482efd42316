"""The walk over units: released weights are gone, at most two units are gathered, and a step's plan is as written."""

import time
from dataclasses import dataclass, replace

import pytest
import torch
from support.layouts import Layout, build_trainer, differences, my_batches, run_layout
from torch.multiprocessing.reductions import StorageWeakRef

from megatron_lite.parallel.walk import Use, plan_turns
from megatron_lite.parallel.zero import Policy, Shards, policy_of

SPIKE = Layout(tensor=2, pipeline=2, data=2, split=2, recompute="selective", tied=True)


def test_split_recomputed_tied_regathering_cube_has_the_gradients_of_one_process(ranks):
    found = differences(run_layout(ranks, SPIKE), run_layout(ranks, SPIKE.single()))
    assert max(found.values()) < 1e-10, found


@dataclass
class StorageLog:
    """What a rank saw: storages alive after their release, gathers in all, most units gathered at once."""

    survivors: list[str]
    gathers: int = 0
    most_units: int = 0


def _gone(storage: StorageWeakRef) -> bool:
    """Whether the memory was freed; gloo's own thread lets go of a finished operation's buffers a moment later."""
    deadline = time.monotonic() + 2
    while not storage.expired() and time.monotonic() < deadline:
        time.sleep(0.001)
    return storage.expired()


def _watch_storages(layout: Layout) -> StorageLog:
    """Run a step and look, after each release, whether the full weights' memory is really gone."""
    trainer = build_trainer(layout)
    log = StorageLog([])
    storages: dict[int, list[StorageWeakRef]] = {}
    wait, release = Shards.wait_gather, Shards.release

    def watched_wait(shards):
        wait(shards)
        if id(shards) not in storages:
            log.gathers += 1
            storages[id(shards)] = [StorageWeakRef(w.full.untyped_storage()) for w in shards.weights]
        log.most_units = max(log.most_units, sum(s.held for s in trainer.stage.shards))

    def watched_release(shards):
        release(shards)
        for weight, storage in zip(shards.weights, storages.pop(id(shards)), strict=True):
            if not _gone(storage):
                log.survivors.append(f"{shards.name} {weight.local.name}")

    Shards.wait_gather, Shards.release = watched_wait, watched_release
    try:
        trainer.gradients(my_batches(trainer, 1))
    finally:
        Shards.wait_gather, Shards.release = wait, release
    return log


@pytest.mark.parametrize(
    "layout", [SPIKE, replace(SPIKE, split=None, recompute="full"), replace(SPIKE, recompute="none")], ids=str
)
def test_released_weights_leave_no_storage_behind(ranks, layout):
    logs = ranks.run(_watch_storages, layout.world, layout)
    assert [log.survivors for log in logs] == [[]] * layout.world
    # 6 microbatches; forward and backward gather each of three units, less those that stay over a turn.
    assert min(log.gathers for log in logs) > 6 * 3


def test_at_most_two_units_are_gathered_at_once_in_an_untied_model(ranks):
    layout = replace(SPIKE, tied=False)
    assert {log.most_units for log in ranks.run(_watch_storages, layout.world, layout)} <= {1, 2}


def test_step_policy_gathers_each_unit_once(ranks):
    layout = replace(SPIKE, tied=False, zero_regather="step")
    assert {log.gathers for log in ranks.run(_watch_storages, layout.world, layout)} == {3}


def _names(turns, part):
    return ["".join(getattr(turn, part)) for turn in turns]


def test_turns_gather_one_ahead_and_release_what_the_next_does_not_need():
    # Forward a b c, backward c b a, of shards named by letters; plan_turns only compares identities.
    forward = [Use((name,), ()) for name in "abc"]
    backward = [Use((name,), (name,)) for name in "cba"]
    turns = plan_turns([*forward, *backward], policy_of(3, "microbatch"))
    assert _names(turns, "prefetch") == ["b", "c", "c", "b", "a", ""]
    assert _names(turns, "release") == ["a", "b", "", "c", "b", "a"]
    assert _names(turns, "reduce") == ["", "", "", "c", "b", "a"]


def test_turns_of_the_step_policy_release_and_reduce_at_the_last_use():
    uses = [Use(("a",), ()), Use(("a",), ("a",))] * 2
    turns = plan_turns(uses, policy_of(3, "step"))
    assert _names(turns, "release") == ["", "", "", "a"]
    assert _names(turns, "reduce") == ["", "", "", "a"]


@pytest.mark.parametrize(
    ("stage", "regather", "expected"),
    [
        (0, "microbatch", Policy("step", "step")),
        (1, "microbatch", Policy("step", "step")),
        (2, "microbatch", Policy("step", "microbatch")),
        (2, "step", Policy("step", "step")),
        (3, "microbatch", Policy("microbatch", "microbatch")),
        (3, "step", Policy("step", "step")),
    ],
)
def test_zero_stages_hold_on_as_the_table_says(stage, regather, expected):
    assert policy_of(stage, regather) == expected


def test_a_released_weight_cannot_be_used():
    trainer = build_trainer(Layout())
    with pytest.raises(RuntimeError, match="used while released"):
        _ = trainer.stage.shards[0].weights[0].data


def test_evaluation_leaves_weights_and_gradients_as_they_are():
    trainer = build_trainer(Layout())
    trainer.gradients(my_batches(trainer, 1))
    before = [(s.master.clone(), s.gradient.clone()) for s in trainer.stage.shards]
    trainer.evaluate(my_batches(trainer, 2))
    for (master, gradient), shards in zip(before, trainer.stage.shards, strict=True):
        assert torch.equal(master, shards.master)
        assert torch.equal(gradient, shards.gradient)
