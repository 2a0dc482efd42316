"""Cross-entropy over a vocabulary cut into ranks' columns (Shoeybi et al. 2019, arXiv 1909.08053, section 3).

A rank has logits [.., V_local]; its first `real` columns are vocabulary, the rest padding outside the softmax. `target`
[..] int64 is the label's column here, or anything outside [0, real): another rank's label, or one that does not count.

    forward    every rank's statistics   s = log sum over its columns of exp(x),  t = x at the label, else 0
               all ranks' combined       log_sum = log sum over ranks of exp(s),  target_logit = sum over ranks of t
    loss       sum over counted tokens of (log_sum - target_logit) + z log_sum^2
    backward   dx = exp(x - log_sum) (g + h) - [column is the label] g
               with g = d loss / d(log_sum - target_logit) and h = d loss / d log_sum beside it

The loss above divided by `count` has g = 1 / count and h = 2 z log_sum / count (z-loss: Chowdhery et al. 2022, arXiv
2204.02311, section 5) where a token counts, 0 and 0 where it does not: ignored labels, their number and z-loss are the
caller's. `combine_statistics` in kernels/reference/cross_entropy.py is the second line; the ranks' statistics reach it
through the caller.

One program works on a row. Forward reads it once: each of LANES lanes keeps the maximum of what it has seen and the sum
scaled by it (Milakov and Gimelshein 2018, arXiv 1805.02867, algorithm 3), and the lanes are combined at the end.
Backward writes the gradient over the logits. In bfloat16 that is 2 + 4 bytes an element in all.
"""

import torch
import triton
import triton.language as tl
from megatron_lite.kernels.checks import FLOATS, check
from megatron_lite.kernels.costs import padded
from megatron_lite.kernels.launch import Launch, accumulator, accumulator_dtype, on_every_target, options_for, rows_of
from megatron_lite.kernels.registration import differentiable, operation
from torch import Tensor

TILE = 2048
LANES = 128  # one for each thread, so that the loop needs no exchange between threads

LAUNCHES = on_every_target(Launch(4), gfx942=Launch(2))


@triton.jit
def exp(x):
    # tl.exp would spend three more instructions an element on results below 2^-126.
    return tl.exp2(x * 1.4426950408889634)


@triton.jit
def finite_or_zero(largest):
    # What a maximum is subtracted as: -inf less -inf is NaN.
    return tl.where(largest == float("-inf"), 0.0, largest)


@triton.jit
def column_here(label, REAL: tl.constexpr):
    """The label's column in 32 bits, -1 where it is not among the real ones."""
    return tl.where((label >= 0) & (label < REAL), label, -1).to(tl.int32)


@triton.jit
def take_in(tile, label, largest, total, picked, LANES: tl.constexpr, WIDTH: tl.constexpr):
    """Update the lanes' maxima, sums and target logits by a tile [TILE]; -inf is outside the softmax.

    A lane's elements are the WIDTH neighbours that a thread loads at once, again every LANES * WIDTH.
    """
    TURNS: tl.constexpr = tile.shape[0] // (LANES * WIDTH)
    value = tl.reshape(tile, [TURNS, LANES, WIDTH])
    new = tl.maximum(largest, tl.max(tl.max(value, 2), 0))
    shift = finite_or_zero(new)
    part = tl.sum(tl.sum(exp(value - shift[None, :, None]), 2), 0)
    total = total * exp(largest - shift) + part
    if (label >= 0) & (label < tile.shape[0]):
        # In parts: the compiler would keep every element's column in a register for the whole loop.
        turn = (tl.arange(0, TURNS) == label // (LANES * WIDTH))[:, None, None]
        lane = (tl.arange(0, LANES) == label // WIDTH % LANES)[None, :, None]
        place = (tl.arange(0, WIDTH) == label % WIDTH)[None, None, :]
        picked = tl.sum(tl.sum(tl.where(turn & lane & place, value, 0.0), 2), 0)
    return new, total, picked


@triton.jit
def load_last(place, column, REAL: tl.constexpr, READ: tl.constexpr, ACC: tl.constexpr):
    """A tile that real columns end in, -inf from there on. What is read ends with 128 bits: there is padding."""
    tile = tl.load(place, mask=column < READ, other=float("-inf")).to(ACC)
    return tile if READ == REAL else tl.where(column < REAL, tile, float("-inf"))


@triton.jit
def statistics_kernel(logits, target, log_sums, target_logits, stride, REAL: tl.constexpr, READ: tl.constexpr,
                      TILE: tl.constexpr, LANES: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    WIDTH: tl.constexpr = 128 // logits.dtype.element_ty.primitive_bitwidth
    WHOLE: tl.constexpr = REAL // TILE * TILE
    logits += row * stride
    column = tl.arange(0, TILE)
    label = column_here(tl.load(target + row), REAL)
    largest = tl.full([LANES], float("-inf"), ACC)
    total = tl.zeros([LANES], ACC)
    picked = tl.zeros([LANES], ACC)
    for start in range(0, WHOLE, TILE):
        tile = tl.load(logits + start + column).to(ACC)
        largest, total, picked = take_in(tile, label - start, largest, total, picked, LANES, WIDTH)
    if WHOLE < REAL:
        tile = load_last(logits + WHOLE + column, WHOLE + column, REAL, READ, ACC)
        largest, total, picked = take_in(tile, label - WHOLE, largest, total, picked, LANES, WIDTH)
    shift = finite_or_zero(tl.max(largest, 0))
    tl.store(log_sums + row, shift + tl.log(tl.sum(total * exp(largest - shift), 0)))
    tl.store(target_logits + row, tl.sum(picked, 0))


@triton.jit
def gradient_of(tile, start, column, label, log_sum, loss_gradient, factor):
    gradient = exp(tile - log_sum) * factor
    if (label >= start) & (label < start + tile.shape[0]):
        gradient = tl.where(start + column == label, gradient - loss_gradient, gradient)
    return gradient


@triton.jit
def gradient_kernel(logits, target, log_sums, loss_gradients, log_sum_gradients, stride,
                    REAL: tl.constexpr, READ: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr,
                    ACC: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    WHOLE: tl.constexpr = REAL // TILE * TILE
    logits += row * stride
    column = tl.arange(0, TILE)
    label = column_here(tl.load(target + row), REAL)
    log_sum = tl.load(log_sums + row)
    # exp(x - inf) = 0: the softmax of a row that is masked throughout is nothing.
    log_sum = tl.where(log_sum == float("-inf"), float("inf"), log_sum)
    loss_gradient = tl.load(loss_gradients + row)
    factor = loss_gradient + tl.load(log_sum_gradients + row)
    for start in range(0, WHOLE, TILE):
        place = logits + start + column
        gradient = gradient_of(tl.load(place).to(ACC), start, column, label, log_sum, loss_gradient, factor)
        tl.store(place, gradient.to(logits.dtype.element_ty))
    for start in range(WHOLE, COLUMNS, TILE):
        place = logits + start + column
        # exp(-inf) = 0 is the padding's gradient.
        tile = load_last(place, start + column, REAL, READ, ACC)
        gradient = gradient_of(tile, start, column, label, log_sum, loss_gradient, factor)
        tl.store(place, gradient.to(logits.dtype.element_ty), mask=start + column < COLUMNS)


def read_of(real: int, logits: Tensor) -> int:
    """How many columns are read for the real ones: up to the next 128 bits, as far as there is padding."""
    return padded(real, logits.shape[-1], logits.element_size())


def check_logits(name: str, logits: Tensor, target: Tensor, real: int) -> None:
    check(name, "logits", logits, logits, dtype=FLOATS)
    check(name, "target", target, logits, logits.shape[:-1], torch.int64)
    if not 0 <= real <= logits.shape[-1]:
        raise ValueError(f"{name}: real is {real}, must be from 0 to the {logits.shape[-1]} columns of logits")


def check_numbers(name: str, logits: Tensor, **numbers: Tensor) -> None:
    """What each row has beside its label."""
    for what, tensor in numbers.items():
        check(name, what, tensor, logits, logits.shape[:-1], accumulator_dtype(logits.dtype))


def rows_in_place(name: str, logits: Tensor) -> Tensor:
    """[.., columns] as [rows, columns] in the same memory; where that cannot be, a ValueError."""
    rows = logits.reshape(logits.shape[:-1].numel(), logits.shape[-1])
    if rows.data_ptr() != logits.data_ptr() or rows.stride(-1) != 1:
        raise ValueError(f"{name}: logits has strides {logits.stride()}, must be rows without gaps, evenly apart")
    return rows


def _fake_statistics(logits, target, real):
    exact = accumulator_dtype(logits.dtype)
    return logits.new_empty(logits.shape[:-1], dtype=exact), logits.new_empty(logits.shape[:-1], dtype=exact)


@operation("cross_entropy_statistics(Tensor logits, Tensor target, int real) -> (Tensor, Tensor)", _fake_statistics)
def cross_entropy_statistics(logits, target, real):
    """This rank's (log_sum [..], target_logit [..]) in float32 (float64 for float64) of logits [.., V_local].

    log_sum is -inf where there is nothing to sum, target_logit 0 where the label is not here. Its gradient makes a copy
    of the logits; `cross_entropy_gradient_` does without.
    """
    check_logits("cross_entropy_statistics", logits, target, real)
    log_sum, target_logit = _fake_statistics(logits, target, real)
    if log_sum.numel():
        rows = rows_of(logits)
        statistics_kernel[(rows.shape[0],)](
            rows, target.contiguous(), log_sum, target_logit, rows.stride(0),
            real, read_of(real, logits), TILE, LANES, accumulator(logits.dtype),
            **options_for(LAUNCHES, logits.device),
        )  # fmt: skip
    return log_sum, target_logit


@operation(
    "cross_entropy_gradient_(Tensor(a!) logits, Tensor target, int real, Tensor log_sum, Tensor loss_gradient, "
    "Tensor log_sum_gradient) -> ()",
    lambda logits, target, real, log_sum, loss_gradient, log_sum_gradient: None,
)
def cross_entropy_gradient_(logits, target, real, log_sum, loss_gradient, log_sum_gradient):
    """Put their gradient in the place of logits [.., V_local], whose rows must lie evenly apart and have no gaps.

    log_sum [..] is that of all ranks, also where a label does not count; loss_gradient [..] is g above,
    log_sum_gradient [..] is h, each 0 where a label does not count; all in float32 (float64 for float64). Columns from
    `real` on become 0.
    """
    name = "cross_entropy_gradient_"
    check_logits(name, logits, target, real)
    check_numbers(name, logits, log_sum=log_sum, loss_gradient=loss_gradient, log_sum_gradient=log_sum_gradient)
    rows = rows_in_place(name, logits)
    if logits.numel():
        gradient_kernel[(rows.shape[0],)](
            rows, target.contiguous(), log_sum.contiguous(), loss_gradient.contiguous(), log_sum_gradient.contiguous(),
            rows.stride(0), real, read_of(real, logits), rows.shape[1], TILE, accumulator(logits.dtype),
            **options_for(LAUNCHES, logits.device),
        )  # fmt: skip


def _keep(ctx, inputs, output):
    logits, target, ctx.real = inputs
    ctx.save_for_backward(logits, target, output[0])


def _backward(ctx, log_sum_gradient, target_gradient):
    logits, target, log_sum = ctx.saved_tensors
    gradient = logits.clone(memory_format=torch.contiguous_format)
    # g is minus the target logit's gradient, and g + h the log-sum's.
    cross_entropy_gradient_(gradient, target, ctx.real, log_sum, -target_gradient, log_sum_gradient + target_gradient)
    return gradient, None, None


differentiable(cross_entropy_statistics, _keep, _backward)
