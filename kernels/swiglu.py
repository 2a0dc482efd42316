"""SwiGLU of packed columns [gate | up] (Shazeer 2020, arXiv 2002.05202, equation 6), with s = 1 / (1 + exp(-gate)).

    y = gate s up
    dgate = dy up s (1 + gate (1 - s)),  dup = dy gate s

A program works on a tile of TILE elements of y. Its columns are the largest power of two that divides a row's length,
so that lengths such as 3200 = 25 x 128 waste no lane; its rows are what that leaves.
"""

import torch
import triton
import triton.language as tl
from megatron_lite.kernels.checks import FLOATS, check
from megatron_lite.kernels.launch import Launch, accumulator, block_of, on_every_target, options_for, rows_of
from megatron_lite.kernels.registration import differentiable, operation
from torch import Tensor

TILE = 1024
WIDTH = 64  # a tile's fewest columns: a line of the cache in bfloat16

# Fused: exp differs from the interpreter's bits in any case, and most instructions here are its and the quotient's.
FORWARD = on_every_target(Launch(4, fusion=True), gfx942=Launch(2, fusion=True))
BACKWARD = on_every_target(Launch(4, fusion=True), gfx942=Launch(2, fusion=True))


@triton.jit
def tile_of(rows, COLUMNS: tl.constexpr, ROW_BLOCK: tl.constexpr, BLOCK: tl.constexpr):
    """(row, column, inside) of this program's tile, programs counted along the rows first."""
    program = tl.program_id(0).to(tl.int64)
    across = tl.cdiv(COLUMNS, BLOCK)
    row = program // across * ROW_BLOCK + tl.arange(0, ROW_BLOCK)[:, None]
    column = program % across * BLOCK + tl.arange(0, BLOCK)[None, :]
    return row, column, (row < rows) & (column < COLUMNS)


@triton.jit
def forward_kernel(gate_up, y, stride, rows, COLUMNS: tl.constexpr,
                   ROW_BLOCK: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    row, column, inside = tile_of(rows, COLUMNS, ROW_BLOCK, BLOCK)
    source = gate_up + row * stride + column
    gate = tl.load(source, mask=inside, other=0.0).to(ACC)
    up = tl.load(source + COLUMNS, mask=inside, other=0.0).to(ACC)
    result = gate / (1 + tl.exp(-gate)) * up
    tl.store(y + row * COLUMNS + column, result.to(y.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(dy, gate_up, result, dy_stride, stride, rows, COLUMNS: tl.constexpr,
                    ROW_BLOCK: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    row, column, inside = tile_of(rows, COLUMNS, ROW_BLOCK, BLOCK)
    source = gate_up + row * stride + column
    gate = tl.load(source, mask=inside, other=0.0).to(ACC)
    up = tl.load(source + COLUMNS, mask=inside, other=0.0).to(ACC)
    gradient = tl.load(dy + row * dy_stride + column, mask=inside, other=0.0).to(ACC)
    sigmoid = 1 / (1 + tl.exp(-gate))
    to_gate = gradient * up * sigmoid * (1 + gate * (1 - sigmoid))
    to_up = gradient * (gate * sigmoid)
    target = result + row * (2 * COLUMNS) + column
    tl.store(target, to_gate.to(result.dtype.element_ty), mask=inside)
    tl.store(target + COLUMNS, to_up.to(result.dtype.element_ty), mask=inside)


def tiling(rows: int, columns: int) -> tuple[int, int, int]:
    """(programs, rows of a tile, columns of a tile); lanes are wasted on lengths that WIDTH does not divide."""
    divisor = columns & -columns
    block = min(max(divisor, WIDTH), TILE, block_of(columns))
    row_block = TILE // block
    return triton.cdiv(rows, row_block) * triton.cdiv(columns, block), row_block, block


def _check_packed(name: str, gate_up: Tensor) -> torch.Size:
    """The shape of one half."""
    check(name, "gate_up", gate_up, gate_up, dtype=FLOATS)
    if not gate_up.dim() or gate_up.shape[-1] % 2:
        raise ValueError(f"{name}: gate_up has shape {list(gate_up.shape)}, must be [.., 2 F]")
    return torch.Size((*gate_up.shape[:-1], gate_up.shape[-1] // 2))


def _fake(gate_up):
    return gate_up.new_empty((*gate_up.shape[:-1], gate_up.shape[-1] // 2))


@operation("swiglu(Tensor gate_up) -> Tensor", _fake)
def swiglu(gate_up):
    """silu(gate) up [.., F], in gate_up's dtype, of gate_up [.., 2 F]: F columns of gate, then F of up."""
    y = gate_up.new_empty(_check_packed("swiglu", gate_up))
    if y.numel():
        packed, columns = rows_of(gate_up), y.shape[-1]
        programs, *tile = tiling(len(packed), columns)
        forward_kernel[(programs,)](
            packed, y, packed.stride(0), len(packed), columns, *tile, accumulator(y.dtype),
            **options_for(FORWARD, y.device),
        )  # fmt: skip
    return y


def _fake_backward(gradient, gate_up):
    return gate_up.new_empty(gate_up.shape)


@operation("swiglu_backward(Tensor gradient, Tensor gate_up) -> Tensor", _fake_backward)
def swiglu_backward(gradient, gate_up):
    """The gradient of gate_up [.., 2 F], packed as it is, from that of y [.., F]."""
    name = "swiglu_backward"
    check(name, "gradient", gradient, gate_up, _check_packed(name, gate_up), gate_up.dtype)
    result = gate_up.new_empty(gate_up.shape)
    if result.numel():
        gradients, packed, columns = rows_of(gradient), rows_of(gate_up), gradient.shape[-1]
        programs, *tile = tiling(len(packed), columns)
        backward_kernel[(programs,)](
            gradients, packed, result, gradients.stride(0), packed.stride(0), len(packed), columns, *tile,
            accumulator(result.dtype), **options_for(BACKWARD, result.device),
        )  # fmt: skip
    return result


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, gradient):
    return swiglu_backward(gradient, *ctx.saved_tensors)


differentiable(swiglu, _keep, _backward)
