"""The one global gradient norm: each element of each logical parameter counts once, whatever the layout."""

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_lite.mesh import Mesh
from megatron_lite.parallel.layout import Local
from megatron_lite.parallel.zero import Shards


def counts_here(local: Local, shards: Shards, mesh: Mesh) -> bool:
    """Whether this rank is the one that counts (and saves) its part of a weight.

    Of a weight's replicas over the tensor axis, over the zero axis at stage 0 and over tied stages, the first counts.
    """
    first_of_tensor = not local.replicated or mesh.tensor.rank == 0
    return local.owner and first_of_tensor and shards.replicas.rank == 0


def local_square_sum(stage_shards: Sequence[Shards], mesh: Mesh) -> Tensor:
    """Sum of squares, in float64, of the gradient elements that this rank counts."""
    counted = [
        shards.gradient[begin:end]
        for shards in stage_shards
        for local, begin, end in shards.layout.ranges()
        if counts_here(local, shards, mesh)
    ]
    total = torch.zeros((), dtype=torch.float64, device=mesh.device)
    if counted:
        norms = torch._foreach_norm(counted)
        total += torch.stack(norms).to(torch.float64).square().sum()
    return total


def clip_coefficient(norm: Tensor, limit: float | None) -> Tensor | None:
    """min(1, limit / norm), which stays on the device; None where nothing is clipped."""
    return None if limit is None else limit / norm.clamp(min=limit)
