"""The groups of a mesh: how many a rank makes, what each is told, in what order they are first used."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from nccl_replay import replay

from megatron_lite.mesh import MeshShape, build_mesh
from megatron_lite.parallel.collectives import Event, Recorder
from megatron_lite.parallel.pipeline.schedules import Placement, zb_v
from megatron_lite.planning.paper import META, fake_world

SHAPE = MeshShape(pipeline=2, data=2, context=2, zero_group=2)


def seconds_of_groups(shape: MeshShape) -> list[float]:
    mesh = build_mesh(shape, torch.device("cpu"), timeout=timedelta(seconds=17))
    groups = [mesh.tensor, mesh.context, mesh.zero, mesh.sharding, mesh.replicas, mesh.embedding]
    groups += mesh.edges.channels.values()
    backends = [group.group._get_backend(torch.device("cpu")) for group in groups if group.size > 1]
    return [backend.options._timeout.total_seconds() for backend in backends]


def test_the_timeout_is_every_groups(ranks):
    for seconds in ranks.run(seconds_of_groups, SHAPE.world, SHAPE):
        assert len(seconds) == 7  # context, zero, sharding, replicas, embedding, two channels
        assert set(seconds) == {17.0}


@pytest.mark.parametrize("rank", [0, 777, 2047])
def test_a_rank_of_2048_makes_its_own_groups_and_no_others(monkeypatch, rank):
    shape = MeshShape(pipeline=8, data=32, tensor=8)
    made = []
    create = dist.new_group
    monkeypatch.setattr(dist, "new_group", lambda ranks, **named: made.append(ranks) or create(ranks, **named))
    with fake_world(rank, shape.world):
        build_mesh(shape, META, Placement(8, 2))
    assert all(rank in ranks for ranks in made)
    # tensor, context, zero; embedding; channels in a ring of eight stages, each direction in two matchings
    assert len(made) == 3 + 1 + 2 * 2


def connect_events(rank: int, shape: MeshShape, placement: Placement) -> list[Event]:
    recorder = Recorder()
    with fake_world(rank, shape.world):
        build_mesh(shape, META, placement, recorder)
    return recorder.events


@pytest.mark.parametrize("stages", [2, 3, 4, 5])
@pytest.mark.parametrize("name", ["one chunk", "two chunks", "zb_v"])
def test_every_group_and_channel_is_first_used_in_an_order_that_holds_nobody(stages, name):
    placement = {
        "one chunk": Placement(stages),
        "two chunks": Placement(stages, 2),
        "zb_v": zb_v(stages, 2, 4).placement,
    }
    shape = MeshShape(pipeline=stages, data=2, context=2)
    transcripts = [connect_events(rank, shape, placement[name]) for rank in range(shape.world)]
    assert {event.phase for events in transcripts for event in events} == {"connect"}
    replay(transcripts)
