"""The process mesh: which rank stands where, and the communicator of each axis.

Global ranks fill the grid [pipeline, data, context, tensor] in order, tensor fastest, so that the ranks that talk most
are neighbours on one node:

    tensor 2 x pipeline 2 x data 2            data 0        data 1
                               pipeline 0     0   1         2   3
                               pipeline 1     4   5         6   7      (columns within a cell: tensor 0, 1)

The mesh is built once, in a command, and handed down. Nothing in the package asks a global where it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

import torch
import torch.distributed as dist

from megatron_lite.config import Resolved
from megatron_lite.device import Urgency, group_options, synchronize
from megatron_lite.parallel.collectives import Communicator, Recorder, alone, default_store
from megatron_lite.parallel.pipeline.messages import Edges
from megatron_lite.parallel.pipeline.routes import Channel, channels_of
from megatron_lite.parallel.pipeline.schedules import Placement
from megatron_lite.parallel.words import Words

AXES = ("pipeline", "data", "context", "tensor")


@dataclass(frozen=True)
class MeshShape:
    """Sizes of the axes; their product is the world size.

    `zero_group` is how many neighbours on data x context share one set of shards (None: all of them); the groups hold
    replicas of each other's shards.
    """

    pipeline: int = 1
    data: int = 1
    context: int = 1
    tensor: int = 1
    zero_group: int | None = None

    @classmethod
    def of(cls, resolved: Resolved) -> Self:
        """What a configuration comes to on its world."""
        sizes = (resolved.pipeline, resolved.data, resolved.context, resolved.tensor)
        return cls(*sizes, zero_group=resolved.zero_group)

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        return (self.pipeline, self.data, self.context, self.tensor)

    @property
    def world(self) -> int:
        return self.pipeline * self.data * self.context * self.tensor

    def coordinate(self, rank: int) -> dict[str, int]:
        """Where a global rank stands on each axis."""
        grid = torch.arange(self.world).view(self.sizes)
        return dict(zip(AXES, (int(i) for i in (grid == rank).nonzero()[0]), strict=True))


@dataclass(frozen=True)
class Mesh:
    """One process's place and its communicators.

    zero       data x context: the ranks that hold the same stage and tensor slice; they see different tokens
    sharding   those of them that share one set of shards, replicas: those that hold the same shard
    edges      to the stages around, one communicator a channel: no message waits behind an opposing one
    embedding  the stages where the model begins and ends, between which a tied embedding is summed
    words      texts between all ranks, through the store and not through a communicator
    """

    shape: MeshShape
    rank: int
    coordinate: dict[str, int]
    device: torch.device
    world: Communicator
    tensor: Communicator
    context: Communicator
    zero: Communicator
    sharding: Communicator
    replicas: Communicator
    edges: Edges
    embedding: Communicator
    words: Words

    @property
    def stage(self) -> int:
        return self.coordinate["pipeline"]

    @property
    def has_embedding(self) -> bool:
        """Whether the model begins on this rank's stage."""
        return self.stage == self.edges.placement.ends[0]

    @property
    def has_head(self) -> bool:
        """Whether it ends here."""
        return self.stage == self.edges.placement.ends[1]


def build_mesh(shape: MeshShape, device: torch.device, placement: Placement | None = None,
               recorder: Recorder | None = None, words: Words | None = None, timeout: timedelta | None = None,
               ) -> Mesh:  # fmt: skip
    """Build the mesh over the default process group, or for one process without any, and connect all that it has.

    `placement` says where the model's virtual stages lie, one on each stage where it is left out; `timeout` is that of
    every group (None: torch's own). Raises ValueError when the world has another size than the shape.
    """
    placement = placement or Placement(shape.pipeline)
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    if shape.world != world_size:
        raise ValueError(f"a mesh of {shape.sizes} needs {shape.world} processes, the world has {world_size}")
    if world_size == 1:
        return mesh_of_one(device, placement, words)

    rank = dist.get_rank()
    make = _Groups(rank, device, timeout, recorder)
    coordinate = shape.coordinate(rank)
    grid = torch.arange(shape.world).view(shape.sizes)
    p, d, c, t = coordinate.values()
    zero = make("zero", grid[p, :, :, t], urgency="first")
    line = grid[:, d, c, t].tolist()
    sharding, replicas = _zero_groups(zero, shape.zero_group, make)
    mesh = Mesh(
        shape, rank, coordinate, device,
        world=Communicator("world", tuple(range(world_size)), rank, dist.group.WORLD, recorder),
        tensor=make("tensor", grid[p, d, c, :], urgency="first"),
        context=make("context", grid[p, d, :, t], urgency="first"),
        zero=zero, sharding=sharding, replicas=replicas,
        edges=_edges(placement, line, rank, make),
        embedding=make("embedding", [line[stage] for stage in placement.ends]),
        words=words or _words(device, rank, world_size),
    )  # fmt: skip
    connect(mesh, recorder)
    return mesh


def mesh_of_one(device: torch.device, placement: Placement | None = None, words: Words | None = None) -> Mesh:
    """Of this process by itself, in a job of more too: what it does there concerns no other rank."""
    shape, me, edges = MeshShape(), alone(0), Edges(placement or Placement(1), 0, {})
    return Mesh(shape, 0, shape.coordinate(0), device, me, me, me, me, me, me, edges, me, words or Words.alone())


@dataclass(frozen=True)
class _Groups:
    """Makes communicators of some ranks, each of which only its members create.

    torch names such a group after its ranks and the number of groups made before, so every rank must make equally many:
    one that has no part in a matching makes a group of itself.
    """

    rank: int
    device: torch.device
    timeout: timedelta | None
    recorder: Recorder | None

    def __call__(self, axis: str, ranks: torch.Tensor | Sequence[int], urgency: Urgency = "usual") -> Communicator:
        """`ranks` of one kind on every rank of the job: one axis, or one matching of channels."""
        ranks = sorted(set(torch.as_tensor(ranks).flatten().tolist()))
        mine = tuple(ranks) if self.rank in ranks else (self.rank,)
        group = dist.new_group(list(mine), timeout=self.timeout, use_local_synchronization=True,
                               pg_options=group_options(self.device, urgency, self.timeout))  # fmt: skip
        return Communicator(axis, mine, mine.index(self.rank), group, self.recorder)


def _words(device: torch.device, rank: int, world_size: int) -> Words:
    """Over the store of the default process group; on paper nobody answers."""
    return Words.alone() if device.type == "meta" else Words.over(default_store(), rank, world_size)


def connect(mesh: Mesh, recorder: Recorder | None = None) -> None:
    """The first use of every group and channel, before anything else runs; the transcript's phase `connect`.

    NCCL makes a group's connections, and those between two ranks of it, at their first use, and holds the host until
    all of its ranks are there. In the middle of a step they never would be: a stage that posts its receives first
    stands still before it has sent what its neighbour waits for. Here every rank comes to the groups in one order, and
    to the channels in matchings, which share no stage. A job whose connections do not fit into memory ends here, too.
    """
    if recorder is not None:
        recorder.phase = "connect"
    token = torch.zeros(1, device=mesh.device)
    for group in _distinct(mesh):
        group.all_reduce(token, "connect.group").wait()
    if mesh.context.size > 1:
        after, before = (mesh.context.rank + 1) % mesh.context.size, (mesh.context.rank - 1) % mesh.context.size
        mesh.context.exchange(token, after, before, "connect.ring").wait()
    for channel, communicator in mesh.edges.channels.items():
        act = communicator.send if channel.sender == mesh.stage else communicator.receive
        act(token, 1 - communicator.rank, "connect.channel").wait()
    synchronize(mesh.device)


def _distinct(mesh: Mesh) -> list[Communicator]:
    """The groups of more than one rank, each once: where all share one set of shards, `sharding` is `zero`."""
    groups = (mesh.world, mesh.tensor, mesh.context, mesh.zero, mesh.sharding, mesh.replicas, mesh.embedding)
    return list({id(group): group for group in groups if group.size > 1}.values())


def _zero_groups(zero: Communicator, group: int | None, make: _Groups) -> tuple[Communicator, Communicator]:
    """(sharding, replicas): blocks of `group` neighbours on the zero axis, and the ranks at one place in each block.

    Gathers stay within a block, as a node's ranks, and what crosses blocks is one all-reduce of each shard's gradient a
    step (hierarchical sharding, as in Zhao et al. 2023, arXiv 2304.11277, section 3.2.2).
    """
    me = alone(zero.ranks[zero.rank])
    if group is None or group == zero.size:
        return zero, me
    if group == 1:
        return me, zero
    block, place = divmod(zero.rank, group)
    sharding = make("zero.sharding", zero.ranks[block * group : (block + 1) * group], urgency="first")
    return sharding, make("zero.replicas", zero.ranks[place::group])


def _edges(placement: Placement, line: list[int], rank: int, make: _Groups) -> Edges:
    """A communicator for each channel that begins or ends on this rank's stage, in the order they were made in.

    Every rank has to take part whenever a group is made, and takes part in one: so together come channels that share
    no stage.
    """
    stage = line.index(rank)
    mine: dict[Channel, Communicator] = {}
    for together in matchings(channels_of(placement)):
        channel = next((c for c in together if stage in (c.sender, c.receiver)), None)
        ranks = (rank, rank) if channel is None else (line[channel.sender], line[channel.receiver])
        communicator = make("pipeline" if channel is None else channel.name, ranks, urgency="small")
        if channel is not None:
            mine[channel] = communicator
    return Edges(placement, stage, mine)


def matchings(channels: Sequence[Channel]) -> list[list[Channel]]:
    """The channels in as few matchings (sets of channels without a common stage) as their order gives."""
    found: list[list[Channel]] = []
    for channel in channels:
        stages = {channel.sender, channel.receiver}
        free = (group for group in found if all(stages.isdisjoint((c.sender, c.receiver)) for c in group))
        group = next(free, None)
        if group is None:
            found.append([channel])
        else:
            group.append(channel)
    return found
