"""Every operation at the shapes of one rank of the 65B model: what is measured, counted and gated in every run.

With sequence parallelism, one sequence of 8,192 tokens, bfloat16. `Sizes` says what tensor parallel 8 leaves of it; the
gate sees tensor parallel 4 too. Attention also with heads of 64. `trained.py` has other models' shapes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from megatron_lite.kernels import (
    adamw,
    attention,
    attention_backward,
    cross_entropy,
    embedding,
    entropy,
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
from megatron_lite.kernels.reference import entropy as torch_entropy
from megatron_lite.kernels.reference import rms_norm as torch_rms_norm
from megatron_lite.kernels.reference import rope as torch_rope
from megatron_lite.kernels.reference import square_norm as torch_square_norm
from megatron_lite.kernels.reference import swiglu as torch_swiglu
from megatron_lite.kernels.reference import weight_gradient as torch_weight_gradient
from torch import float32, int32

TOKENS = 8192
DOCUMENT = 2048
SMALL_HEAD = 64  # as many smaller models have
SHARD = 2**26  # parameters of an optimizer's shard
WIDE = 2  # bytes of bfloat16


@dataclass(frozen=True)
class Sizes:
    """What one rank has: of the sequence's `rows` where it is split, of `columns` of the feed-forward layer, of `words`
    of the vocabulary, of which `real` are no padding; `groups` key-value heads with so many `queries` each.
    """

    tensor: int = 8
    rows: int = TOKENS // 8
    hidden: int = 8192
    groups: int = 1
    queries: int = 8
    head: int = 128
    columns: int = 25_600 // 8
    words: int = 128_000 // 8
    padding: int = 0

    @property
    def heads(self) -> int:
        return self.groups * self.queries

    @property
    def real(self) -> int:
        return self.words - self.padding


TENSOR_8 = Sizes()
TENSOR_4 = Sizes(tensor=4, rows=TOKENS // 4, groups=2, columns=25_600 // 4, words=128_000 // 4)


def norm(sizes: Sizes, adds: bool) -> list[Operation]:
    name = "add_rms_norm" if adds else "rms_norm"

    def forward(memory: Memory):
        return *(memory.normal(sizes.rows, sizes.hidden) for _ in range(1 + adds)), memory.normal(sizes.hidden), 1e-5

    def backward(memory: Memory):
        dy, other, x = (memory.normal(sizes.rows, sizes.hidden) for _ in range(3))
        return dy, other if adds else None, x, memory.normal(sizes.hidden), memory.normal(sizes.rows, dtype=float32)

    def loops(a):
        return {"row": Loop(a["rows"] / cost.PARTIALS)}

    elements = sizes.rows * sizes.hidden
    return [
        Operation(
            name, getattr(rms_norm, name), getattr(torch_rms_norm, name), forward,
            getattr(cost, name)(sizes.rows, sizes.hidden, WIDE),
            {"forward_kernel": Kernel(elements, single=("scales",))},
        ),
        Operation(
            f"{name}_backward", rms_norm.rms_norm_backward, torch_rms_norm.rms_norm_backward, backward,
            cost.rms_norm_backward(sizes.rows, sizes.hidden, WIDE, adds),
            {"backward_kernel": Kernel(elements, loops, single=("scales",))},
        ),
    ]  # fmt: skip


def partials(sizes: Sizes) -> Operation:
    def inputs(memory: Memory):
        return memory.normal(sizes.hidden, dtype=float32), memory.normal(cost.PARTIALS, sizes.hidden, dtype=float32)

    return Operation(
        "add_partials_", rms_norm.add_partials_, torch_rms_norm.add_partials_, inputs,
        cost.add_partials_(cost.PARTIALS, sizes.hidden),
        {"sum_kernel": Kernel(cost.PARTIALS * sizes.hidden, single=("gradient",))},
    )  # fmt: skip


def gated(sizes: Sizes) -> list[Operation]:
    def forward(memory: Memory):
        return (memory.normal(TOKENS, 2 * sizes.columns),)

    def backward(memory: Memory):
        return memory.normal(TOKENS, sizes.columns), *forward(memory)

    elements = TOKENS * sizes.columns
    return [
        Operation("swiglu", swiglu.swiglu, torch_swiglu.swiglu, forward, cost.swiglu(elements, WIDE),
                  {"forward_kernel": Kernel(elements)}),
        Operation("swiglu_backward", swiglu.swiglu_backward, torch_swiglu.swiglu_backward, backward,
                  cost.swiglu_backward(elements, WIDE), {"backward_kernel": Kernel(elements)}),
    ]  # fmt: skip


def turned(sizes: Sizes) -> Operation:
    def inputs(memory: Memory):
        tables = [memory.normal(TOKENS, sizes.head // 2, dtype=float32) for _ in range(2)]
        positions = torch.arange(TOKENS, dtype=int32, device=memory.device).unsqueeze(1)
        packed = memory.normal(TOKENS, 1, (sizes.heads + 2 * sizes.groups) * sizes.head)
        return packed, *tables, positions, sizes.queries, sizes.head, False

    heads = sizes.heads + sizes.groups
    return Operation(
        "rope_", rope.rope_, torch_rope.rope_, inputs, cost.rope_(TOKENS, heads, sizes.head, TOKENS, WIDE),
        {"turn_kernel": Kernel(TOKENS * heads * sizes.head, single=("positions", "place"))},
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


def attending(sizes: Sizes, suffix: str, document: int = TOKENS) -> list[Operation]:
    """Of one causal sequence, or of documents as ranges of what is seen, named by a suffix."""
    size = cost.Attention(1, sizes.heads, sizes.groups, TOKENS, TOKENS, sizes.head, causal=document == TOKENS,
                          document=document if document < TOKENS else 0)  # fmt: skip
    pairs = sizes.heads * TOKENS * (document + 1) // 2

    def seen_alone(whole: cost.Cost, products: int) -> cost.Cost:
        """The closed form does not know what ranges hide."""
        return replace(whole, flops=2 * products * pairs * sizes.head)

    def packed(memory: Memory):
        return attention.split_packed(memory.normal(TOKENS, 1, sizes.groups, sizes.queries + 2, sizes.head))

    def seen(memory: Memory):
        if document == TOKENS:
            return True, None
        place = torch.arange(TOKENS, device=memory.device)
        return False, visibility.visible_in_documents(place.unsqueeze(0) // document, place, place)

    def forward(memory: Memory):
        return *packed(memory), *seen(memory)

    def backward(memory: Memory):
        gradient, output = (memory.normal(TOKENS, 1, sizes.heads, sizes.head).permute(1, 2, 0, 3) for _ in range(2))
        # Above all scores: no weight overflows.
        log_sum = memory.normal(1, sizes.heads, TOKENS, dtype=float32) + 64
        return gradient, *packed(memory), output, log_sum, *seen(memory), *packed(memory)

    def kernel(single: tuple[str, ...], keys: bool, waived: dict[str, str]) -> Kernel:
        # "x + row" is load_numbers': where the assembler is not told what was inlined, all that it knows.
        numbers = ("first", "last", "row_first", "row_last", "x + row", *single)
        return Kernel(pairs, lambda a: {"_" if keys else "index": _visits(a, keys, document)}, numbers, True, waived)

    sums = {"sum_kernel": Kernel(TOKENS * sizes.groups * sizes.head)}
    output = {"narrow on gfx942": "results leave as its products lay them out: four numbers in bfloat16 a thread, once"}
    parts = attention_backward.parts_of(sizes.groups, TOKENS, sizes.queries)
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
                "dkv_kernel": kernel(("log_sum", "delta"), True, output if parts == 1 else {}),
                **(sums if parts > 1 else {}),
            },
            by_products=True,
        ),
    ]  # fmt: skip


def _logits(sizes: Sizes, numbers: int = 0) -> Callable[[Memory], tuple]:
    """A rank's logits and labels, and so many numbers of each token."""

    def inputs(memory: Memory):
        logits, target = memory.normal(TOKENS, sizes.words), memory.integers(sizes.words * sizes.tensor, TOKENS)
        return logits, target, sizes.real, *(memory.normal(TOKENS, dtype=float32) for _ in range(numbers))

    return inputs


def _over_logits(sizes: Sizes, times: int, single: tuple[str, ...]) -> Kernel:
    """A kernel that goes over them so many times; one that writes them too has a second loop, of their end."""

    def loops(a) -> dict[str, Loop]:
        whole = Loop(sizes.real // a["TILE"], bytes=times * WIDE * a["TILE"])
        return {"start": whole} if times == 1 else {"start in range(0": whole, "start in range(WHOLE": Loop(1)}

    return Kernel(TOKENS * sizes.words, loops, ("target", "log_sums", *single))


def loss(sizes: Sizes) -> list[Operation]:
    shape = TOKENS, sizes.words, sizes.real, WIDE
    return [
        Operation(
            "cross_entropy_statistics", cross_entropy.cross_entropy_statistics,
            torch_cross_entropy.cross_entropy_statistics, _logits(sizes), cost.cross_entropy_statistics(*shape),
            {"statistics_kernel": _over_logits(sizes, 1, ("target_logits",))},
        ),
        Operation(
            "cross_entropy_gradient_", cross_entropy.cross_entropy_gradient_,
            torch_cross_entropy.cross_entropy_gradient_, _logits(sizes, 3), cost.cross_entropy_gradient_(*shape),
            {"gradient_kernel": _over_logits(sizes, 2, ("loss_gradients", "log_sum_gradients"))},
        ),
    ]  # fmt: skip


def entropies(sizes: Sizes) -> list[Operation]:
    shape = TOKENS, sizes.words, sizes.real, WIDE
    of_gradients = "mean_logits", "loss_gradients", "log_sum_gradients", "entropy_gradients"
    return [
        Operation(
            "entropy_statistics", entropy.entropy_statistics, torch_entropy.entropy_statistics, _logits(sizes),
            cost.entropy_statistics(*shape),
            {"statistics_kernel": _over_logits(sizes, 1, ("target_logits", "mean_logits", "maxima"))},
        ),
        Operation(
            "entropy_gradient_", entropy.entropy_gradient_, torch_entropy.entropy_gradient_, _logits(sizes, 5),
            cost.entropy_gradient_(*shape), {"gradient_kernel": _over_logits(sizes, 2, of_gradients)},
        ),
    ]  # fmt: skip


def looked_up(sizes: Sizes) -> Operation:
    """Compiled for tokens that all come once, as most do; timed with those of the whole vocabulary."""

    def inputs(memory: Memory):
        tokens = memory.integers(sizes.words * sizes.tensor, TOKENS)
        return memory.normal(sizes.words, sizes.hidden, dtype=float32), tokens, memory.normal(TOKENS, sizes.hidden)

    def loops(a):
        return {"place": Loop(1, bytes=a["BLOCK"] * WIDE)}

    ours = TOKENS // sizes.tensor
    return Operation(
        "embedding_backward_", embedding.embedding_backward_, torch_embedding.embedding_backward_, inputs,
        cost.embedding_backward_(TOKENS, ours, ours, sizes.hidden, WIDE),
        {"add_kernel": Kernel(TOKENS * sizes.hidden, loops, ("tokens", "ends", "order"))},
    )  # fmt: skip


def _product(sizes: Sizes) -> Operation:
    """Of the feed-forward layer's second matrix: no kernel of ours."""

    def inputs(memory: Memory):
        weight = memory.normal(sizes.hidden, sizes.columns, dtype=float32)
        return weight, memory.normal(TOKENS, sizes.hidden), memory.normal(TOKENS, sizes.columns)

    return Operation(
        "add_product_", weight_gradient.add_product_, torch_weight_gradient.add_product_, inputs,
        cost.add_product_(sizes.hidden, sizes.columns, TOKENS, WIDE), {}, by_products=True,
    )  # fmt: skip


def optimizer() -> list[Operation]:
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
    """Of one rank at tensor parallel 8."""
    small = replace(TENSOR_8, head=SMALL_HEAD)
    return [
        *norm(TENSOR_8, adds=False), *norm(TENSOR_8, adds=True), partials(TENSOR_8), *gated(TENSOR_8), turned(TENSOR_8),
        *attending(TENSOR_8, ""), *attending(TENSOR_8, " in documents", DOCUMENT),
        *attending(small, " with small heads"), *attending(small, " with small heads in documents", DOCUMENT),
        *loss(TENSOR_8), *entropies(TENSOR_8), looked_up(TENSOR_8), _product(TENSOR_8), *optimizer(),
    ]  # fmt: skip


def named(operations: Iterable[Operation], suffix: str) -> list[Operation]:
    return [replace(one, name=one.name + suffix) for one in operations]


def at_tensor_4() -> list[Operation]:
    """Those whose machine code is another than at tensor parallel 8; the loss stands for the entropy too."""
    several = [
        *gated(TENSOR_4), turned(TENSOR_4), *attending(TENSOR_4, ""), *attending(TENSOR_4, " in documents", DOCUMENT),
        *loss(TENSOR_4),
    ]  # fmt: skip
    return named(several, " at tensor 4")


def specimens() -> list[Specimen]:
    return specimens_of([*operations(), *at_tensor_4()])
