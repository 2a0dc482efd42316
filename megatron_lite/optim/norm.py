"""The one global gradient norm: each element of each logical parameter counts once, whatever the layout."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_lite.kernels.choice import OptimizerKernels
from megatron_lite.mesh import Mesh
from megatron_lite.parallel.zero import TrainedShards


@dataclass(frozen=True)
class GradientNorm:
    """The gradient elements that this rank counts, and a table of where they lie.

    Made once: gradients' buffers live as long as the run.
    """

    counted: tuple[Tensor, ...]
    table: Tensor | None
    kernels: OptimizerKernels
    device: torch.device

    @classmethod
    def of(cls, stage_shards: Sequence[TrainedShards], mesh: Mesh, kernels: OptimizerKernels) -> "GradientNorm":
        counted = tuple(part for shards in stage_shards for part in _counted(shards, mesh))
        return cls(counted, kernels.table_of(counted) if counted else None, kernels, mesh.device)

    def local_square_sum(self) -> Tensor:
        """Sum of squares, float64 []."""
        if not self.counted:
            return torch.zeros((), dtype=torch.float64, device=self.device)
        return self.kernels.square_norm(self.counted, self.table)


def _counted(shards: TrainedShards, mesh: Mesh) -> list[Tensor]:
    """The parts of a shard's gradient that count here, neighbours as one: long, and mostly from the buffer's start."""
    ranges: list[list[int]] = []
    for local, begin, end in shards.layout.ranges():
        if not shards.owned_here(local, mesh.tensor):
            continue
        if ranges and ranges[-1][1] == begin:
            ranges[-1][1] = end
        else:
            ranges.append([begin, end])
    return [shards.gradient[begin:end] for begin, end in ranges]


def clip_coefficient(norm: Tensor, limit: float | None) -> Tensor | None:
    """min(1, limit / norm), which stays on the device; None where nothing is clipped."""
    return None if limit is None else limit / norm.clamp(min=limit)
