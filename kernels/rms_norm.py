"""RMSNorm, alone and after adding a residual (Zhang and Sennrich 2019, arXiv 1910.07467, equation 4).

    y = x r w,  r = 1 / sqrt(mean(x^2) + eps)
    dx = r (w dy - x r^2 mean(w dy x)),  dw = sum over rows of dy x r

One program works on a row at a time and holds all of it, so that x is read once in each direction. The weight gradient
is summed in PARTIALS parts by as many programs, whatever the device, and those are added in a fixed order: the same
bits on every GPU.
"""

import triton
import triton.language as tl
from megatron_lite.kernels.checks import FLOATS, check
from megatron_lite.kernels.costs import KEPT, PARTIALS
from megatron_lite.kernels.launch import (
    Launch,
    accumulator,
    accumulator_dtype,
    block_of,
    on_every_target,
    options_for,
    options_for_row,
    rows_of,
)
from megatron_lite.kernels.registration import differentiable, operation
from torch import Tensor

SUM_COLUMNS = 32

FORWARD = on_every_target(Launch(16), gfx942=Launch(8))
# Fused, the sums over rows and the result are a sixth fewer instructions.
BACKWARD = on_every_target(Launch(16, fusion=True), gfx942=Launch(8, fusion=True))
SUM = on_every_target(Launch(4))


@triton.jit
def forward_kernel(x, residual, weight, y, total, scales, x_stride, residual_stride, eps,
                   COLUMNS: tl.constexpr, BLOCK: tl.constexpr, ADDS: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < COLUMNS
    value = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(ACC)
    if ADDS:
        value += tl.load(residual + row * residual_stride + column, mask=inside, other=0.0).to(ACC)
        # The norm sees the sum as it is kept: rounded.
        value = value.to(total.dtype.element_ty)
        tl.store(total + row * COLUMNS + column, value, mask=inside)
        value = value.to(ACC)
    scale = tl.rsqrt(tl.sum(value * value, 0) / COLUMNS + eps)
    gain = tl.load(weight + column, mask=inside, other=0.0).to(ACC)
    tl.store(y + row * COLUMNS + column, (value * scale * gain).to(y.dtype.element_ty), mask=inside)
    tl.store(scales + row, scale)


@triton.jit
def backward_kernel(dy, dtotal, x, weight, scales, dx, partials, dy_stride, dtotal_stride, x_stride, rows,
                    COLUMNS: tl.constexpr, BLOCK: tl.constexpr, ADDS: tl.constexpr, ACC: tl.constexpr,
                    KEEPS: tl.constexpr):  # fmt: skip
    part = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < COLUMNS
    # A wide row, its gradient, its weight and the weight's gradient do not fit into registers all at once.
    if KEEPS:
        gain = tl.load(weight + column, mask=inside, other=0.0).to(ACC)
    weight_gradient = tl.zeros([BLOCK], ACC)
    for row in range(part, rows, tl.num_programs(0)):
        value = tl.load(x + row * x_stride + column, mask=inside, other=0.0,
                        eviction_policy="" if KEEPS else "evict_last").to(ACC)  # fmt: skip
        gradient = tl.load(dy + row * dy_stride + column, mask=inside, other=0.0).to(ACC)
        scale = tl.load(scales + row)
        value *= scale
        weight_gradient += gradient * value
        if KEEPS:
            gradient *= gain
        else:
            gradient *= tl.load(weight + column, mask=inside, other=0.0).to(ACC)
        inner = tl.sum(gradient * value, 0) / COLUMNS
        if not KEEPS:
            value = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(ACC) * scale
        result = scale * (gradient - value * inner)
        if ADDS:
            result += tl.load(dtotal + row * dtotal_stride + column, mask=inside, other=0.0).to(ACC)
        tl.store(dx + row * COLUMNS + column, result.to(dx.dtype.element_ty), mask=inside)
    tl.store(partials + part * COLUMNS + column, weight_gradient, mask=inside)


@triton.jit
def sum_kernel(partials, gradient, parts,
               COLUMNS: tl.constexpr, PARTS_BLOCK: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    part = tl.arange(0, PARTS_BLOCK)
    inside = column < COLUMNS
    here = (part[:, None] < parts) & inside[None, :]
    total = tl.sum(tl.load(partials + part[:, None] * COLUMNS + column[None, :], mask=here, other=0.0), 0)
    tl.store(gradient + column, tl.load(gradient + column, mask=inside, other=0.0) + total, mask=inside)


def _check_forward(name: str, x: Tensor, weight: Tensor, residual: Tensor | None = None) -> None:
    check(name, "x", x, x, dtype=FLOATS)
    if not x.dim() or not x.shape[-1]:
        raise ValueError(f"{name}: x has shape {list(x.shape)}, must be rows of at least one column")
    check(name, "weight", weight, x, x.shape[-1:], x.dtype)
    if residual is not None:
        check(name, "residual", residual, x, x.shape, x.dtype)


def _forward(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    rows = rows_of(x)
    other = rows if residual is None else rows_of(residual)
    y = x.new_empty(x.shape)
    total = y if residual is None else x.new_empty(x.shape)
    scales = x.new_empty(x.shape[:-1], dtype=accumulator_dtype(x.dtype))
    if rows.numel():
        block = block_of(x.shape[-1])
        forward_kernel[(rows.shape[0],)](
            rows, other, weight.contiguous(), y, total, scales, rows.stride(0), other.stride(0), eps,
            x.shape[-1], block, residual is not None, accumulator(x.dtype),
            **options_for_row(FORWARD, block * x.element_size(), x.device),
        )  # fmt: skip
    return y, total, scales


def _fake_forward(x, weight, eps):
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=accumulator_dtype(x.dtype))


@operation("rms_norm(Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)", _fake_forward)
def rms_norm(x, weight, eps):
    """y [.., H] in x's dtype, and r [..] in float32, of x [.., H] and weight [H]."""
    _check_forward("rms_norm", x, weight)
    y, _, scales = _forward(x, None, weight, eps)
    return y, scales


def _fake_add(x, residual, weight, eps):
    return x.new_empty(x.shape), x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=accumulator_dtype(x.dtype))


@operation("add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps) -> (Tensor, Tensor, Tensor)", _fake_add)
def add_rms_norm(x, residual, weight, eps):
    """(y, x + residual, r): the norm of the sum, and the sum as it goes on."""
    _check_forward("add_rms_norm", x, weight, residual)
    return _forward(x, residual, weight, eps)


def _fake_backward(dy, dtotal, x, weight, scales):
    rows = x.numel() // max(x.shape[-1], 1)
    return x.new_empty(x.shape), scales.new_empty((min(PARTIALS, rows), x.shape[-1]))


@operation(
    "rms_norm_backward(Tensor dy, Tensor? dtotal, Tensor x, Tensor weight, Tensor scales) -> (Tensor, Tensor)",
    _fake_backward,
)
def rms_norm_backward(dy, dtotal, x, weight, scales):
    """(dx [.., H], partial sums of dw [P, H] in float32), P at most PARTIALS.

    x is what the norm saw: with a residual the sum, whose own gradient is `dtotal`; dx is then both addends'.
    """
    name = "rms_norm_backward"
    _check_forward(name, x, weight)
    check(name, "dy", dy, x, x.shape, x.dtype)
    check(name, "scales", scales, x, x.shape[:-1], accumulator_dtype(x.dtype))
    if dtotal is not None:
        check(name, "dtotal", dtotal, x, x.shape, x.dtype)
    gradients, values = rows_of(dy), rows_of(x)
    other = gradients if dtotal is None else rows_of(dtotal)
    dx, partials = _fake_backward(dy, dtotal, x, weight, scales)
    if values.numel():
        block = block_of(x.shape[-1])
        backward_kernel[(partials.shape[0],)](
            gradients, other, values, weight.contiguous(), scales.contiguous(), dx, partials,
            gradients.stride(0), other.stride(0), values.stride(0), values.shape[0],
            x.shape[-1], block, dtotal is not None, accumulator(x.dtype), block <= KEPT,
            **options_for_row(BACKWARD, block * x.element_size(), x.device),
        )  # fmt: skip
    return dx, partials


@operation("add_partials_(Tensor(a!) gradient, Tensor partials) -> ()", lambda gradient, partials: None)
def add_partials_(gradient, partials):
    """gradient [H] += partials [P, H] summed over P in a fixed order, in the partials' dtype; P at most PARTIALS."""
    name, columns = "add_partials_", gradient.numel()
    check(name, "gradient", gradient, gradient, (columns,))
    check(name, "partials", partials, gradient, (*partials.shape[:1], columns), gradient.dtype)
    if partials.shape[0] > PARTIALS:
        raise ValueError(f"{name}: partials has {partials.shape[0]} rows, must be at most {PARTIALS}")
    if not gradient.is_contiguous():
        raise ValueError(f"{name}: gradient has stride {gradient.stride(0)}, must be contiguous")
    if columns:
        sum_kernel[(triton.cdiv(columns, SUM_COLUMNS),)](
            partials.contiguous(), gradient, partials.shape[0], columns, PARTIALS, SUM_COLUMNS,
            **options_for(SUM, gradient.device),
        )  # fmt: skip


def _weight_gradient(partials: Tensor, weight: Tensor) -> Tensor:
    total = partials.new_zeros(weight.shape)
    add_partials_(total, partials)
    return total.to(weight.dtype)


def _keep(ctx, inputs, output):
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, dy, _):
    x, weight, scales = ctx.saved_tensors
    dx, partials = rms_norm_backward(dy, None, x, weight, scales)
    return dx, _weight_gradient(partials, weight), None


def _keep_add(ctx, inputs, output):
    ctx.save_for_backward(output[1], inputs[2], output[2])
    ctx.mark_non_differentiable(output[2])


def _backward_add(ctx, dy, dtotal, _):
    total, weight, scales = ctx.saved_tensors
    dx, partials = rms_norm_backward(dy, dtotal, total, weight, scales)
    return dx, dx, _weight_gradient(partials, weight), None


differentiable(rms_norm, _keep, _backward)
differentiable(add_rms_norm, _keep_add, _backward_add)
