"""The sum of squares of shards: one element, none, a tile, a block, one more; several of one length."""

import torch
from megatron_lite.kernels import costs
from megatron_lite.kernels import square_norm as kernels
from megatron_lite.kernels.reference import square_norm as reference
from megatron_lite.kernels.square_norm import BLOCK, TILE
from support.kernels.harness import Case, exact_of, random

LENGTHS = [(1,), (BLOCK,), (123, 5, 0, TILE, TILE + 1), (BLOCK + 1, 2 * BLOCK - 3, 17), (4096,) * 9]


def inputs(lengths, dtype, generator):
    """Magnitudes over ten orders; a bfloat16 run has float32 gradients."""
    exact = exact_of(dtype)
    return tuple(random((n,), exact, generator) * torch.logspace(-7, 3, max(n, 1), dtype=exact)[:n] for n in lengths)


def summed(operation):
    return lambda *shards: (operation(shards),)


def kernel(shards):
    return kernels.square_norm(shards, kernels.table_of(shards))


CASES = [
    Case(
        "square_norm", summed(kernel), summed(reference.square_norm), inputs, LENGTHS,
        lambda lengths, element, exact: costs.square_norm(lengths, exact), by_address=True,
    )
]  # fmt: skip
