"""What runs while a message is under way, from the recorded order of issues, matrix products and waits."""

from collections import defaultdict

import pytest
import torch
from support.layouts import Layout, build_trainer, my_batches
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_lite.parallel.collectives import Event, Recorder

CUBE = Layout(tensor=2, pipeline=2, data=2, steps=1)


class Products(TorchDispatchMode):
    """Writes each matrix product into the transcript."""

    def __init__(self, recorder: Recorder):
        super().__init__()
        self.recorder = recorder

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_):
            self.recorder.events.append(Event("product", 0, "", (), "", "", 0))
        return function(*arguments, **(named or {}))


def run_rank(layout: Layout) -> list[Event]:
    recorder = Recorder()
    trainer = build_trainer(layout, recorder)
    recorder.events.clear()  # of what goes before the first step
    with Products(recorder):
        trainer.gradients(my_batches(trainer, 1))
    return recorder.events


def products_under_way(events: list[Event]) -> dict[tuple[str, str], list[int]]:
    """(site, operation) -> for each call, in order, the matrix products between its issue and its wait."""
    done, issued, found = 0, {}, defaultdict(list)
    for event in events:
        if event.kind == "product":
            done += 1
        elif event.kind == "issue":
            issued[event.handle] = done
        else:
            found[event.site, event.operation].append(done - issued[event.handle])
    return found


@pytest.fixture(scope="module")
def under_way(ranks):
    """Of every rank; ranks 0 to 3 are the first stage."""
    return [products_under_way(events) for events in ranks.run(run_rank, CUBE.world, CUBE)]


@pytest.mark.parametrize("site", ["attention.enter", "mlp.enter", "head.enter"])
def test_the_weight_gradient_runs_while_the_input_gradient_is_scattered(under_way, site):
    for rank in under_way[4:]:
        assert set(rank[f"{site}.backward", "reduce_scatter"]) == {1}


@pytest.mark.parametrize("site", ["attention.enter", "mlp.enter", "head.enter"])
def test_the_input_gradient_runs_while_the_input_is_gathered_again(under_way, site):
    for rank in under_way[4:]:
        assert set(rank[f"{site}.again", "all_gather"]) == {1}


def test_every_unit_after_a_steps_first_is_gathered_while_another_computes(under_way):
    for rank in under_way:
        first, *others = rank["zero.gather", "all_gather"]
        assert first == 0
        # What follows an embedding has a look-up to hide behind, and no product.
        assert sum(products == 0 for products in others) <= CUBE.config().train.global_batch_size
        assert sum(products > 0 for products in others) >= 0.7 * len(others)


def test_a_units_gradients_are_reduced_while_the_next_ones_are_computed(under_way):
    for rank in under_way:
        *others, last = rank["zero.reduce", "reduce_scatter"]
        assert last == 0
        # The block before an embedding has only its index_add to hide behind: one unit in three on the first stage.
        assert sum(products > 0 for products in others) >= 0.6 * len(others)


def test_messages_between_stages_are_received_while_the_stage_computes(under_way):
    first, last = under_way[0], under_way[4]
    activations, gradients = last["pipeline.activation", "recv"], first["pipeline.gradient", "recv"]
    assert all(products > 0 for products in activations[1:])
    assert all(products > 0 for products in gradients)


def test_the_next_block_of_keys_travels_while_this_one_is_attended_to(ranks):
    """Attention has no matrix product of its own here, so the order of the calls themselves is looked at."""
    events = ranks.run(run_rank, 4, Layout(context=4, steps=1))[0]
    kinds = [event.kind for event in events if event.site == "context.ring" and event.operation == "recv"]
    assert kinds == ["issue", "wait"] * (len(kinds) // 2)
    gradients = [e for e in events if e.site.startswith("context.ring.") and e.operation == "recv"]
    # Backward: the next block is asked for before the gradients that follow this one are waited for.
    order = [(e.kind, e.site.rsplit(".", 1)[1]) for e in gradients[:8]]
    assert order[:3] == [("issue", "again"), ("issue", "gradient"), ("wait", "again")]
