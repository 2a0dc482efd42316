"""Every kernel at shapes that people train: what the gate sees nightly.

A few of each kind stand for the rest. Of the numbers of heads a kernel's code depends on whether there are several, and
by a division on how many; of a row's length on the power of two that holds it and on what divides it. Shapes whose code
is the same are compiled once.
"""

from dataclasses import replace

from megatron_lite.kernels.benchmarks.operation import Operation, specimens_of
from megatron_lite.kernels.benchmarks.ours import (
    DOCUMENT,
    TENSOR_8,
    TOKENS,
    attending,
    entropies,
    gated,
    looked_up,
    loss,
    named,
    norm,
    partials,
    turned,
)
from megatron_lite.kernels.benchmarks.specimen import Specimen, distinct

HIDDEN = (768, 1024, 2048, 2560, 5120, 11_008, 12_288, 16_384)
COLUMNS = (1376, 2752, 3072, 11_008, 14_336)  # of the feed-forward layer
WORDS = ((32_000, 0), (50_304, 47), (151_936, 293))  # of the vocabulary; of those so many are padding
# Columns of a head, key-value heads, query heads of each, and whether there are documents.
HEADS = (
    (64, 8, 4, False), (64, 8, 4, True), (64, 12, 1, False),
    (80, 32, 1, False), (80, 32, 1, True), (96, 8, 4, False),
    (128, 8, 4, False), (128, 8, 4, True), (128, 32, 1, False), (128, 32, 1, True), (128, 4, 7, False),
    (128, 1, 1, True),
    (256, 8, 2, False), (256, 8, 2, True), (256, 16, 1, False),
)  # fmt: skip


def operations() -> list[Operation]:
    found: list[Operation] = []
    for hidden in HIDDEN:
        sizes = replace(TENSOR_8, hidden=hidden)
        several = [*norm(sizes, False), *norm(sizes, True), partials(sizes), looked_up(sizes)]
        found += named(several, f", hidden {hidden}")
    for columns in COLUMNS:
        found += named(gated(replace(TENSOR_8, columns=columns)), f", {columns} columns")
    for words, padding in WORDS:
        found += named(loss(replace(TENSOR_8, words=words, padding=padding)), f", {words - padding} words")
    found += named(entropies(replace(TENSOR_8, words=50_304, padding=47)), ", 50257 words")
    for head, groups, queries, documents in HEADS:
        sizes = replace(TENSOR_8, head=head, groups=groups, queries=queries)
        shape = f", {groups} x {queries} heads of {head}"
        found += named([turned(sizes)] if not documents else [], shape)
        suffix, document = (" in documents", DOCUMENT) if documents else ("", TOKENS)
        found += named(attending(sizes, suffix, document), shape)
    return found


def specimens() -> list[Specimen]:
    """On cards with less shared memory only what takes most of it."""
    wide = [one for one in operations() if one.name.endswith("heads of 256")]
    return distinct([*specimens_of(operations()), *specimens_of(wide, ("sm_89",))])
