"""What attention's kernels share: tile sizes of each target, tiles of a range, loads of rows.

A kernel works on a tile of queries (or keys) and goes over tiles of keys (or queries) from the first that any of its
own sees to the last. Tiles that all of them see whole need no mask; they come in the middle and are visited last, after
the edges on both sides: what only the edges need holds no registers in the longer loop.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from megatron_lite.kernels.checks import FLOATS, WIDEST_HEAD, check
from megatron_lite.kernels.launch import Launch, block_of, by_target, for_device
from torch import Tensor


@dataclass(frozen=True)
class Tiles:
    """A kernel's tile of rows, the tile it steps by, how it is compiled, and stages of its loop over ranges' edges:
    fewer there where the next tile's addresses would not fit into registers.
    """

    rows: int
    step: int
    launch: Launch
    edge_stages: int


Table = dict[str, Tiles]

# Whether places of results are found after the loops, see `store_rows`: NVIDIA's assembler would keep them in registers
# meanwhile. The price is a number that counts tiles.
AFTER_LOOPS = by_target(True, {"gfx942": False})


def same(rows: int, step: int, warps: int, stages: int, **others: tuple[int, ...]) -> Table:
    """(rows, step, warps, stages, and stages at ranges' edges where others) for all targets but those named."""
    entries = by_target((rows, step, warps, stages), others)
    return {target: _tiles(*entry) for target, entry in entries.items()}


def _tiles(rows: int, step: int, warps: int, stages: int, edge_stages: int | None = None) -> Tiles:
    # Multiply and add are fused: attention's dot products round otherwise than the interpreter's anyway.
    return Tiles(rows, step, Launch(warps, stages, True), edge_stages or stages)


def tiles_for(tables: dict[int, Table], head_dim: int, device: torch.device) -> Tiles:
    """Of the narrowest table that holds the head dimension."""
    return for_device(tables[min(width for width in tables if width >= head_dim)], device)


def width_of(head_dim: int) -> int:
    """Lanes of a row: a power of two, and no less than a product of matrices takes."""
    return max(16, block_of(head_dim))


def check_attention(name: str, q: Tensor, k: Tensor, v: Tensor, causal: bool, ranges: dict[str, Tensor | None]) -> None:
    """Raises ValueError for queries, keys, values or ranges that do not fit together."""
    check(name, "q", q, q, dtype=FLOATS)
    if q.dim() not in (4, 5) or k.dim() != 4:
        raise ValueError(f"{name}: q has {q.dim()} dimensions and k {k.dim()}, must be 4 (q by group: 5) and 4")
    batch, groups, keys, head_dim = k.shape
    check(name, "k", k, q, (q.shape[0], groups, keys, q.shape[-1]), q.dtype)
    check(name, "v", v, q, k.shape, q.dtype)
    if not 0 < head_dim <= WIDEST_HEAD:
        raise ValueError(f"{name}: q has head dimension {head_dim}, must be at most {WIDEST_HEAD}")
    heads = q.shape[1] if q.dim() == 4 else groups * q.shape[2]
    if groups == 0 or heads % groups or (q.dim() == 5 and q.shape[1] != groups):
        raise ValueError(f"{name}: q has shape {list(q.shape)}, must have a multiple of k's {groups} heads")
    if causal and q.shape[-2] != keys:
        raise ValueError(f"{name}: causal with {q.shape[-2]} queries and {keys} keys, must be as many")
    given = [tensor is not None for tensor in ranges.values()]
    if any(given) and (causal or not all(given)):
        raise ValueError(f"{name}: ranges of what is seen come all together, and without causal")
    for which, tensor in ranges.items():
        if tensor is not None:
            check(name, which, tensor, q, (batch, keys if which.endswith("query") else q.shape[-2]), torch.int32)


def by_group(x: Tensor, groups: int) -> Tensor:
    """[B, H, T, D] as [B, G, R, T, D], a view, consecutive in memory along D; copied only where it is not."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    return x if x.dim() == 5 else x.unflatten(1, (groups, x.shape[1] // groups))


def along_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def strides_of(x: Tensor) -> tuple[int, int, int, int]:
    """Of batch, group, head in the group and row; keys and values [B, G, S, D] have one head in a group."""
    batch, group, *head, row, _ = x.stride()
    return batch, group, head[0] if head else 0, row


@triton.jit
def row_start(x, strides, batch, group, head, row):
    """Where a row lies; places in 64 bits."""
    x += tl.cast(batch, tl.int64) * strides[0] + tl.cast(group, tl.int64) * strides[1]
    return x + tl.cast(head, tl.int64) * strides[2] + tl.cast(row, tl.int64) * strides[3]


@triton.jit
def load_rows(x, stride, rows, ROWS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, ALL: tl.constexpr):
    """[ROWS, WIDTH] from x on; zeros beyond `rows` rows, unless all are there, and beyond D columns."""
    row, lane = tl.arange(0, ROWS)[:, None], tl.arange(0, WIDTH)[None, :]
    address = x + (row * stride + lane)
    if ALL:
        if D == WIDTH:
            return tl.load(address)
        else:
            return tl.load(address, mask=(lane < D) & (row >= 0), other=0.0)
    else:
        return tl.load(address, mask=(row < rows) & (lane < D), other=0.0)


@triton.jit
def store_rows(x, stride, rows, value, zero, ROWS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):
    """`zero` is 0, but known after a kernel's loops alone: what is made of it takes no register while they run."""
    row, lane = (tl.arange(0, ROWS) + zero)[:, None], tl.arange(0, WIDTH)[None, :]
    tl.store(x + (row * stride + lane), value.to(x.dtype.element_ty), mask=(row < rows) & (lane < D))


@triton.jit
def seen_by_queries(first, last, batch, start, queries, keys, ROWS: tl.constexpr,
                    CAUSAL: tl.constexpr, RANGES: tl.constexpr):  # fmt: skip
    """Keys that a tile of queries sees: each row's first and last [ROWS]; from, to what any sees; from, to what all."""
    row = start + tl.arange(0, ROWS)
    end = tl.minimum(start + ROWS, queries) - 1
    if RANGES:
        first += tl.cast(batch, tl.int64) * queries
        last += tl.cast(batch, tl.int64) * queries
        row_first = tl.load(first + row, mask=row < queries, other=0)
        row_last = tl.load(last + row, mask=row < queries, other=0)
        lowest, whole_low = tl.load(first + start), tl.load(first + end)
        whole_high, highest = tl.load(last + start), tl.load(last + end)
    else:
        row_first = tl.zeros_like(row)
        lowest, whole_low = start * 0, start * 0
        if CAUSAL:
            row_last, whole_high, highest = row + 1, start + 1, end + 1
        else:
            row_last, whole_high, highest = row_first + keys, lowest + keys, lowest + keys
    return row_first, row_last, lowest, highest, whole_low, whole_high


@triton.jit
def seen_by_keys(first, last, batch, start, queries, keys, ROWS: tl.constexpr,
                 CAUSAL: tl.constexpr, RANGES: tl.constexpr):  # fmt: skip
    """The same of a tile of keys: which queries see them."""
    row = start + tl.arange(0, ROWS)
    end = tl.minimum(start + ROWS, keys) - 1
    if RANGES:
        first += tl.cast(batch, tl.int64) * keys
        last += tl.cast(batch, tl.int64) * keys
        row_first = tl.load(first + row, mask=row < keys, other=0)
        row_last = tl.load(last + row, mask=row < keys, other=0)
        lowest, whole_low = tl.load(first + start), tl.load(first + end)
        whole_high, highest = tl.load(last + start), tl.load(last + end)
    else:
        row_last = tl.zeros_like(row) + queries
        whole_high, highest = start * 0 + queries, start * 0 + queries
        if CAUSAL:
            row_first, lowest, whole_low = row, start, end
        else:
            row_first, lowest, whole_low = tl.zeros_like(row), start * 0, start * 0
    return row_first, row_last, lowest, highest, whole_low, whole_high


@triton.jit
def count_tiles(lowest, highest, whole_low, whole_high, STEP: tl.constexpr):
    """(tiles before those that are seen whole, those, all others) of the range, cut from `lowest` on."""
    tiles = tl.cdiv(tl.maximum(highest - lowest, 0), STEP)
    before = tl.minimum(tl.cdiv(tl.maximum(whole_low - lowest, 0), STEP), tiles)
    whole = tl.maximum(tl.maximum(whole_high - lowest, 0) // STEP - before, 0)
    return before, whole, tiles - whole


@triton.jit
def tile_start(index, lowest, before, whole, STEP: tl.constexpr, WHOLE: tl.constexpr):
    """Where the index-th tile of the whole ones, or of the others, begins."""
    if WHOLE:
        return lowest + (before + index) * STEP
    else:
        return lowest + tl.where(index < before, index, index + whole) * STEP
