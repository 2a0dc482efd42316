"""Rotary positions in plain PyTorch; kernels/rope.py says what it computes."""

import torch
import torch.nn.functional as F
from torch import Tensor


def rope_tables(
    length: int, head_dim: int, theta: float, dtype: torch.dtype, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """(cos, sin) [length, head_dim / 2] of the angles p theta^(-2i/head_dim), i = 0 .. head_dim/2 - 1.

    Computed in float64, kept in `dtype` or float32, the wider of the two.
    """
    return angle_tables(length, rope_frequencies(head_dim, theta, device), dtype)


def rope_frequencies(head_dim: int, theta: float, device: torch.device | str) -> Tensor:
    """theta^(-2i/head_dim), float64 [head_dim / 2]."""
    pairs = torch.arange(0, head_dim, 2, dtype=torch.float64, device=device)
    return theta ** (-pairs / head_dim)


def angle_tables(length: int, frequency: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(cos, sin) [length, head_dim / 2] of the angles p frequency[i], from float64 ones."""
    angle = torch.arange(length, dtype=torch.float64, device=frequency.device).unsqueeze(-1) * frequency
    kept = torch.promote_types(dtype, torch.float32)
    return angle.cos().to(kept), angle.sin().to(kept)


def rope_(qkv: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, queries: int, head_dim: int, back: bool) -> None:
    turning = qkv.unflatten(-1, (-1, queries + 2, head_dim))[..., : queries + 1, :]
    if positions.stride(1) == 0:
        positions = positions[:, :1]  # the same for every sequence: looked up once
    c, s = (F.embedding(positions, table)[:, :, None, None] for table in (cos, sin))
    way = -1 if back else 1
    heads = turning.to(cos.dtype)
    turned = heads * torch.cat([c, c], -1)
    for to, other, sign in zip(turned.chunk(2, -1), reversed(heads.chunk(2, -1)), (-way, way), strict=True):
        to.addcmul_(other, s, value=sign)
    turning.copy_(turned)
