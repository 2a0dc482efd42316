"""Rotary positions: T longer and shorter than B, odd and whole tiles, half heads that are no power of two."""

import torch
from megatron_lite.kernels import costs, rope
from megatron_lite.kernels.reference import rope as reference
from support.kernels.harness import Case, exact_of, random

SIZES = [(5, 3, 2, 2, 12), (1, 1, 1, 8, 128), (37, 2, 1, 1, 64), (2, 19, 3, 1, 2), (32, 1, 1, 4, 128)]  # T, B, G, R, D
OFFSET = 3


def inputs(back):
    def make(size, dtype, generator):
        length, sequences, groups, queries, head_dim = size
        qkv = random((length, sequences, groups * (queries + 2) * head_dim), dtype, generator)
        tables = reference.rope_tables(length + OFFSET + 2, head_dim, 100.0, exact_of(dtype), "cpu")
        positions = (torch.arange(length, dtype=torch.int32).unsqueeze(1) + OFFSET).repeat(1, sequences)
        return qkv, *tables, positions, queries, head_dim, back

    return make


def turned(operation):
    def into(qkv, *others):
        operation(qkv, *others)
        return (qkv,)

    return into


def cost(size, element, exact):
    length, sequences, groups, queries, head_dim = size
    return costs.rope_(length * sequences, groups * (queries + 1), head_dim, length, element, exact)


CASES = [
    Case("rope_", turned(rope.rope_), turned(reference.rope_), inputs(False), SIZES, cost),
    Case("rope_ back", turned(rope.rope_), turned(reference.rope_), inputs(True), SIZES, cost, backward=True),
]
