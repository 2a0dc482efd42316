"""Ranks that disagree on their next call end at once, with both calls named; a wait for nobody ends with who waits."""

import pytest
import torch
import torch.distributed as dist
from support.layouts import Layout, build_trainer, my_batches
from support.ranks import Ranks

from megatron_lite.config import LoraConfig
from megatron_lite.parallel.collectives import Communicator, default_store
from megatron_lite.parallel.transcript import TranscriptChecker, TranscriptError


def world_of(patience: float) -> Communicator:
    rank, size = dist.get_rank(), dist.get_world_size()
    checker = TranscriptChecker(default_store(), rank, size, patience)
    return Communicator("zero", tuple(range(size)), rank, dist.group.WORLD, checker)


def run_program(program: str, patience: float) -> str:
    """What the checker says on this rank; "done" where the program comes to its end."""
    world = world_of(patience)
    try:
        exec(program, {"world": world, "torch": torch, "rank": world.rank})
    except TranscriptError as error:
        return str(error)
    except RuntimeError as error:
        return f"the other is gone: {error}"
    return "done"


@pytest.fixture
def pool():
    """Of its own: a program that went wrong leaves a process group that nobody should use again."""
    ranks = Ranks()
    yield ranks
    ranks.stop()


def test_equal_programs_end_and_leave_nothing_in_the_store(pool):
    program = """
for step in range(20):
    world.recorder.phase = f"F{step}"
    world.all_reduce(torch.ones(3), "loss.count").wait()
    world.all_gather(torch.ones(2), "zero.gather").wait()
    world.exchange(torch.ones(4), (rank + 1) % 2, (rank - 1) % 2, "context.ring").wait()
    message = world.send(torch.ones(5), 1, "activation") if rank == 0 else world.receive(torch.ones(5), 0, "activation")
    message.wait()
world.all_reduce(torch.ones(1), "end").wait()
left = [world.recorder.store.check([f"zero (0, 1)/{number}"]) for number in range(100)]
assert not any(left), left
"""
    assert pool.run(run_program, 2, program, 20.0) == ["done", "done"]


def test_another_operation_is_named_on_both_ranks(pool):
    program = """
world.all_reduce(torch.ones(3), "loss.count").wait()
world.recorder.phase = "B4"
if rank == 1:
    world.all_reduce(torch.ones(4), "zero.reduce").wait()
else:
    world.all_gather(torch.ones(2), "zero.gather").wait()
"""
    said = pool.run(run_program, 2, program, 3.0)
    (told,) = [text for text in said if text.startswith("call 1 on communicator zero (0, 1) differs: ")]
    assert "rank 1 calls all_reduce zero.reduce (zero, 16 bytes, in B4)" in told
    assert "rank 0 calls all_gather zero.gather (zero, 16 bytes, in B4)" in told


def test_another_size_is_named(pool):
    said = pool.run(run_program, 2, 'world.all_reduce(torch.ones(3 + rank), "loss.count").wait()', 3.0)
    assert any("12 bytes" in text and "16 bytes" in text for text in said)


def test_a_call_that_a_rank_leaves_out_ends_with_what_each_rank_waits_for(pool):
    program = """
world.all_reduce(torch.ones(3), "loss.count").wait()
if rank == 0:
    world.all_gather(torch.ones(2), "zero.gather").wait()
else:
    import time; time.sleep(4)
"""
    stuck, other = pool.run(run_program, 2, program, 2.0)
    assert stuck.startswith("nothing moved for 2 s: rank 0 waits for all_gather zero.gather")
    assert "rank 1 waits for nothing, its last wait was for all_reduce loss.count" in stuck
    assert other == "done"


def train_with_a_fault(layout: Layout, faulty: int | None, patience: float) -> str:
    """Two real training steps under the checker; the faulty rank makes one call of its own between them."""
    rank, size = dist.get_rank(), dist.get_world_size()
    checker = TranscriptChecker(default_store(), rank, size, patience)
    trainer = build_trainer(layout, checker)
    try:
        for step in (1, 2):
            if step == 2 and rank == faulty:
                trainer.mesh.zero.all_reduce(torch.ones(7), "a.call.of.its.own").wait()
            trainer.train_step(my_batches(trainer, step), 0.01)
    except TranscriptError as error:
        return str(error)
    except RuntimeError as error:
        return f"the other is gone: {error}"
    return "done"


@pytest.mark.parametrize(
    "layout", [Layout(tensor=2, data=2, pipeline=2, lora=LoraConfig()), Layout(context=2, tensor=2)], ids=str
)
def test_real_steps_of_up_to_eight_ranks_pass(pool, layout):
    assert pool.run(train_with_a_fault, layout.world, layout, None, 60.0) == ["done"] * layout.world


def test_one_rank_of_eight_that_leaves_the_program_is_named_with_its_call(pool):
    layout = Layout(tensor=2, data=2, pipeline=2)
    said = pool.run(train_with_a_fault, 8, layout, 6, 5.0)
    assert "done" not in said
    told = [text for text in said if "differs" in text]
    assert told
    for text in told:
        assert "rank 6 calls all_reduce a.call.of.its.own (zero, 28 bytes, in finish)" in text
        assert "rank 4 calls all_reduce loss.count (zero, 8 bytes, in count)" in text
    assert all(text.startswith(("call ", "nothing moved for 5 s", "the other is gone")) for text in said)
