"""Attention without the scores in memory, forward (Dao et al. 2022, arXiv 2205.14135; Dao 2023, arXiv 2307.08691).

    output = softmax(q k^T / sqrt(D)) v,  log_sum = log of the sum of exp(q k^T / sqrt(D))

Shapes: B sequences, H query heads, G key-value heads (G divides H), T queries, S keys, D head dimension. Query head h
reads key-value head h // (H / G). One program holds a tile of queries of one head and goes over the keys they see,
keeping for each query the largest score so far and, relative to it, the sum of exponentials and of values weighted by
them. attention_backward.py has the gradients.
"""

import torch
import triton
import triton.language as tl
from megatron_lite.kernels.attention_backward import attention_backward, attention_backward_, split_packed
from megatron_lite.kernels.attention_tiles import (
    AFTER_LOOPS,
    along_rows,
    by_group,
    check_attention,
    count_tiles,
    load_rows,
    row_start,
    same,
    seen_by_queries,
    store_rows,
    strides_of,
    tile_start,
    tiles_for,
    width_of,
)
from megatron_lite.kernels.launch import accumulator, accumulator_dtype, for_device
from megatron_lite.kernels.registration import differentiable, operation
from megatron_lite.kernels.visibility import Visible, visible_from
from torch import Tensor

__all__ = ["attention", "attention_backward", "attention_backward_", "split_packed"]

# By head dimension: tiles of queries and of keys, warps, stages.
FORWARD = {
    64: same(128, 128, 8, 2, sm_80=(128, 64, 8, 2), gfx942=(128, 64, 4, 1)),
    128: same(128, 64, 8, 3, sm_90=(128, 128, 8, 2), sm_80=(128, 32, 8, 2), gfx942=(128, 32, 4, 1)),
    256: same(64, 32, 8, 2),
}
# Of several groups a program's place takes a few registers more.
SEVERAL_GROUPS = FORWARD | {64: FORWARD[64] | {"sm_100": FORWARD[128]["sm_100"]}}

# In ranges sm_100 has registers enough.
AFTER_LOOPS_IN_RANGES = AFTER_LOOPS | {"sm_100": False}

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
# Below any score: exp2(-inf - LOWEST) is 0, where exp2(-inf + inf) would be NaN.
LOWEST = tl.constexpr(-1e38)


@triton.jit
def visit_keys(state, query, k, v, k_stride, v_stride, rows, span, tiles, SCALE: tl.constexpr, STEP: tl.constexpr,
               D: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr):  # fmt: skip
    """(weighted values, sum of weights, largest score) after the whole tiles of a range, or after its edges; and a 0
    that only the loop's end tells, see `store_rows`.
    """
    weighted, total, largest, zero = state
    row_first, row_last = rows
    lowest, highest = span
    before, whole, edges = tiles
    count = whole if WHOLE else edges
    visited = zero
    for index in range(count):
        start = tile_start(index, lowest, before, whole, STEP, WHOLE)
        place = tl.cast(start, tl.int64)
        key = load_rows(k + place * k_stride, k_stride, highest - start, STEP, D, WIDTH, WHOLE)
        # Scaled after the product, in its precision: a query scaled before would be rounded once more.
        scores = tl.dot(query, tl.trans(key), input_precision="ieee", out_dtype=weighted.dtype)
        if not WHOLE:
            column = start + tl.arange(0, STEP)
            seen = (column[None, :] >= row_first[:, None]) & (column[None, :] < row_last[:, None])
            scores = tl.where(seen, scores, float("-inf"))
        now = tl.maximum(largest, tl.max(scores, 1) * SCALE)
        weights = tl.exp2(scores * SCALE - now[:, None])
        shrink = tl.exp2(largest - now)
        value = load_rows(v + place * v_stride, v_stride, highest - start, STEP, D, WIDTH, WHOLE)
        weighted = tl.dot(weights.to(value.dtype), value, weighted * shrink[:, None], input_precision="ieee",
                          out_dtype=weighted.dtype)  # fmt: skip
        total = total * shrink + tl.sum(weights, 1)
        largest = now
        visited += 1
    return weighted, total, largest, visited - count


@triton.jit
def forward_kernel(q, k, v, output, log_sum, first, last, q_strides, k_strides, v_strides, output_strides,
                   queries, keys, GROUPS: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
                   ROWS: tl.constexpr, STEP: tl.constexpr, CAUSAL: tl.constexpr, RANGES: tl.constexpr,
                   SCALE: tl.constexpr, ACC: tl.constexpr, LATE: tl.constexpr):  # fmt: skip
    # Of all heads the last queries first: under causal they have the most to do.
    sequence = tl.program_id(0).to(tl.int64)
    start = (tl.num_programs(1) - 1 - tl.program_id(1)) * ROWS
    head, group, batch = sequence % HEADS, sequence // HEADS % GROUPS, sequence // (HEADS * GROUPS)
    row_first, row_last, lowest, highest, whole_low, whole_high = seen_by_queries(
        first, last, batch, start, queries, keys, ROWS, CAUSAL, RANGES)  # fmt: skip
    counts = count_tiles(lowest, highest, whole_low, whole_high, STEP)
    query = load_rows(row_start(q, q_strides, batch, group, head, start), q_strides[3], queries - start,
                      ROWS, D, WIDTH, False)  # fmt: skip
    k = row_start(k, k_strides, batch, group, 0, 0)
    v = row_start(v, v_strides, batch, group, 0, 0)
    rows, span = (row_first, row_last), (lowest, highest)
    state = (tl.zeros([ROWS, WIDTH], ACC), tl.zeros([ROWS], ACC), tl.full([ROWS], LOWEST, ACC), start * 0)
    state = visit_keys(state, query, k, v, k_strides[3], v_strides[3], rows, span, counts, SCALE * LOG2_E, STEP,
                       D, WIDTH, False)  # fmt: skip
    weighted, total, largest, zero = visit_keys(state, query, k, v, k_strides[3], v_strides[3], rows, span, counts,
                                                SCALE * LOG2_E, STEP, D, WIDTH, True)  # fmt: skip
    zero = zero if LATE else 0
    # A query that saw nothing has total 0.
    nothing = total == 0
    total = tl.where(nothing, 1.0, total)
    store_rows(row_start(output, output_strides, batch, group, head, start), output_strides[3], queries - start,
               weighted / total[:, None], zero, ROWS, D, WIDTH)  # fmt: skip
    row = start + zero + tl.arange(0, ROWS)
    tl.store(log_sum + sequence * queries + row, tl.where(nothing, float("-inf"), (largest + tl.log2(total)) * LN_2),
             mask=row < queries)  # fmt: skip


def _fake(q, k, v, causal, first, last):
    batch, queries, head_dim = q.shape[0], q.shape[-2], q.shape[-1]
    heads = q.shape[1] if q.dim() == 4 else q.shape[1] * q.shape[2]
    output = q.new_empty((queries, batch, heads, head_dim)).permute(1, 2, 0, 3)
    return output, q.new_empty((batch, heads, queries), dtype=accumulator_dtype(q.dtype))


def _flops(q, k, v, causal, first, last, out_shape=None, **_):
    """Two products of matrices. Causal halves them; what ranges hide is not known from shapes, and counts."""
    return 4 * torch.Size(q).numel() * k[-2] // (2 if causal else 1)


@operation(
    "attention(Tensor q, Tensor k, Tensor v, bool causal, Tensor? first, Tensor? last) -> (Tensor, Tensor)",
    _fake,
    _flops,
)
def _attention(q, k, v, causal, first, last):
    check_attention("attention", q, k, v, causal, {"first": first, "last": last})
    output, log_sum = _fake(q, k, v, causal, first, last)
    batch, groups, keys, head_dim = k.shape
    q, k, v = by_group(q, groups), along_rows(k), along_rows(v)
    heads, queries = q.shape[2:4]
    ranges = first is not None
    first, last = (x.contiguous() if ranges else log_sum for x in (first, last))
    tiles = tiles_for(FORWARD if groups == 1 else SEVERAL_GROUPS, head_dim, q.device)
    late = for_device(AFTER_LOOPS_IN_RANGES if ranges else AFTER_LOOPS, q.device)
    grid = (batch * groups * heads, triton.cdiv(queries, tiles.rows))
    if all(grid):
        forward_kernel[grid](
            q, k, v, output, log_sum, first, last, strides_of(q), strides_of(k), strides_of(v),
            strides_of(by_group(output, groups)), queries, keys, groups, heads, head_dim, width_of(head_dim),
            tiles.rows, tiles.step, causal, ranges, head_dim**-0.5, accumulator(q.dtype), late, **tiles.launch.options,
        )  # fmt: skip
    return output, log_sum


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, visible: Visible | None) -> tuple[Tensor, Tensor]:
    """(output [B, H, T, D] in q's dtype, log-sum-exp of the scaled scores [B, H, T] in float32, float64 for float64).

    q [B, H, T, D], or by group [B, G, R, T, D] where the H = G R heads do not lie evenly in memory; k, v [B, G, S, D].
    Any strides; what is consecutive along D is used in place, such as views of a packed projection [T, B, G, R + 2, D].
    The output lies in memory as [T, B, H, D]. `causal` (T = S): query t sees keys up to t. `visible`: it sees these
    alone; one that sees none has output 0 and log-sum-exp -inf. The output has a gradient, the log-sum-exp none.
    Raises ValueError for shapes or dtypes that do not fit together, head dimensions above 256, causal with ranges.
    """
    first, last = (None, None) if visible is None else (visible.first, visible.last)
    return _attention(q, k, v, causal, first, last)


def _keep(ctx, inputs, output):
    q, k, v, causal, first, last = inputs
    ctx.save_for_backward(q, k, v, *output, first, last)
    ctx.mark_non_differentiable(output[1])
    ctx.causal = causal


def _backward(ctx, gradient, _):
    q, k, v, output, log_sum, first, last = ctx.saved_tensors
    visible = None if first is None else visible_from(first, last, k.shape[2])
    dq, dk, dv = attention_backward(gradient, q, k, v, output, log_sum, ctx.causal, visible)
    return dq, dk, dv, None, None, None


differentiable(_attention, _keep, _backward)
