"""SwiGLU of packed columns [gate | up] (Shazeer 2020, arXiv 2002.05202, equation 6), with s = 1 / (1 + exp(-gate)).

    y = gate s up
    dgate = dy up s (1 + gate (1 - s)),  dup = dy gate s

A program works on BLOCK consecutive elements of y, which may begin in one row and end in another: no row length wastes
more lanes than those of the last program.
"""

import torch
import triton
import triton.language as tl
from megatron_lite.kernels.launch import FLOATS, Launch, accumulator, check, on_every_target, options_for, rows_of
from megatron_lite.kernels.registration import differentiable, operation
from torch import Tensor

BLOCK = 1024

FORWARD = on_every_target(Launch(4), gfx942=Launch(2))
BACKWARD = on_every_target(Launch(4), gfx942=Launch(2))


@triton.jit
def places_of(COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """(place in y, row, column) of this program's elements. Only the start needs 64 bits to be divided."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    element = tl.arange(0, BLOCK)
    beyond = (start % COLUMNS).to(tl.int32) + element
    return start + element, start // COLUMNS + beyond // COLUMNS, beyond % COLUMNS


@triton.jit
def forward_kernel(gate_up, y, stride, elements,
                   COLUMNS: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    place, row, column = places_of(COLUMNS, BLOCK)
    inside = place < elements
    source = gate_up + row * stride + column
    gate = tl.load(source, mask=inside, other=0.0).to(ACC)
    up = tl.load(source + COLUMNS, mask=inside, other=0.0).to(ACC)
    result = gate / (1 + tl.exp(-gate)) * up
    tl.store(y + place, result.to(y.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(dy, gate_up, result, dy_stride, stride, elements,
                    COLUMNS: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    place, row, column = places_of(COLUMNS, BLOCK)
    inside = place < elements
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
        rows = rows_of(gate_up)
        forward_kernel[(triton.cdiv(y.numel(), BLOCK),)](
            rows, y, rows.stride(0), y.numel(), y.shape[-1], BLOCK, accumulator(y.dtype),
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
        gradients, rows = rows_of(gradient), rows_of(gate_up)
        backward_kernel[(triton.cdiv(gradient.numel(), BLOCK),)](
            gradients, rows, result, gradients.stride(0), rows.stride(0), gradient.numel(),
            gradient.shape[-1], BLOCK, accumulator(result.dtype),
            **options_for(BACKWARD, result.device),
        )  # fmt: skip
    return result


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, gradient):
    return swiglu_backward(gradient, *ctx.saved_tensors)


differentiable(swiglu, _keep, _backward)
