"""The process mesh: which rank stands where, and the communicator of each axis.

Global ranks fill the grid [pipeline, data, context, tensor] in order, tensor fastest, so that the ranks that talk most
are neighbours on one node:

    tensor 2 x pipeline 2 x data 2            data 0        data 1
                               pipeline 0     0   1         2   3
                               pipeline 1     4   5         6   7      (columns within a cell: tensor 0, 1)

The mesh is built once, in a face, and handed down. Nothing in the package asks a global where it is.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from megatron_lite.parallel.collectives import Communicator, Recorder, alone
from megatron_lite.parallel.pipeline.messages import Edges

AXES = ("pipeline", "data", "context", "tensor")


@dataclass(frozen=True)
class MeshShape:
    """Sizes of the axes; their product is the world size."""

    pipeline: int = 1
    data: int = 1
    context: int = 1
    tensor: int = 1

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
    edges      to the neighbouring stages, one communicator for each direction: no message waits behind an opposing one
    embedding  first and last stage of one pipeline, where the embedding is tied
    """

    shape: MeshShape
    rank: int
    coordinate: dict[str, int]
    device: torch.device
    world: Communicator
    tensor: Communicator
    zero: Communicator
    edges: Edges
    embedding: Communicator

    @property
    def stage(self) -> int:
        return self.coordinate["pipeline"]

    @property
    def first_stage(self) -> bool:
        return self.stage == 0

    @property
    def last_stage(self) -> bool:
        return self.stage == self.shape.pipeline - 1


def build_mesh(shape: MeshShape, device: torch.device, recorder: Recorder | None = None) -> Mesh:
    """Build the mesh over the default process group, or for one process without any.

    Raises ValueError when the world has another size than the shape.
    """
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    if shape.world != world_size:
        raise ValueError(f"a mesh of {shape.sizes} needs {shape.world} processes, the world has {world_size}")
    if world_size == 1:
        me = alone(0)
        return Mesh(shape, 0, shape.coordinate(0), device, me, me, me, Edges(), me)

    rank = dist.get_rank()
    coordinate = shape.coordinate(rank)
    axes = init_device_mesh(device.type, shape.sizes, mesh_dim_names=AXES)

    def communicator(axis: str, group) -> Communicator:
        ranks = tuple(dist.get_process_group_ranks(group))
        return Communicator(axis, ranks, ranks.index(rank), group, recorder)

    zero_group = axes["data", "context"]._flatten("zero").get_group() if shape.context > 1 else axes.get_group("data")
    line = dist.get_process_group_ranks(axes.get_group("pipeline"))
    edges = _pipeline_edges(line, rank, recorder)
    return Mesh(
        shape, rank, coordinate, device,
        communicator("world", dist.group.WORLD), communicator("tensor", axes.get_group("tensor")),
        communicator("zero", zero_group), edges, _pair("embedding", (line[0], line[-1]), rank, recorder),
    )  # fmt: skip


def _pipeline_edges(line: list[int], rank: int, recorder) -> Edges:
    """The four communicators of a stage, in the order of Edges.

    Created in four rounds, even edges and odd edges, forward and backward, so that a rank has at most one edge in each.
    """
    stage = line.index(rank)
    edges: dict[tuple[str, int], Communicator] = {}
    for parity in (0, 1):
        for direction in ("forward", "backward"):
            edge = stage if stage % 2 == parity else stage - 1
            inside = 0 <= edge < len(line) - 1
            ranks = (line[edge], line[edge + 1]) if inside else (rank, rank)
            edges[direction, edge] = _pair(f"pipeline.{direction}", ranks, rank, recorder)
    found = [edges.get(key) for key in _edge_order(stage)]
    return Edges(*(c if c is not None and c.size == 2 else None for c in found))


def _edge_order(stage: int) -> list[tuple[str, int]]:
    return [(direction, edge) for direction in ("forward", "backward") for edge in (stage - 1, stage)]


def _pair(axis: str, ranks: tuple[int, int], rank: int, recorder) -> Communicator:
    """A communicator of two ranks that only its members create.

    torch names such a group after its ranks and the number of groups made before, so every rank must make equally many:
    one that has no part in a round makes a group of itself.
    """
    mine = ranks if rank in ranks and ranks[0] != ranks[1] else (rank,)
    group = dist.new_group(list(mine), use_local_synchronization=True)
    return Communicator(axis, mine, mine.index(rank), group, recorder)
