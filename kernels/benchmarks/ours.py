"""Every kernel at the shapes of one rank of the 65B model, as its operation launches it on each target.

Tensor parallel 8 with sequence parallelism, one sequence of 8,192 tokens, bfloat16: hidden 8,192, 8 of 64 query heads
and 1 of 8 key-value heads of 128 each, 3,200 of 25,600 columns of the feed-forward layer, 16,000 of 128,000 words.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron_lite.kernels import adamw, cross_entropy, embedding, rms_norm, rope, square_norm, swiglu
from megatron_lite.kernels.benchmarks.machine_code import Loop, Loops
from megatron_lite.kernels.benchmarks.specimen import DEVICES, Specimen, recording
from torch import bfloat16, float32, int32, int64

TENSOR = 8
TOKENS = 8192
HIDDEN = 8192
HEADS, GROUPS, HEAD = 64 // TENSOR, 8 // TENSOR, 128
FEED_FORWARD = 25_600 // TENSOR
WORDS = 128_000 // TENSOR
ROWS = TOKENS // TENSOR  # of the sequence, where it is split
SHARD = 2**26  # parameters of an optimizer's shard


@dataclass(frozen=True)
class Operation:
    """A call at the model's shapes, and what has to be known of the kernel that it launches.

    `inputs()` makes arguments; their values matter nowhere. `loops` are given the launch's arguments.
    """

    name: str
    call: Callable
    inputs: Callable[[], tuple]
    elements: float
    loops: Callable[[Mapping[str, Any]], Loops] = lambda arguments: {}
    single: tuple[str, ...] = ()
    products: bool = False
    waived: Mapping[str, str] = field(default_factory=dict)


def empty(*shape: int, dtype: torch.dtype = bfloat16) -> torch.Tensor:
    """Memory that nobody touches is not there yet: sizes cost nothing."""
    return torch.empty(shape, dtype=dtype)


def zeros(*shape: int, dtype: torch.dtype = int64) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def _norm(adds: bool) -> list[Operation]:
    name = "add_rms_norm" if adds else "rms_norm"
    x = [empty(ROWS, HIDDEN)] * 3
    weight, scales = empty(HIDDEN), empty(ROWS, dtype=float32)
    forward = (x[0], x[1], weight, 1e-5) if adds else (x[0], weight, 1e-5)
    backward = (x[0], x[1] if adds else None, x[2], weight, scales)
    return [
        Operation(name, getattr(rms_norm, name), lambda: forward, ROWS * HIDDEN, single=("scales",)),
        Operation(
            f"{name}_backward", rms_norm.rms_norm_backward, lambda: backward, ROWS * HIDDEN,
            loops=lambda a: {"row": Loop(a["rows"] / rms_norm.PARTIALS)}, single=("scales",),
        ),
    ]  # fmt: skip


def _partials() -> Operation:
    def inputs():
        return empty(HIDDEN, dtype=float32), empty(rms_norm.PARTIALS, HIDDEN, dtype=float32)

    return Operation("add_partials_", rms_norm.add_partials_, inputs, rms_norm.PARTIALS * HIDDEN, single=("gradient",))


def _swiglu() -> list[Operation]:
    def packed():
        return (empty(TOKENS, 2 * FEED_FORWARD),)

    def backward():
        return empty(TOKENS, FEED_FORWARD), *packed()

    elements = TOKENS * FEED_FORWARD
    return [
        Operation("swiglu", swiglu.swiglu, packed, elements),
        Operation("swiglu_backward", swiglu.swiglu_backward, backward, elements),
    ]


def _rope() -> Operation:
    def inputs():
        tables = [empty(TOKENS, HEAD // 2, dtype=float32)] * 2
        qkv = empty(TOKENS, 1, (HEADS + 2 * GROUPS) * HEAD)
        return qkv, *tables, zeros(TOKENS, 1, dtype=int32), HEADS // GROUPS, HEAD, False

    def loops(a):
        # A head of each row in a turn, read and written.
        return {"head": Loop(a["HEADS"], bytes=2 * a["ROWS"] * HEAD * 2)}

    waived = {"a peer's occupancy": "40 registers hold 8 elements of two halves and of two tables; with 32 it spills"}
    elements = TOKENS * (HEADS + GROUPS) * HEAD
    return Operation("rope_", rope.rope_, inputs, elements, loops, ("positions", "place"), waived=waived)


def _cross_entropy() -> list[Operation]:
    def statistics():
        return empty(TOKENS, WORDS), zeros(TOKENS), WORDS

    def gradient():
        return *statistics(), *[empty(TOKENS, dtype=float32)] * 3

    def whole(a, times: int) -> Loop:
        return Loop(WORDS // a["TILE"], bytes=times * 2 * a["TILE"])

    elements = TOKENS * WORDS
    return [
        Operation(
            "cross_entropy_statistics", cross_entropy.cross_entropy_statistics, statistics, elements,
            lambda a: {"start": whole(a, 1)}, ("target", "log_sums", "target_logits"),
        ),
        Operation(
            "cross_entropy_gradient_", cross_entropy.cross_entropy_gradient_, gradient, elements,
            lambda a: {"start in range(0": whole(a, 2), "start in range(WHOLE": Loop(1)},
            ("target", "log_sums", "loss_gradients", "log_sum_gradients"),
        ),
    ]  # fmt: skip


def _embedding() -> Operation:
    """Of tokens that come once each, as most do."""

    def inputs():
        return empty(WORDS, HIDDEN, dtype=float32), zeros(TOKENS), empty(TOKENS, HIDDEN)

    def loops(a):
        return {"place": Loop(1, bytes=a["BLOCK"] * 2)}

    call = embedding.embedding_backward_
    return Operation("embedding_backward_", call, inputs, TOKENS * HIDDEN, loops, ("tokens", "ends", "order"))


def _optimizer() -> list[Operation]:
    def adamw_inputs():
        return (*[empty(SHARD, dtype=float32)] * 4, empty(SHARD), zeros(dtype=float32), SHARD // 2, 1, 1e-4,
                (0.9, 0.95), 1e-8, 0.1)  # fmt: skip

    def norm_inputs():
        shards = (empty(SHARD, dtype=float32),)
        return shards, square_norm.Blocks.of(shards).table

    # What is left of a block's tiles, `count % TILE`, comes element by element.
    def norm_loops(a):
        return {"_": Loop(square_norm.BLOCK // a["TILE"], bytes=a["TILE"] * 4)}

    # Four float32 a thread are 128 bits, their copy in bfloat16 64; eight would take 64 registers.
    return [
        Operation("adamw_", adamw.adamw_, adamw_inputs, SHARD, single=("clip", "compute")),
        Operation("square_norm", square_norm.square_norm, norm_inputs, SHARD, norm_loops, ("table", "sums", "count")),
    ]


def operations() -> list[Operation]:
    return [
        *_norm(adds=False), *_norm(adds=True), _partials(), *_swiglu(), _rope(), *_cross_entropy(), _embedding(),
        *_optimizer(),
    ]  # fmt: skip


def specimens() -> list[Specimen]:
    """Of each operation's one launch on each target."""
    found = []
    for operation in operations():
        for target in DEVICES:
            with recording(target) as launches:
                operation.call(*operation.inputs())
            (launched,) = launches
            loops = operation.loops(launched.arguments)
            found.append(Specimen(operation.name, target, launched, operation.elements, loops,
                                  operation.single, operation.products, operation.waived))  # fmt: skip
    return found
