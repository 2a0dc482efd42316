"""Initial weights as a function of (seed, parameter name, element), so that every layout starts from the same numbers.

Each element hashes its own global index; no rank ever builds more than its own shard. The hash is SplitMix64's
finalizer (Steele, Lea, Flood 2014, figure 17), the normal numbers come from Box and Muller (1958), in float64, rounded
once.
"""

import hashlib
from math import pi

import torch
from torch import Tensor

from megatron_lite.parallel.layout import Box

_CHUNK = 1 << 20  # elements at a time, which bounds the float64 and int64 temporaries


def fill_box(flat: Tensor, box: Box, seed: int, master: torch.dtype) -> None:
    """Write a block's initial values into its place in a flat shard, rounded to the master dtype first."""
    target = flat[box.offset : box.offset + box.size]
    if box.logical.deviation is None:
        target.fill_(1.0)
        return
    key = _key(seed, box.logical.name)
    for begin in range(0, box.size, _CHUNK):
        chunk = target[begin : begin + _CHUNK]
        index = _global_index(box, begin, chunk.numel(), flat.device)
        chunk.copy_((normal(key, index) * box.logical.deviation).to(master))


def normal(key: int, index: Tensor) -> Tensor:
    """Standard normal float64 numbers, one for each int64 index."""
    radius = _uniform(_mix(2 * index, key))
    angle = _uniform(_mix(2 * index + 1, key))
    # 1 - u lies in (0, 1], where the logarithm is finite.
    return torch.sqrt(-2.0 * torch.log1p(-radius)) * torch.cos(2.0 * pi * angle)


def _global_index(box: Box, begin: int, count: int, device: torch.device) -> Tensor:
    """Row-major positions in the logical parameter of the block's elements [begin, begin + count)."""
    position = torch.arange(begin, begin + count, device=device)
    if len(box.shape) == 1:
        return position + box.start[0]
    columns = box.shape[1]
    row = torch.div(position, columns, rounding_mode="floor")
    return (row + box.start[0]) * box.logical.shape[1] + (position - row * columns) + box.start[1]


def _key(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _mix(counter: Tensor, key: int) -> Tensor:
    """SplitMix64 in int64, which wraps as uint64 does; only the shifts must be made logical."""
    z = counter * _signed(0x9E3779B97F4A7C15) + key
    z = (z ^ _shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _uniform(z: Tensor) -> Tensor:
    """The upper 53 bits as a float64 in [0, 1)."""
    return _shift(z, 11).to(torch.float64) * 2.0**-53


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
