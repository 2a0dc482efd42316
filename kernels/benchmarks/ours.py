"""Every operation at the shapes of one rank of the 65B model.

Tensor parallel 8 with sequence parallelism, one sequence of 8,192 tokens, bfloat16: hidden 8,192, 8 of 64 query heads
and 1 of 8 key-value heads of 128 each, 3,200 of 25,600 columns of the feed-forward layer, 16,000 of 128,000 words.
Attention also with heads of 64.
"""

from dataclasses import replace

import torch
from megatron_lite.kernels import (
    adamw,
    attention,
    attention_backward,
    cross_entropy,
    embedding,
    rms_norm,
    rope,
    square_norm,
    swiglu,
    visibility,
    weight_gradient,
)
from megatron_lite.kernels import costs as cost
from megatron_lite.kernels.benchmarks.machine_code import Loop
from megatron_lite.kernels.benchmarks.operation import Kernel, Memory, Operation, specimens_of
from megatron_lite.kernels.benchmarks.specimen import Specimen
from megatron_lite.kernels.reference import adamw as torch_adamw
from megatron_lite.kernels.reference import attention as torch_attention
from megatron_lite.kernels.reference import cross_entropy as torch_cross_entropy
from megatron_lite.kernels.reference import embedding as torch_embedding
from megatron_lite.kernels.reference import rms_norm as torch_rms_norm
from megatron_lite.kernels.reference import rope as torch_rope
from megatron_lite.kernels.reference import square_norm as torch_square_norm
from megatron_lite.kernels.reference import swiglu as torch_swiglu
from megatron_lite.kernels.reference import weight_gradient as torch_weight_gradient
from torch import float32, int32

TENSOR = 8
TOKENS = 8192
HIDDEN = 8192
HEADS, GROUPS, HEAD = 64 // TENSOR, 8 // TENSOR, 128
FEED_FORWARD = 25_600 // TENSOR
WORDS = 128_000 // TENSOR
ROWS = TOKENS // TENSOR  # of the sequence, where it is split
SHARD = 2**26  # parameters of an optimizer's shard
DOCUMENT = 2048
SMALL_HEAD = 64  # as many smaller models have
WIDE = 2  # bytes of bfloat16


def _norm(adds: bool) -> list[Operation]:
    name = "add_rms_norm" if adds else "rms_norm"

    def forward(memory: Memory):
        return *(memory.normal(ROWS, HIDDEN) for _ in range(1 + adds)), memory.normal(HIDDEN), 1e-5

    def backward(memory: Memory):
        dy, other, x = (memory.normal(ROWS, HIDDEN) for _ in range(3))
        return dy, other if adds else None, x, memory.normal(HIDDEN), memory.normal(ROWS, dtype=float32)

    def loops(a):
        return {"row": Loop(a["rows"] / cost.PARTIALS)}

    elements = ROWS * HIDDEN
    return [
        Operation(
            name, getattr(rms_norm, name), getattr(torch_rms_norm, name), forward,
            getattr(cost, name)(ROWS, HIDDEN, WIDE), {"forward_kernel": Kernel(elements, single=("scales",))},
        ),
        Operation(
            f"{name}_backward", rms_norm.rms_norm_backward, torch_rms_norm.rms_norm_backward, backward,
            cost.rms_norm_backward(ROWS, HIDDEN, WIDE, adds),
            {"backward_kernel": Kernel(elements, loops, single=("scales",))},
        ),
    ]  # fmt: skip


def _partials() -> Operation:
    def inputs(memory: Memory):
        return memory.normal(HIDDEN, dtype=float32), memory.normal(cost.PARTIALS, HIDDEN, dtype=float32)

    return Operation(
        "add_partials_", rms_norm.add_partials_, torch_rms_norm.add_partials_, inputs,
        cost.add_partials_(cost.PARTIALS, HIDDEN),
        {"sum_kernel": Kernel(cost.PARTIALS * HIDDEN, single=("gradient",))},
    )  # fmt: skip


def _swiglu() -> list[Operation]:
    def forward(memory: Memory):
        return (memory.normal(TOKENS, 2 * FEED_FORWARD),)

    def backward(memory: Memory):
        return memory.normal(TOKENS, FEED_FORWARD), *forward(memory)

    elements = TOKENS * FEED_FORWARD
    return [
        Operation("swiglu", swiglu.swiglu, torch_swiglu.swiglu, forward, cost.swiglu(elements, WIDE),
                  {"forward_kernel": Kernel(elements)}),
        Operation("swiglu_backward", swiglu.swiglu_backward, torch_swiglu.swiglu_backward, backward,
                  cost.swiglu_backward(elements, WIDE), {"backward_kernel": Kernel(elements)}),
    ]  # fmt: skip


def _rope() -> Operation:
    def inputs(memory: Memory):
        tables = [memory.normal(TOKENS, HEAD // 2, dtype=float32) for _ in range(2)]
        positions = torch.arange(TOKENS, dtype=int32, device=memory.device).unsqueeze(1)
        return memory.normal(TOKENS, 1, (HEADS + 2 * GROUPS) * HEAD), *tables, positions, HEADS // GROUPS, HEAD, False

    turned = HEADS + GROUPS
    return Operation(
        "rope_", rope.rope_, torch_rope.rope_, inputs, cost.rope_(TOKENS, turned, HEAD, TOKENS, WIDE),
        {"turn_kernel": Kernel(TOKENS * turned * HEAD, single=("positions", "place"))},
    )  # fmt: skip


def _visits(a, keys: bool, document: int) -> tuple[Loop, Loop]:
    """How many tiles a program goes over that it sees whole, and others, on average over the sequence."""
    rows, step, whole, all_tiles = a["ROWS"], a["STEP"], 0, 0
    starts = range(0, TOKENS, rows)
    for start in starts:
        begin = start // document * document
        if keys:
            # From the tile's own place to the document's end; the first queries do not see its last keys.
            seen, hidden = begin + document - start, -(-(rows - 1) // step)
            whole += max(seen // step - hidden, 0)
        else:
            seen = start + rows - begin
            whole += (start + 1 - begin) // step
        all_tiles += -(-seen // step)
    heads = a["HEADS"] // a["PARTS"] if keys else 1
    return Loop(heads * (all_tiles - whole) / len(starts)), Loop(heads * whole / len(starts))


def _attention(suffix: str, document: int, head: int) -> list[Operation]:
    """Of one causal sequence, or of documents as ranges of what is seen, with heads of `head` columns."""
    size = cost.Attention(1, HEADS, GROUPS, TOKENS, TOKENS, head, causal=document == TOKENS,
                          document=document if document < TOKENS else 0)  # fmt: skip
    pairs = HEADS * TOKENS * (document + 1) // 2

    def seen_alone(whole: cost.Cost, products: int) -> cost.Cost:
        """The closed form does not know what ranges hide."""
        return replace(whole, flops=2 * products * pairs * head)

    def packed(memory: Memory):
        return attention.split_packed(memory.normal(TOKENS, 1, GROUPS, HEADS // GROUPS + 2, head))

    def seen(memory: Memory):
        if document == TOKENS:
            return True, None
        place = torch.arange(TOKENS, device=memory.device)
        return False, visibility.visible_in_documents(place.unsqueeze(0) // document, place, place)

    def forward(memory: Memory):
        return *packed(memory), *seen(memory)

    def backward(memory: Memory):
        gradient, output = (memory.normal(TOKENS, 1, HEADS, head).permute(1, 2, 0, 3) for _ in range(2))
        # Above all scores: no weight overflows.
        log_sum = memory.normal(1, HEADS, TOKENS, dtype=float32) + 64
        return gradient, *packed(memory), output, log_sum, *seen(memory), *packed(memory)

    def kernel(single: tuple[str, ...], keys: bool, waived: dict[str, str]) -> Kernel:
        numbers = ("first", "last", "row_first", "row_last", *single)
        return Kernel(pairs, lambda a: {"_" if keys else "index": _visits(a, keys, document)}, numbers, True, waived)

    output = {"narrow on gfx942": "results leave as its products lay them out: four numbers in bfloat16 a thread, once"}
    parts = attention_backward.parts_of(GROUPS, TOKENS, HEADS // GROUPS)
    return [
        Operation(
            f"attention{suffix}", attention.attention, torch_attention.attention, forward,
            seen_alone(cost.attention(size, WIDE), 2),
            {"forward_kernel": kernel(("log_sum",), False, output)}, by_products=True,
        ),
        Operation(
            f"attention_backward_{suffix}", attention.attention_backward_, torch_attention.attention_backward_,
            backward, seen_alone(cost.attention_backward(size, parts, WIDE), 5),
            {
                "dq_kernel": kernel(("log_sum", "delta"), False, output),
                "dkv_kernel": kernel(("log_sum", "delta"), True, {}),
                "sum_kernel": Kernel(TOKENS * GROUPS * head),
            },
            by_products=True,
        ),
    ]  # fmt: skip


def _cross_entropy() -> list[Operation]:
    def statistics(memory: Memory):
        return memory.normal(TOKENS, WORDS), memory.integers(WORDS * TENSOR, TOKENS), WORDS

    def gradient(memory: Memory):
        return *statistics(memory), *(memory.normal(TOKENS, dtype=float32) for _ in range(3))

    def whole(a, times: int) -> Loop:
        return Loop(WORDS // a["TILE"], bytes=times * WIDE * a["TILE"])

    elements = TOKENS * WORDS
    return [
        Operation(
            "cross_entropy_statistics", cross_entropy.cross_entropy_statistics,
            torch_cross_entropy.cross_entropy_statistics, statistics,
            cost.cross_entropy_statistics(TOKENS, WORDS, WORDS, WIDE),
            {"statistics_kernel": Kernel(elements, lambda a: {"start": whole(a, 1)},
                                         ("target", "log_sums", "target_logits"))},
        ),
        Operation(
            "cross_entropy_gradient_", cross_entropy.cross_entropy_gradient_,
            torch_cross_entropy.cross_entropy_gradient_, gradient,
            cost.cross_entropy_gradient_(TOKENS, WORDS, WORDS, WIDE),
            {"gradient_kernel": Kernel(elements,
                                       lambda a: {"start in range(0": whole(a, 2), "start in range(WHOLE": Loop(1)},
                                       ("target", "log_sums", "loss_gradients", "log_sum_gradients"))},
        ),
    ]  # fmt: skip


def _embedding() -> Operation:
    """Compiled for tokens that all come once, as most do; timed with those of the whole vocabulary."""

    def inputs(memory: Memory):
        tokens = memory.integers(WORDS * TENSOR, TOKENS)
        return memory.normal(WORDS, HIDDEN, dtype=float32), tokens, memory.normal(TOKENS, HIDDEN)

    def loops(a):
        return {"place": Loop(1, bytes=a["BLOCK"] * WIDE)}

    ours = TOKENS // TENSOR
    return Operation(
        "embedding_backward_", embedding.embedding_backward_, torch_embedding.embedding_backward_, inputs,
        cost.embedding_backward_(TOKENS, ours, ours, HIDDEN, WIDE),
        {"add_kernel": Kernel(TOKENS * HIDDEN, loops, ("tokens", "ends", "order"))},
    )  # fmt: skip


def _product() -> Operation:
    """Of the feed-forward layer's second matrix: no kernel of ours."""

    def inputs(memory: Memory):
        weight = memory.normal(HIDDEN, FEED_FORWARD, dtype=float32)
        return weight, memory.normal(TOKENS, HIDDEN), memory.normal(TOKENS, FEED_FORWARD)

    return Operation(
        "add_product_", weight_gradient.add_product_, torch_weight_gradient.add_product_, inputs,
        cost.add_product_(HIDDEN, FEED_FORWARD, TOKENS, WIDE), {}, by_products=True,
    )  # fmt: skip


def _optimizer() -> list[Operation]:
    def adamw_inputs(memory: Memory):
        master, gradient, first, second = (memory.normal(SHARD, dtype=float32) for _ in range(4))
        numbers = SHARD // 2, 1, 1e-4, (0.9, 0.95), 1e-8, 0.1
        return master, gradient, first, second, memory.normal(SHARD), memory.normal(dtype=float32), *numbers

    def norm_inputs(memory: Memory):
        shards = (memory.normal(SHARD, dtype=float32),)
        return shards, square_norm.table_of(shards)

    # What is left of a block's tiles, `count % TILE`, comes element by element.
    def norm_loops(a):
        return {"_": Loop(square_norm.BLOCK // a["TILE"], bytes=a["TILE"] * 4)}

    return [
        # Four float32 a thread are 128 bits, their copy in bfloat16 64; eight would take 64 registers.
        Operation("adamw_", adamw.adamw_, torch_adamw.adamw_, adamw_inputs, cost.adamw_(SHARD, WIDE),
                  {"update_kernel": Kernel(SHARD, single=("clip", "compute"))}),
        Operation("square_norm", square_norm.square_norm, torch_square_norm.square_norm, norm_inputs,
                  cost.square_norm([SHARD]), {"sum_kernel": Kernel(SHARD, norm_loops, ("table", "sums", "count"))}),
    ]  # fmt: skip


def operations() -> list[Operation]:
    return [
        *_norm(adds=False), *_norm(adds=True), _partials(), *_swiglu(), _rope(), *_attention("", TOKENS, HEAD),
        *_attention(" in documents", DOCUMENT, HEAD), *_attention(" with small heads", TOKENS, SMALL_HEAD),
        *_attention(" with small heads in documents", DOCUMENT, SMALL_HEAD), *_cross_entropy(), _embedding(),
        _product(), *_optimizer(),
    ]  # fmt: skip


def specimens() -> list[Specimen]:
    return specimens_of(operations())
