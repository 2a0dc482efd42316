"""The process mesh: which rank stands where, and the communicator of each axis.

Global ranks fill the grid [pipeline, data, context, tensor] in order, tensor fastest, so that the ranks that talk most
are neighbours on one node:

    tensor 2 x pipeline 2 x data 2            data 0        data 1
                               pipeline 0     0   1         2   3
                               pipeline 1     4   5         6   7      (columns within a cell: tensor 0, 1)

The mesh is built once, in a face, and handed down. Nothing in the package asks a global where it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from megatron_lite.parallel.collectives import Communicator, Recorder, alone
from megatron_lite.parallel.pipeline.messages import Edges
from megatron_lite.parallel.pipeline.routes import Channel, channels_of
from megatron_lite.parallel.pipeline.schedules import Placement

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

    @property
    def stage(self) -> int:
        return self.coordinate["pipeline"]

    @property
    def has_embedding(self) -> bool:
        """Whether the model begins on this rank's stage."""
        return self.stage == _ends(self.edges.placement)[0]

    @property
    def has_head(self) -> bool:
        """Whether it ends here."""
        return self.stage == _ends(self.edges.placement)[1]


def build_mesh(shape: MeshShape, device: torch.device, placement: Placement | None = None,
               recorder: Recorder | None = None) -> Mesh:  # fmt: skip
    """Build the mesh over the default process group, or for one process without any.

    `placement` says where the model's pieces lie on the stages, one on each where it is left out.
    Raises ValueError when the world has another size than the shape.
    """
    placement = placement or Placement(shape.pipeline)
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    if shape.world != world_size:
        raise ValueError(f"a mesh of {shape.sizes} needs {shape.world} processes, the world has {world_size}")
    if world_size == 1:
        me = alone(0)
        edges = Edges(placement, 0, {})
        return Mesh(shape, 0, shape.coordinate(0), device, me, me, me, me, me, me, edges, me)

    rank = dist.get_rank()
    coordinate = shape.coordinate(rank)
    # On paper the tensors are meta tensors; the groups are the CPU's.
    axes = init_device_mesh("cpu" if device.type == "meta" else device.type, shape.sizes, mesh_dim_names=AXES)

    def communicator(axis: str, group) -> Communicator:
        ranks = tuple(dist.get_process_group_ranks(group))
        return Communicator(axis, ranks, ranks.index(rank), group, recorder)

    flat = axes["data", "context"]._flatten("zero").get_group() if shape.context > 1 else axes.get_group("data")
    zero = communicator("zero", flat)
    line = dist.get_process_group_ranks(axes.get_group("pipeline"))
    edges = _edges(placement, line, rank, recorder)
    begins, ends = (line[stage] for stage in _ends(placement))
    return Mesh(
        shape, rank, coordinate, device,
        communicator("world", dist.group.WORLD), communicator("tensor", axes.get_group("tensor")),
        communicator("context", axes.get_group("context")),
        zero, *_zero_groups(zero, shape.zero_group, recorder), edges,
        _group("embedding", (begins, ends), rank, recorder),
    )  # fmt: skip


def _zero_groups(zero: Communicator, group: int | None, recorder: Recorder | None) -> tuple[Communicator, Communicator]:
    """(sharding, replicas): blocks of `group` neighbours on the zero axis, and the ranks at one place in each block."""
    if group is None or group == zero.size:
        return zero, alone(zero.ranks[zero.rank])
    me = zero.ranks[zero.rank]
    block, place = divmod(zero.rank, group)
    sharding = _group("zero.sharding", zero.ranks[block * group : (block + 1) * group], me, recorder)
    return sharding, _group("zero.replicas", zero.ranks[place::group], me, recorder)


def _edges(placement: Placement, line: list[int], rank: int, recorder: Recorder | None) -> Edges:
    """A communicator for each channel that begins or ends on this rank's stage.

    Created in rounds of channels that share no stage, so that a rank makes one group in each.
    """
    stage = line.index(rank)
    mine: dict[Channel, Communicator] = {}
    for together in rounds(channels_of(placement)):
        channel = next((c for c in together if stage in (c.sender, c.receiver)), None)
        ranks = (rank, rank) if channel is None else (line[channel.sender], line[channel.receiver])
        communicator = _group("pipeline" if channel is None else channel.name, ranks, rank, recorder)
        if channel is not None:
            mine[channel] = communicator
    return Edges(placement, stage, mine)


def rounds(channels: Sequence[Channel]) -> list[list[Channel]]:
    """The channels in as few groups without a common stage as the order gives."""
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


def _ends(placement: Placement) -> tuple[int, int]:
    """The stages where the model begins and ends."""
    return placement.place(0)[0], placement.place(placement.stages * placement.chunks - 1)[0]


def _group(axis: str, ranks: Sequence[int], rank: int, recorder: Recorder | None) -> Communicator:
    """A communicator of some ranks that only its members create.

    torch names such a group after its ranks and the number of groups made before, so every rank must make equally many:
    one that has no part in a round makes a group of itself.
    """
    mine = tuple(sorted(set(ranks))) if rank in ranks else (rank,)
    group = dist.new_group(list(mine), use_local_synchronization=True)
    return Communicator(axis, mine, mine.index(rank), group, recorder)
