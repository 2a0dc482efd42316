"""AdamW over one flat shard, each element read and written once (Loshchilov and Hutter 2019, arXiv 1711.05101).

    m = b1 m + (1 - b1) c g          v = b2 v + (1 - b2) (c g)^2
    p = p (1 - lr * decay) - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

Algorithm 2 of the paper, the decay scaled by the learning rate as torch.optim.AdamW does; c is the clip coefficient.
30 bytes a parameter: four float32 read, three and a bfloat16 written. Roots and quotients are the correctly rounded
ones, which float64 always has, so that every GPU computes the same bits.
"""

from math import sqrt

import numpy as np
import triton
import triton.language as tl
from megatron_lite.kernels.checks import FLOATS, check
from megatron_lite.kernels.launch import Launch, accumulator, on_every_target, options_for
from megatron_lite.kernels.registration import operation
from torch import float32, float64

BLOCK = 1024

UPDATE = on_every_target(Launch(8), gfx942=Launch(4))


@triton.jit
def number(halves, ACC: tl.constexpr):
    """What `halves_of` took apart."""
    value = tl.cast(halves[0], ACC)
    if value.dtype == tl.float64:
        value += tl.cast(halves[1], ACC)
    return value


@triton.jit
def root(x):
    return tl.sqrt(x) if x.dtype == tl.float64 else tl.sqrt_rn(x)


@triton.jit
def quotient(x, y):
    return x / y if x.dtype == tl.float64 else tl.div_rn(x, y)


@triton.jit(do_not_specialize=["decayed"])
def update_kernel(master, gradient, first, second, compute, clip, size, decayed, numbers,
                  CLIPS: tl.constexpr, COPIES: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    g = tl.load(gradient + place, mask=inside, other=0.0)
    m = tl.load(first + place, mask=inside, other=0.0)
    v = tl.load(second + place, mask=inside, other=0.0)
    p = tl.load(master + place, mask=inside, other=0.0)
    if CLIPS:
        g *= tl.load(clip)
    m = number(numbers[0], ACC) * m + number(numbers[1], ACC) * g
    v = number(numbers[2], ACC) * v + number(numbers[3], ACC) * (g * g)
    p = tl.where(place < decayed, p * number(numbers[4], ACC), p)
    spread = root(v) * number(numbers[6], ACC) + number(numbers[7], ACC)
    p -= quotient(number(numbers[5], ACC) * m, spread)
    tl.store(first + place, m, mask=inside)
    tl.store(second + place, v, mask=inside)
    tl.store(master + place, p, mask=inside)
    if COPIES:
        tl.store(compute + place, p.to(compute.dtype.element_ty), mask=inside)


def bias_correction(beta: float, updates: int) -> float:
    """1 - beta^t, by which a moment that began at 0 is too small after t updates."""
    return 1.0 - beta**updates


def halves_of(value: float) -> tuple[float, float]:
    """Two float32 whose sum is the value to 48 bits: Triton hands every Python float to a GPU as a float32."""
    high = float(np.float32(value))
    return high, value - high


def _numbers(betas, eps: float, learning_rate: float, decay: float, updates: int) -> tuple[tuple[float, float], ...]:
    """What the kernel multiplies by, in its order, from float64."""
    (b1, b2), (c1, c2) = betas, (bias_correction(beta, updates) for beta in betas)
    values = (b1, 1 - b1, b2, 1 - b2, 1 - learning_rate * decay, learning_rate / c1, 1 / sqrt(c2), eps)
    return tuple(map(halves_of, values))


@operation(
    "adamw_(Tensor(a!) master, Tensor gradient, Tensor(b!) first, Tensor(c!) second, Tensor(d!)? compute, "
    "Tensor? clip, int decayed, int updates, float learning_rate, float[] betas, float eps, float decay) -> ()",
    lambda *arguments: None,
)
def adamw_(master, gradient, first, second, compute, clip, decayed, updates, learning_rate, betas, eps, decay):
    """Update number `updates` (the first is 1) of master, first and second [S], all float32 or all float64.

    compute [S] in a narrower dtype, or None, receives the new master. clip [] in the master's dtype, or None, scales
    the gradient [S], which is used up: it stays as it is here, and scaled after other implementations; none takes
    memory for a copy. Elements below index `decayed` take weight decay. Raises ValueError for other shapes and dtypes,
    for what is not contiguous, and for fewer than one update.
    """
    name = "adamw_"
    check(name, "master", master, master, (master.numel(),), (float32, float64))
    for label, tensor in (("gradient", gradient), ("first", first), ("second", second)):
        check(name, label, tensor, master, master.shape, master.dtype)
    if compute is not None:
        check(name, "compute", compute, master, master.shape, FLOATS)
    if clip is not None:
        check(name, "clip", clip, master, (), master.dtype)
    if updates < 1:
        raise ValueError(f"{name}: updates is {updates}, must be at least 1")
    for label, tensor in (("master", master), ("gradient", gradient), ("first", first), ("second", second),
                          ("compute", compute)):  # fmt: skip
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(f"{name}: {label} has stride {tensor.stride(0)}, must be contiguous")
    if master.numel():
        update_kernel[(triton.cdiv(master.numel(), BLOCK),)](
            master, gradient, first, second, master if compute is None else compute, master if clip is None else clip,
            master.numel(), decayed, _numbers(betas, eps, learning_rate, decay, updates),
            clip is not None, compute is not None, BLOCK, accumulator(master.dtype),
            **options_for(UPDATE, master.device),
        )  # fmt: skip
