"""The meshes of the GPU day: local copies have the sizes of real messages, and what passes through the CPU arrives."""

import pytest
import torch
import torch.distributed as dist
from gpu.meshes import Local, Staged, with_communicators

from megatron_lite.mesh import MeshShape, build_mesh
from megatron_lite.parallel.collectives import Communicator
from megatron_lite.parallel.pipeline.schedules import Placement
from megatron_lite.planning.paper import META, fake_world

CPU = torch.device("cpu")
# What each call is given, by a communicator of two ranks.
CALLS = {
    "all_gather": lambda one: one.all_gather(torch.ones(3, 5), "site"),
    "reduce_scatter": lambda one: one.reduce_scatter(torch.ones(4, 5), "site"),
    "all_reduce": lambda one: one.all_reduce(torch.ones(4, 5), "site"),
    "all_to_all": lambda one: one.all_to_all(torch.ones(2, 5), "site"),
    "exchange": lambda one: one.exchange(torch.ones(4, 5), 1, 1, "site"),
    "receive": lambda one: one.receive(torch.full((4, 5), torch.nan), 1, "site"),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_local_message_has_the_shape_of_a_real_one_and_finite_numbers(call):
    with fake_world(0, 2):
        real = CALLS[call](Communicator("tensor", (0, 1), 0, dist.group.WORLD)).wait()
    local = CALLS[call](Local("tensor", (0, 1), 0)).wait()
    assert (local.shape, local.dtype) == (real.shape, real.dtype)
    assert local.isfinite().all()


def test_every_operation_of_a_communicator_is_replaced():
    operations = {name for name in vars(Communicator) if not name.startswith("_")}
    assert operations <= vars(Local).keys()
    assert operations <= vars(Staged).keys()


def test_every_communicator_of_more_than_one_rank_is_replaced_and_no_other():
    with fake_world(3, 8):
        mesh = build_mesh(MeshShape(pipeline=2, data=2, tensor=2), META, Placement(2))
        replaced = with_communicators(mesh, Local, CPU)
    kinds = {name: type(value) for name, value in vars(replaced).items() if isinstance(value, Communicator)}
    assert kinds["context"] is Communicator  # of one rank
    assert {kinds[name] for name in ("world", "tensor", "zero", "sharding", "embedding")} == {Local}
    assert {type(one) for one in replaced.edges.channels.values()} == {Local}
    assert replaced.edges.channels.keys() == mesh.edges.channels.keys()
    assert replaced.device == CPU and replaced.coordinate == mesh.coordinate
    assert replaced.tensor.ranks == mesh.tensor.ranks


def staged_results(rank_count: int) -> list[bool]:
    """On each rank, whether every message has the same result directly and through the CPU."""
    rank = dist.get_rank()
    ranks = tuple(range(rank_count))
    pair = [kind("tensor", ranks, rank, dist.group.WORLD) for kind in (Communicator, Staged)]
    x = torch.arange(8.0).view(4, 2) + 10 * rank
    calls = (
        lambda one: one.all_gather(x, "site"),
        lambda one: one.reduce_scatter(x, "site"),
        lambda one: one.all_reduce(x.clone(), "site"),
        lambda one: one.all_to_all(x, "site"),
        lambda one: one.exchange(x, 1 - rank, 1 - rank, "site"),
        lambda one: one.send(x, 1, "site") if rank == 0 else one.receive(torch.zeros(4, 2), 0, "site"),
    )
    return [torch.equal(*(call(one).wait() for one in pair)) for call in calls]


def test_messages_through_the_cpu_bring_what_messages_bring(ranks):
    assert ranks.run(staged_results, 2, 2) == [[True] * 6] * 2


def in_place(_: int) -> list[float]:
    """A staged sum, and a staged receive, written where they were asked to be."""
    rank = dist.get_rank()
    one = Staged("tensor", (0, 1), rank, dist.group.WORLD)
    total = torch.full((1,), 1.0 + rank)
    one.all_reduce(total, "site").wait()
    arrived = torch.zeros(1)
    handle = one.send(torch.full((1,), 7.0), 1, "site") if rank == 0 else one.receive(arrived, 0, "site")
    handle.wait()
    return [total.item(), arrived.item()]


def test_what_works_in_place_does_so_through_the_cpu(ranks):
    assert ranks.run(in_place, 2, 2) == [[3.0, 0.0], [3.0, 7.0]]
