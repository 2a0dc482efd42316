"""Random numbers of a draw as a function of who draws: the same on every layout, in any batch, in any order.

The numbers of a key are SplitMix64's (Steele, Lea, Flood 2014, figure 17), counted by token id, so that one token's
does not depend on which others may be drawn. int64 wraps as uint64 does; only the shifts must be made logical.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def key_of(*numbers: int) -> int:
    """A key of 64 bits, of (seed, request, sample, position)."""
    digest = hashlib.blake2b("/".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def exponentials(keys: Sequence[int], count: int, device: torch.device) -> Tensor:
    """Exponentially distributed numbers float64 [N, count] above 0, mean 1: for each key those of 0 to count - 1."""
    # 52 bits and a half are exact in float64, and neither 0 nor 1.
    uniform = _logical_shift(_mixed(keys, count, device), 12).to(torch.float64).add_(0.5).mul_(2.0**-52)
    return uniform.log_().neg_()


def _mixed(keys: Sequence[int], count: int, device: torch.device) -> Tensor:
    """int64 [N, count]."""
    z = torch.arange(count, device=device) * _signed(GOLDEN)
    z = z + torch.tensor(keys, dtype=torch.int64, device=device)[:, None]
    z.bitwise_xor_(_logical_shift(z, 30)).mul_(_signed(FIRST))
    z.bitwise_xor_(_logical_shift(z, 27)).mul_(_signed(SECOND))
    return z.bitwise_xor_(_logical_shift(z, 31))


def _logical_shift(z: Tensor, bits: int) -> Tensor:
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
