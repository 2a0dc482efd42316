"""RMSNorm with and without a residual: a power of two of columns and none, one row, more rows than partial sums."""

import torch
from megatron_lite.kernels import costs, rms_norm
from megatron_lite.kernels.reference import rms_norm as reference
from support.kernels.harness import Case, exact_of, random

SIZES = [(5, 123), (1, 64), (7, 8192), (3, 8200), (3, 5, 48), (131, 17)]
EPS = 1e-5


def forward_inputs(size, dtype, generator):
    return random(size, dtype, generator), random(size[-1:], dtype, generator), EPS


def add_inputs(size, dtype, generator):
    x, residual = random(size, dtype, generator), random(size, dtype, generator)
    return x, residual, random(size[-1:], dtype, generator), EPS


def backward_inputs(size, dtype, generator):
    x, weight, _ = forward_inputs(size, dtype, generator)
    scales = (x.to(exact_of(dtype)).square().mean(-1) + EPS).rsqrt()
    return random(size, dtype, generator), None, x, weight, scales


def add_backward_inputs(size, dtype, generator):
    dy, _, x, weight, scales = backward_inputs(size, dtype, generator)
    return dy, random(size, dtype, generator), x, weight, scales


def summed(operation):
    """The parts of the weight's gradient are the operation's own business."""

    def whole(*arguments):
        dx, partials = operation(*arguments)
        return dx, partials.sum(0)

    return whole


def accumulated(operation):
    def into(gradient, partials):
        operation(gradient, partials)
        return (gradient,)

    return into


def partials_inputs(size, dtype, generator):
    return random(size[1:], exact_of(dtype), generator), random(size, exact_of(dtype), generator)


def rows_of(size):
    return torch.Size(size[:-1]).numel(), size[-1]


CASES = [
    Case(
        "rms_norm", rms_norm.rms_norm, reference.rms_norm, forward_inputs, SIZES,
        lambda size, element, exact: costs.rms_norm(*rows_of(size), element, exact),
    ),
    Case(
        "add_rms_norm", rms_norm.add_rms_norm, reference.add_rms_norm, add_inputs, SIZES,
        lambda size, element, exact: costs.add_rms_norm(*rows_of(size), element, exact),
    ),
    Case(
        "rms_norm_backward", summed(rms_norm.rms_norm_backward), summed(reference.rms_norm_backward),
        backward_inputs, SIZES,
        lambda size, element, exact: costs.rms_norm_backward(*rows_of(size), element, False, exact), backward=True,
    ),
    Case(
        "add_rms_norm_backward", summed(rms_norm.rms_norm_backward), summed(reference.rms_norm_backward),
        add_backward_inputs, SIZES,
        lambda size, element, exact: costs.rms_norm_backward(*rows_of(size), element, True, exact), backward=True,
    ),
    Case(
        "add_partials_", accumulated(rms_norm.add_partials_), accumulated(reference.add_partials_),
        partials_inputs, [(7, 123), (1, 64), (128, 40)],
        lambda size, element, exact: costs.add_partials_(*size, exact),
    ),
]  # fmt: skip
