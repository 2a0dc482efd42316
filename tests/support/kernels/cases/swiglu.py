"""SwiGLU: rows that fill programs and rows that cross them, one row, odd halves, large gates of both signs."""

from megatron_lite.kernels import costs, swiglu
from megatron_lite.kernels.reference import swiglu as reference
from support.kernels.harness import Case, random

SIZES = [(5, 123), (1, 64), (3, 1024), (2, 2, 3200), (1027, 1)]  # y's


def forward_inputs(size, dtype, generator):
    gate_up = random((*size[:-1], 2 * size[-1]), dtype, generator)
    gate_up[..., :: size[-1] // 3 + 1] *= 15
    return (gate_up,)


def backward_inputs(size, dtype, generator):
    return random(size, dtype, generator), *forward_inputs(size, dtype, generator)


def single(operation):
    return lambda *arguments: (operation(*arguments),)


def elements_of(size):
    product = 1
    for length in size:
        product *= length
    return product


CASES = [
    Case(
        "swiglu", single(swiglu.swiglu), single(reference.swiglu), forward_inputs, SIZES,
        lambda size, element, exact: costs.swiglu(elements_of(size), element),
    ),
    Case(
        "swiglu_backward", single(swiglu.swiglu_backward), single(reference.swiglu_backward), backward_inputs, SIZES,
        lambda size, element, exact: costs.swiglu_backward(elements_of(size), element), backward=True,
    ),
]  # fmt: skip
