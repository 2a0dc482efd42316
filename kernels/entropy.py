"""Entropy beside the cross-entropy, over a vocabulary cut into ranks' columns: what reinforcement learning asks for.

Objectives there have the entropy of each token's distribution as a bonus or a figure to watch (Mnih et al. 2016, arXiv
1602.01783, section 4). Logits, `real` and `target` are those of kernels/cross_entropy.py, and so are s, t, g and h:

    forward    every rank's statistics   s, t,  u = sum over its columns of exp(x - s) x,  m = max x
               all ranks' combined       mean_logit = sum over ranks of exp(s - log_sum) u,  largest = max m
    entropy    H = -sum of p log p = log_sum - mean_logit,  p = exp(x - log_sum)
    argmax     the label is (among) the largest where target_logit == largest
    backward   dx = p (g + h + c (mean_logit - x)) - [column is the label] g,  c = d loss / d H

For dH/dx = p - d mean_logit/dx, and d mean_logit/dx = p (1 + x - mean_logit). `combine_entropy_statistics` in
kernels/reference/entropy.py is the second line.

Forward reads a row once, as there. Beside its maximum m and the sum of exp(x - m), each lane keeps the moment, the sum
of exp(x - m) (x - m): about the maximum, as sums of exp(x) x would lose the digits of logits far from 0. H itself is a
difference of numbers of the logits' size, and errs by their last place. Backward writes the gradient over the logits.
"""

import torch
import triton
import triton.language as tl
from megatron_lite.kernels.cross_entropy import (
    LANES,
    TILE,
    check_logits,
    check_numbers,
    column_here,
    exp,
    finite_or_zero,
    gradient_of,
    load_last,
    read_of,
    rows_in_place,
    take_in,
)
from megatron_lite.kernels.launch import Launch, accumulator, accumulator_dtype, on_every_target, options_for, rows_of
from megatron_lite.kernels.registration import differentiable, operation

LAUNCHES = on_every_target(Launch(4), gfx942=Launch(2))


@triton.jit
def not_far(below):
    # So far below, exp is 0 in float64 too; and 0 times infinity would be NaN.
    return tl.maximum(below, -1e4)


@triton.jit
def about(shift, largest, total, moment):
    """The moment about `shift`, from the sum and the moment about `largest`, which may be -inf."""
    below = largest - shift
    return exp(below) * (moment + total * not_far(below))


@triton.jit
def take_in_moment(tile, label, largest, total, moment, picked, LANES: tl.constexpr, WIDTH: tl.constexpr):
    """What `take_in` does, and the lanes' moments. It makes the same differences and exp, which are compiled once."""
    new, new_total, picked = take_in(tile, label, largest, total, picked, LANES, WIDTH)
    shift = finite_or_zero(new)
    below = tl.reshape(tile, [tile.shape[0] // (LANES * WIDTH), LANES, WIDTH]) - shift[None, :, None]
    part = tl.sum(tl.sum(exp(below) * not_far(below), 2), 0)
    return new, new_total, about(shift, largest, total, moment) + part, picked


@triton.jit
def statistics_kernel(logits, target, log_sums, target_logits, mean_logits, maxima, stride,
                      REAL: tl.constexpr, READ: tl.constexpr, TILE: tl.constexpr, LANES: tl.constexpr,
                      ACC: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    WIDTH: tl.constexpr = 128 // logits.dtype.element_ty.primitive_bitwidth
    WHOLE: tl.constexpr = REAL // TILE * TILE
    logits += row * stride
    column = tl.arange(0, TILE)
    label = column_here(tl.load(target + row), REAL)
    largest = tl.full([LANES], float("-inf"), ACC)
    total = tl.zeros([LANES], ACC)
    moment = tl.zeros([LANES], ACC)
    picked = tl.zeros([LANES], ACC)
    for start in range(0, WHOLE, TILE):
        tile = tl.load(logits + start + column).to(ACC)
        largest, total, moment, picked = take_in_moment(
            tile, label - start, largest, total, moment, picked, LANES, WIDTH
        )
    if WHOLE < REAL:
        tile = load_last(logits + WHOLE + column, WHOLE + column, REAL, READ, ACC)
        largest, total, moment, picked = take_in_moment(
            tile, label - WHOLE, largest, total, moment, picked, LANES, WIDTH
        )
    top = tl.max(largest, 0)
    shift = finite_or_zero(top)
    whole = tl.sum(total * exp(largest - shift), 0)
    whole_moment = tl.sum(about(shift, largest, total, moment), 0)
    tl.store(log_sums + row, shift + tl.log(whole))
    tl.store(target_logits + row, tl.sum(picked, 0))
    tl.store(mean_logits + row, shift + whole_moment / tl.where(whole == 0, 1.0, whole))
    tl.store(maxima + row, top)


@triton.jit
def gradient_kernel(logits, target, log_sums, mean_logits, loss_gradients, log_sum_gradients, entropy_gradients, stride,
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
    mean = tl.load(mean_logits + row)
    loss_gradient = tl.load(loss_gradients + row)
    both = loss_gradient + tl.load(log_sum_gradients + row)
    of_entropy = tl.load(entropy_gradients + row)
    for start in range(0, WHOLE, TILE):
        place = logits + start + column
        tile = tl.load(place).to(ACC)
        factor = both - of_entropy * not_far(tile - mean)
        gradient = gradient_of(tile, start, column, label, log_sum, loss_gradient, factor)
        tl.store(place, gradient.to(logits.dtype.element_ty))
    for start in range(WHOLE, COLUMNS, TILE):
        place = logits + start + column
        # exp(-inf) = 0 is the padding's gradient.
        tile = load_last(place, start + column, REAL, READ, ACC)
        factor = both - of_entropy * not_far(tile - mean)
        gradient = gradient_of(tile, start, column, label, log_sum, loss_gradient, factor)
        tl.store(place, gradient.to(logits.dtype.element_ty), mask=start + column < COLUMNS)


def _fake_statistics(logits, target, real):
    exact = accumulator_dtype(logits.dtype)
    return tuple(logits.new_empty(logits.shape[:-1], dtype=exact) for _ in range(4))


@operation(
    "entropy_statistics(Tensor logits, Tensor target, int real) -> (Tensor, Tensor, Tensor, Tensor)", _fake_statistics
)
def entropy_statistics(logits, target, real):
    """This rank's (log_sum, target_logit, mean_logit, largest), each [..], of logits [.., V_local].

    In float32 (float64 for float64). The first two are cross_entropy_statistics' bits. Where there is nothing to sum,
    mean_logit is 0 and largest -inf. Logits of -inf count for nothing. `largest` has no gradient.
    """
    check_logits("entropy_statistics", logits, target, real)
    statistics = _fake_statistics(logits, target, real)
    if target.numel():
        rows = rows_of(logits)
        statistics_kernel[(rows.shape[0],)](
            rows, target.contiguous(), *statistics, rows.stride(0),
            real, read_of(real, logits), TILE, LANES, accumulator(logits.dtype),
            **options_for(LAUNCHES, logits.device),
        )  # fmt: skip
    return statistics


@operation(
    "entropy_gradient_(Tensor(a!) logits, Tensor target, int real, Tensor log_sum, Tensor mean_logit, "
    "Tensor loss_gradient, Tensor log_sum_gradient, Tensor entropy_gradient) -> ()",
    lambda logits, target, real, log_sum, mean_logit, loss_gradient, log_sum_gradient, entropy_gradient: None,
)
def entropy_gradient_(logits, target, real, log_sum, mean_logit, loss_gradient, log_sum_gradient, entropy_gradient):
    """Put their gradient in the place of logits [.., V_local], whose rows must lie evenly apart and have no gaps.

    log_sum [..] and mean_logit [..] are those of all ranks, also where a label does not count; loss_gradient [..] is g
    above, log_sum_gradient [..] is h, entropy_gradient [..] is c; all in float32 (float64 for float64). Columns from
    `real` on become 0.
    """
    name = "entropy_gradient_"
    check_logits(name, logits, target, real)
    check_numbers(
        name, logits, log_sum=log_sum, mean_logit=mean_logit, loss_gradient=loss_gradient,
        log_sum_gradient=log_sum_gradient, entropy_gradient=entropy_gradient,
    )  # fmt: skip
    rows = rows_in_place(name, logits)
    if logits.numel():
        numbers = log_sum, mean_logit, loss_gradient, log_sum_gradient, entropy_gradient
        gradient_kernel[(rows.shape[0],)](
            rows, target.contiguous(), *(number.contiguous() for number in numbers), rows.stride(0),
            real, read_of(real, logits), rows.shape[1], TILE, accumulator(logits.dtype),
            **options_for(LAUNCHES, logits.device),
        )  # fmt: skip


def _keep(ctx, inputs, output):
    logits, target, ctx.real = inputs
    log_sum, _, mean_logit, largest = output
    ctx.mark_non_differentiable(largest)
    ctx.save_for_backward(logits, target, log_sum, mean_logit)


def _backward(ctx, log_sum_gradient, target_gradient, mean_gradient, _):
    logits, target, log_sum, mean_logit = ctx.saved_tensors
    gradient = logits.clone(memory_format=torch.contiguous_format)
    # mean_logit is log_sum - H: g is minus the target logit's gradient, g + h the others' sum, c minus the mean's.
    shared = log_sum_gradient + target_gradient + mean_gradient
    entropy_gradient_(gradient, target, ctx.real, log_sum, mean_logit, -target_gradient, shared, -mean_gradient)
    return gradient, None, None


differentiable(entropy_statistics, _keep, _backward)
