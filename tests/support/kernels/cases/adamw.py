"""AdamW over a shard: below, at and above a block's size; all of it decayed, some, none; with and without a copy."""

import torch
from megatron_lite.kernels import adamw, costs
from megatron_lite.kernels.reference import adamw as reference
from support.kernels.harness import Case, exact_of, random

SIZES = [(1000, 123), (1, 1), (1024, 0), (4096, 4096), (2052, 1024)]
SETTINGS = (3e-3, [0.9, 0.95], 1e-8, 0.1)


def inputs(size, dtype, generator):
    """Gradients of many magnitudes; a bfloat16 run has float32 state and a bfloat16 copy."""
    count, decayed = size
    exact = exact_of(dtype)
    master, gradient, first, second = (random((count,), exact, generator) for _ in range(4))
    gradient *= torch.logspace(-12, 4, count, dtype=exact)
    clip = torch.tensor(0.37, dtype=exact)
    compute = None if dtype == exact else torch.zeros(count, dtype=dtype)
    return master, gradient, first, second.square(), compute, clip, decayed, 7, *SETTINGS


def unclipped_inputs(size, dtype, generator):
    master, gradient, first, second, _, _, *rest = inputs(size, dtype, generator)
    return master, gradient, first, second, None, None, *rest


def updated(operation):
    """What was written into but for the gradient, which is used up."""

    def update(*arguments):
        operation(*arguments)
        master, _, first, second, compute, *_ = arguments
        return (master, first, second) if compute is None else (master, first, second, compute)

    return update


def cost(size, element, exact, clips=True):
    return costs.adamw_(size[0], element if element < exact else 0, exact, clips, block=adamw.BLOCK)


CASES = [
    Case("adamw_", updated(adamw.adamw_), updated(reference.adamw_), inputs, SIZES, cost),
    Case(
        "adamw_unclipped", updated(adamw.adamw_), updated(reference.adamw_), unclipped_inputs, SIZES,
        lambda size, element, exact: cost(size, exact, exact, clips=False),
    ),
]  # fmt: skip
