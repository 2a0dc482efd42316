"""Initial weights as a function of (seed, parameter name, element), so that every layout starts from the same numbers.

Each element hashes its own global index (splitmix.py); no rank ever builds more than its own shard. The normal numbers
come from Box and Muller (1958), in float64, rounded once.
"""

from math import pi

import torch
from torch import Tensor

from megatron_lite.model.splitmix import key_of, logical_shift, mixed
from megatron_lite.parallel.layout import Box

_CHUNK = 1 << 20  # elements at a time, which bounds the float64 and int64 temporaries


def fill_box(flat: Tensor, box: Box, seed: int, master: torch.dtype) -> None:
    """Write a block's initial values into its place in a flat shard, rounded to the master dtype first."""
    target = flat[box.offset : box.offset + box.size]
    if not box.logical.deviation:
        target.fill_(1.0 if box.logical.deviation is None else 0.0)
        return
    key = key_of(seed, box.logical.name)
    for begin in range(0, box.size, _CHUNK):
        chunk = target[begin : begin + _CHUNK]
        index = _global_index(box, begin, chunk.numel(), flat.device)
        chunk.copy_((normal(key, index) * box.logical.deviation).to(master))


def normal(key: int, index: Tensor) -> Tensor:
    """Standard normal float64 numbers, one for each int64 index."""
    radius = _uniform(mixed(2 * index, key))
    angle = _uniform(mixed(2 * index + 1, key))
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


def _uniform(z: Tensor) -> Tensor:
    """The upper 53 bits as a float64 in [0, 1)."""
    return logical_shift(z, 11).to(torch.float64) * 2.0**-53
