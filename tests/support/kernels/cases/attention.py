"""Attention: causal, whole, in documents; grouped heads; lengths and head dimensions that fill no tile; one query."""

import torch
from megatron_lite.kernels import attention, costs
from megatron_lite.kernels.attention import FORWARD
from megatron_lite.kernels.attention_backward import KEYS, QUERIES, parts_of
from megatron_lite.kernels.attention_tiles import tiles_for
from megatron_lite.kernels.costs import Attention
from megatron_lite.kernels.reference import attention as reference
from megatron_lite.kernels.visibility import visible_from
from support.kernels.harness import Case, exact_of, random

SIZES = [
    Attention(2, 4, 2, 130, 130, 16, causal=True),
    Attention(1, 8, 1, 1, 70, 64),
    Attention(1, 2, 2, 70, 200, 128),
    Attention(1, 1, 1, 256, 256, 64, causal=True),
    Attention(1, 8, 1, 150, 150, 128, document=37),
    Attention(1, 2, 1, 40, 40, 24, causal=True),
]


def ranges_of(size):
    """(first, last) int32 [B, T] of documents of one length."""
    if not size.document:
        return None, None
    position = torch.arange(size.queries, dtype=torch.int32).repeat(size.batch, 1)
    return position // size.document * size.document, position + 1


def inputs(size, dtype, generator):
    q = random((size.batch, size.heads, size.queries, size.head_dim), dtype, generator)
    k, v = (random((size.batch, size.groups, size.keys, size.head_dim), dtype, generator) for _ in range(2))
    return q, k, v, size.causal, *ranges_of(size)


def backward_inputs(size, dtype, generator):
    arguments = inputs(size, dtype, generator)
    output, log_sum = with_ranges(reference.attention)(*arguments)
    q, k, v, *rest = arguments
    return random(q.shape, dtype, generator), q, k, v, output, log_sum.to(exact_of(dtype)), *rest


def inputs_written_into(size, dtype, generator):
    arguments = backward_inputs(size, dtype, generator)
    return *arguments, *(random(x.shape, dtype, generator) for x in arguments[1:4])


def with_ranges(operation, leading: int = 4):
    """The operation taking first and last in place of what is made of them; they follow `leading` arguments."""

    def given_tensors(*arguments):
        before, (first, last), after = arguments[:leading], arguments[leading : leading + 2], arguments[leading + 2 :]
        keys = before[1 if leading == 4 else 2].shape[2]
        visible = None if first is None else visible_from(first, last, keys)
        return operation(*before, visible, *after)

    return given_tensors


def writing(operation):
    def into(*arguments):
        with_ranges(operation, 7)(*arguments)
        return arguments[-3:]

    return into


def forward_cost(size, element, exact):
    return costs.attention(size, element, exact, tiles_of(FORWARD, size).rows)


def backward_cost(size, element, exact):
    tiles = tiles_of(QUERIES, size).rows, tiles_of(KEYS, size).rows
    parts = parts_of(size.batch * size.groups, size.keys, size.heads // size.groups)
    return costs.attention_backward(size, parts, element, exact, tiles)


def tiles_of(table, size):
    return tiles_for(table, size.head_dim, torch.device("cpu"))


CASES = [
    Case("attention", with_ranges(attention.attention), with_ranges(reference.attention), inputs, SIZES, forward_cost),
    Case(
        "attention_backward", with_ranges(attention.attention_backward, 7),
        with_ranges(reference.attention_backward, 7), backward_inputs, SIZES, backward_cost, backward=True,
    ),
    Case(
        "attention_backward_", writing(attention.attention_backward_), writing(reference.attention_backward_),
        inputs_written_into, SIZES[:2], backward_cost, backward=True,
    ),
]  # fmt: skip
