"""Rotary positions, in place (Su et al. 2021, RoFormer, arXiv 2104.09864, equation 34, in Hugging Face's halves).

    first' = first cos - second sin,  second' = second cos + first sin

for the two halves of a head and the angles of its position. The gradient turns by the same angles the other way, so
that nothing has to be kept but the tables.

One program turns one head of a tile of positions. Programs of a tile's heads follow each other, so that all but the
first find its angles in the GPU's cache: to keep them in registers for several heads would leave room for fewer warps.
"""

import triton
import triton.language as tl
from megatron_lite.kernels.checks import FLOATS, check
from megatron_lite.kernels.launch import Launch, accumulator, accumulator_dtype, block_of, on_every_target, options_for
from megatron_lite.kernels.registration import operation
from torch import Tensor, int32

TILE = 1024  # pairs of one head

# Fused, its products need fewer registers: as many warps as a multiprocessor holds.
TURN = on_every_target(Launch(4, fusion=True), gfx942=Launch(2, fusion=True))


@triton.jit
def turn_kernel(qkv, cos, sin, positions, length, stride, other_stride, position_stride, other_position_stride,
                HEADS: tl.constexpr, QUERIES: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
                BACK: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    head = tl.program_id(0) % HEADS
    row = (tl.program_id(0) // HEADS).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    other = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < length)[:, None] & (column < HALF)

    place = positions + row * position_stride + other * other_position_stride
    position = tl.load(place, mask=row < length, other=0).to(tl.int64)
    angle = position[:, None] * HALF + column
    c = tl.load(cos + angle, mask=inside, other=0.0)
    s = tl.load(sin + angle, mask=inside, other=0.0)
    if BACK:
        s = -s

    # After each group's queries and its key comes its value.
    here = qkv + (row * stride + other * other_stride)[:, None] + column + (head + head // (QUERIES + 1)) * (2 * HALF)
    first = tl.load(here, mask=inside, other=0.0).to(ACC)
    second = tl.load(here + HALF, mask=inside, other=0.0).to(ACC)
    tl.store(here, (first * c - second * s).to(qkv.dtype.element_ty), mask=inside)
    tl.store(here + HALF, (second * c + first * s).to(qkv.dtype.element_ty), mask=inside)


def _check(name: str, qkv: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, queries: int, head_dim: int) -> None:
    check(name, "qkv", qkv, qkv, dtype=FLOATS)
    if head_dim < 2 or head_dim % 2:
        raise ValueError(f"{name}: head_dim is {head_dim}, must be even")
    if queries < 1:
        raise ValueError(f"{name}: queries is {queries}, must be positive")
    group = (queries + 2) * head_dim
    if qkv.dim() != 3 or qkv.shape[-1] % group:
        raise ValueError(f"{name}: qkv has shape {list(qkv.shape)}, must be [T, B, G (R + 2) D], (R + 2) D = {group}")
    if qkv.stride(-1) != 1:
        raise ValueError(f"{name}: qkv's last dimension has stride {qkv.stride(-1)}, must be 1")
    check(name, "positions", positions, qkv, qkv.shape[:2], int32)
    check(name, "cos", cos, qkv, (*cos.shape[:1], head_dim // 2), accumulator_dtype(qkv.dtype))
    check(name, "sin", sin, qkv, cos.shape, cos.dtype)


@operation(
    "rope_(Tensor(a!) qkv, Tensor cos, Tensor sin, Tensor positions, int queries, int head_dim, bool back) -> ()",
    lambda *_: None,
)
def rope_(qkv, cos, sin, positions, queries, head_dim, back):
    """Turns the queries and keys of qkv [T, B, G (R + 2) D] in place by the angles of their positions; `back`, back.

    A key-value group's columns are R = `queries` query heads, a key and a value, D = `head_dim` each; values are not
    read. qkv's last dimension must have stride 1; its other strides are free. cos, sin [P, D/2] in float32, float64 for
    float64 (`rope_tables` makes them). positions [T, B] int32, strides free, every entry in [0, P): not checked.
    """
    _check("rope_", qkv, cos, sin, positions, queries, head_dim)
    if not qkv.numel():
        return
    # The tile runs along the longer of T and B.
    long, short = (0, 1) if qkv.shape[0] >= qkv.shape[1] else (1, 0)
    heads = qkv.shape[2] // ((queries + 2) * head_dim) * (queries + 1)
    block = block_of(head_dim // 2)
    rows = max(TILE // block, 1)
    grid = (triton.cdiv(qkv.shape[long], rows) * heads, qkv.shape[short])
    turn_kernel[grid](
        qkv, cos.contiguous(), sin.contiguous(), positions, qkv.shape[long],
        qkv.stride(long), qkv.stride(short), positions.stride(long), positions.stride(short),
        heads, queries, head_dim // 2, block, rows, back, accumulator(qkv.dtype),
        **options_for(TURN, qkv.device),
    )  # fmt: skip
