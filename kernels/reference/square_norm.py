"""The sum of squares of many shards in plain PyTorch; kernels/square_norm.py says what it computes."""

from collections.abc import Sequence

import torch
from torch import Tensor


def square_norm(shards: Sequence[Tensor], table: Tensor | None = None) -> Tensor:
    """Needs no table of where the shards lie."""
    norms = torch.stack(torch._foreach_norm(list(shards)))
    return norms.to(torch.float64).square().sum()
