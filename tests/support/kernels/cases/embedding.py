"""The embedding's backward: tokens once, often, never and another rank's; columns that fill no tile and more than one.

A size is (tokens' shape, vocabulary, columns, how many tokens are ours, how many rows they are).
"""

import torch
from megatron_lite.kernels import costs, embedding
from megatron_lite.kernels.reference import embedding as reference
from support.kernels.harness import Case, exact_of, random

SIZES = [
    ((4, 5), 7, 123, 15, 5),
    ((1,), 4, 64, 1, 1),
    ((40,), 3, 16, 37, 2),
    ((3, 2), 50, 1536, 5, 5),
    ((6,), 5, 8, 0, 0),
]


def inputs(size, dtype, generator):
    shape, vocabulary, columns, ours, rows = size
    count = torch.Size(shape).numel()
    kept = torch.randperm(vocabulary, generator=generator)[:rows]
    # Every row at least once, the others any of them; then tokens just outside and far outside.
    often = kept[torch.randint(rows, (ours - rows,), generator=generator)] if ours > rows else kept[:0]
    outside = torch.tensor([-1, vocabulary, 2**40, -(2**40)]).repeat(count)[: count - ours]
    tokens = torch.cat([kept, often, outside])[torch.randperm(count, generator=generator)]
    gradient = random((vocabulary, columns), exact_of(dtype), generator)
    return gradient, tokens.view(shape), random((*shape, columns), dtype, generator)


def accumulated(operation):
    def into(gradient, tokens, dy):
        operation(gradient, tokens, dy)
        return (gradient,)

    return into


def cost(size, element, exact):
    shape, _, columns, ours, rows = size
    return costs.embedding_backward_(torch.Size(shape).numel(), ours, rows, columns, element, exact)


CASES = [
    Case(
        "embedding_backward_", accumulated(embedding.embedding_backward_), accumulated(reference.embedding_backward_),
        inputs, SIZES, cost, backward=True,
    ),
]  # fmt: skip
