"""The sum of squares of many shards in plain PyTorch; kernels/square_norm.py says what it computes."""

from collections.abc import Sequence

import torch
from torch import Tensor

ROW = 1024  # elements whose squares are added in the shards' dtype; float32 would lose digits of more


def table_of(shards: Sequence[Tensor]) -> None:
    """PyTorch needs no table of where the shards lie."""


def square_norm(shards: Sequence[Tensor], table: Tensor | None = None) -> Tensor:
    norms = []
    for shard in shards:
        rows, rest = shard.split([shard.numel() // ROW * ROW, shard.numel() % ROW])
        norms += [torch.linalg.vector_norm(rows.view(-1, ROW), dim=1), torch.linalg.vector_norm(rest).view(1)]
    return torch.cat(norms).to(torch.float64).square().sum()
