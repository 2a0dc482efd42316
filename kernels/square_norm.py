"""The sum of the squares of many shards, in one launch.

Every shard is cut into blocks of BLOCK elements, whatever the device. One program sums a block's squares in float32;
torch adds the blocks' sums in float64. Where the blocks lie is a table of addresses on the device, made once: a step
reads nothing back and copies nothing over.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from megatron_lite.kernels.checks import check
from megatron_lite.kernels.launch import Launch, accumulator, on_every_target, options_for
from megatron_lite.kernels.registration import operation
from torch import Tensor, float32, float64

BLOCK = 65536
TILE = 2048
ALIGNMENT = 16  # bytes a GPU loads at once

SUM = on_every_target(Launch(8))


def table_of(shards: Sequence[Tensor]) -> Tensor:
    """The blocks of shards [any length] of one dtype, float32 or float64, on one device: int64 [blocks, 2], address and
    number of elements. It stands for the memory that the shards have now. Raises ValueError for other shards.
    """
    if not shards:
        raise ValueError("square_norm: there are no shards")
    rows = []
    for shard in shards:
        check("square_norm", "a shard", shard, shards[0], (shard.numel(),), shards[0].dtype)
        if not shard.is_contiguous():
            raise ValueError(f"square_norm: a shard has stride {shard.stride(0)}, must be contiguous")
        for begin in range(0, shard.numel(), BLOCK):
            rows.append((shard.data_ptr() + begin * shard.element_size(), min(BLOCK, shard.numel() - begin)))
    return torch.tensor(rows, dtype=torch.int64, device=shards[0].device).view(-1, 2)


@triton.jit
def sum_kernel(table, sums, ALIGNED: tl.constexpr, TILE: tl.constexpr, ACC: tl.constexpr):
    block = tl.program_id(0).to(tl.int64)
    elements = tl.load(table + 2 * block).to(sums.dtype)
    count = tl.load(table + 2 * block + 1)
    if ALIGNED:
        elements = tl.multiple_of(elements, 16)
    place = tl.arange(0, TILE)
    total = tl.zeros([TILE], ACC)
    for _ in range(count // TILE):
        value = tl.load(elements + place)
        total += value * value
        elements += TILE
    value = tl.load(elements + place, mask=place < count % TILE, other=0.0)
    total += value * value
    tl.store(sums + block, tl.sum(total, 0))


def _fake(shards, table):
    return table.new_empty((), dtype=float64)


@operation("square_norm(Tensor[] shards, Tensor table) -> Tensor", _fake)
def square_norm(shards, table):
    """Sum of the squares of all elements of all shards, float64 []. `table_of(shards)` makes the table.

    Each block is added in its shards' dtype: in float32, elements from 1.8e19 on make infinity. The bits depend on the
    shards' values, lengths and order, on whether all begin at multiples of 16 bytes, and on a GPU's threads a warp.
    """
    if not shards:
        raise ValueError("square_norm: there are no shards")
    check("square_norm", "shards[0]", shards[0], table, dtype=(float32, float64))
    blocks = sum(-(-shard.numel() // BLOCK) for shard in shards)
    check("square_norm", "table", table, shards[0], (blocks, 2), torch.int64)
    sums = table.new_empty(blocks, dtype=shards[0].dtype)
    if blocks:
        aligned = all(shard.data_ptr() % ALIGNMENT == 0 for shard in shards)
        sum_kernel[(blocks,)](table, sums, aligned, TILE, accumulator(sums.dtype), **options_for(SUM, table.device))
    return sums.sum(dtype=float64)
