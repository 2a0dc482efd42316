"""The gradients of attention (Dao et al. 2022, arXiv 2205.14135, algorithm 4). Shapes are attention.py's.

    p = exp(q k^T / sqrt(D) - log_sum),  dv = p^T do,  ds = p (do v^T - delta),  delta = sum over D of do output
    dq = ds k / sqrt(D),                 dk = ds^T q / sqrt(D)

One kernel holds a tile of queries, goes over keys, and makes dq and delta. Another holds a tile of keys, goes over the
queries of its group's heads, and makes dk and dv. Both make p anew; nothing is added up by atomics, so that the sums
have one order. Where tiles are too few to fill a GPU, the heads of a group are shared out to PARTS programs, whose
float32 sums a third kernel adds in order. How many depends on shapes alone: the same bits on every GPU.
"""

import torch
import triton
import triton.language as tl
from megatron_lite.kernels.attention_tiles import (
    AFTER_LOOPS,
    along_rows,
    by_group,
    check_attention,
    count_tiles,
    load_rows,
    row_start,
    same,
    seen_by_keys,
    seen_by_queries,
    store_rows,
    strides_of,
    tile_start,
    tiles_for,
    width_of,
)
from megatron_lite.kernels.checks import check
from megatron_lite.kernels.launch import accumulator, accumulator_dtype, for_device
from megatron_lite.kernels.registration import operation
from megatron_lite.kernels.visibility import Visible
from torch import Tensor

# By head dimension: tiles of queries and of keys for dq, of keys and of queries for dk and dv; warps, stages.
QUERIES = {
    64: same(128, 64, 8, 2, sm_100=(128, 64, 4, 2), gfx942=(128, 64, 4, 1)),
    128: same(128, 64, 8, 2, sm_80=(128, 32, 8, 2), gfx942=(128, 32, 4, 1)),
    256: same(64, 32, 8, 1, sm_90=(128, 32, 8, 2), gfx942=(64, 16, 4, 1)),
}
KEYS = {
    64: same(128, 64, 8, 2, sm_100=(128, 64, 8, 2, 1), gfx942=(128, 64, 4, 1)),
    96: same(128, 64, 8, 2, sm_80=(64, 64, 8, 2), sm_100=(64, 64, 4, 2), gfx942=(128, 32, 4, 1)),
    128: same(128, 64, 8, 2, sm_80=(64, 64, 8, 2), gfx942=(128, 32, 4, 1)),
    256: same(64, 32, 8, 1, sm_89=(64, 16, 8, 1), sm_90=(32, 64, 8, 1), gfx942=(64, 16, 4, 1)),
}
# Where a program goes over several heads, and in ranges besides: those take registers.
SEVERAL_HEADS = KEYS | {
    64: same(128, 64, 8, 2, sm_80=(128, 64, 8, 2, 1), sm_100=(128, 64, 8, 2, 1), gfx942=(128, 64, 4, 1)),
    96: same(128, 64, 8, 2, sm_80=(64, 64, 8, 2), sm_90=(128, 32, 8, 2), sm_100=(64, 64, 4, 2), gfx942=(128, 32, 4, 1)),
    128: same(128, 64, 8, 2, sm_80=(64, 64, 8, 2), sm_90=(128, 32, 8, 2), gfx942=(128, 32, 4, 1)),
}
SEVERAL_HEADS_IN_RANGES = SEVERAL_HEADS | {128: SEVERAL_HEADS[96]}
# Of partial sums: rows at a time.
SUM = {width: same(32, 1, 4, 1) for width in (64, 128, 256)}
ENOUGH = 512  # programs that fill a GPU, at
ENOUGH_ROWS = 128  # keys each, whatever the target's tile

RANGES = ("first", "last", "first_query", "last_query")
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_numbers(x, row, end, ALL: tl.constexpr):
    if ALL:
        return tl.load(x + row)
    else:
        return tl.load(x + row, mask=row < end, other=0.0)


@triton.jit
def dq_visit(state, query, gradient, log_sum, delta, k, v, k_stride, v_stride, rows, span, tiles, SCALE: tl.constexpr,
             STEP: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr):  # fmt: skip
    """dq after the whole tiles of a range of keys, or after its edges; and a 0 that only the loop's end
    tells, see `store_rows`.
    """
    dq, zero = state
    row_first, row_last = rows
    lowest, highest = span
    before, whole, edges = tiles
    count = whole if WHOLE else edges
    visited = zero
    for index in range(count):
        start = tile_start(index, lowest, before, whole, STEP, WHOLE)
        place = tl.cast(start, tl.int64)
        key = load_rows(k + place * k_stride, k_stride, highest - start, STEP, D, WIDTH, WHOLE)
        value = load_rows(v + place * v_stride, v_stride, highest - start, STEP, D, WIDTH, WHOLE)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee", out_dtype=dq.dtype)
        exponent = scores * SCALE - log_sum[:, None]
        if not WHOLE:
            column = start + tl.arange(0, STEP)
            seen = (column[None, :] >= row_first[:, None]) & (column[None, :] < row_last[:, None])
            exponent = tl.where(seen, exponent, float("-inf"))
        to_weights = tl.dot(gradient, tl.trans(value), input_precision="ieee", out_dtype=dq.dtype)
        to_scores = tl.exp2(exponent) * (to_weights - delta[:, None])
        dq = tl.dot(to_scores.to(key.dtype), key, dq, input_precision="ieee", out_dtype=dq.dtype)
        visited += 1
    return dq, visited - count


@triton.jit
def dq_kernel(gradient, q, k, v, output, log_sum, first, last, dq, delta, gradient_strides, q_strides, k_strides,
              v_strides, output_strides, dq_strides, queries, keys, GROUPS: tl.constexpr, HEADS: tl.constexpr,
              D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr, CAUSAL: tl.constexpr,
              RANGES: tl.constexpr, SCALE: tl.constexpr, ACC: tl.constexpr, LATE: tl.constexpr):  # fmt: skip
    # Of all heads the last queries first: under causal they have the most to do.
    sequence = tl.program_id(0)
    start = (tl.num_programs(1) - 1 - tl.program_id(1)) * ROWS
    head, group, batch = sequence % HEADS, sequence // HEADS % GROUPS, sequence // (HEADS * GROUPS)
    row_first, row_last, lowest, highest, whole_low, whole_high = seen_by_queries(
        first, last, batch, start, queries, keys, ROWS, CAUSAL, RANGES)  # fmt: skip
    counts = count_tiles(lowest, highest, whole_low, whole_high, STEP)
    left = queries - start
    query = load_rows(row_start(q, q_strides, batch, group, head, start), q_strides[3], left, ROWS, D, WIDTH, False)
    dy = load_rows(row_start(gradient, gradient_strides, batch, group, head, start), gradient_strides[3], left,
                   ROWS, D, WIDTH, False)  # fmt: skip
    y = load_rows(row_start(output, output_strides, batch, group, head, start), output_strides[3], left,
                  ROWS, D, WIDTH, False)  # fmt: skip
    inner = tl.sum(y.to(ACC) * dy.to(ACC), 1)
    row = start + tl.arange(0, ROWS)
    tl.store(delta + tl.cast(sequence, tl.int64) * queries + row, inner, mask=row < queries)
    sums = load_numbers(log_sum + tl.cast(sequence, tl.int64) * queries, row, queries, False) * LOG2_E
    k = row_start(k, k_strides, batch, group, 0, 0)
    v = row_start(v, v_strides, batch, group, 0, 0)
    rows, span = (row_first, row_last), (lowest, highest)
    state = (tl.zeros([ROWS, WIDTH], ACC), start * 0)
    state = dq_visit(state, query, dy, sums, inner, k, v, k_strides[3], v_strides[3], rows, span, counts,
                     SCALE * LOG2_E, STEP, D, WIDTH, False)  # fmt: skip
    result, zero = dq_visit(state, query, dy, sums, inner, k, v, k_strides[3], v_strides[3], rows, span, counts,
                            SCALE * LOG2_E, STEP, D, WIDTH, True)  # fmt: skip
    store_rows(row_start(dq, dq_strides, batch, group, head, start), dq_strides[3], left, result * SCALE,
               zero if LATE else 0, ROWS, D, WIDTH)  # fmt: skip


@triton.jit
def dkv_visit(state, key, value, q, gradient, log_sum, delta, q_strides, gradient_strides, queries, rows, span, tiles,
              HEADS: tl.constexpr, SCALE: tl.constexpr, STEP: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
              WHOLE: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    """(dk, dv) after HEADS heads' whole tiles of a range of queries, or after its edges; and a 0, as above."""
    dk, dv, zero = state
    row_first, row_last = rows
    lowest, highest = span
    before, whole, edges = tiles
    count = whole if WHOLE else edges
    head, index = (zero if HEADS > 1 else 0), zero
    # One loop over heads and tiles: the next head's first tile is under way while this one's last is worked on.
    for _ in tl.range(HEADS * count, num_stages=STAGES):
        start = tile_start(index, lowest, before, whole, STEP, WHOLE)
        column = start + tl.arange(0, STEP)
        query = load_rows(row_start(q, q_strides, 0, 0, head, start), q_strides[3], highest - start,
                          STEP, D, WIDTH, WHOLE)  # fmt: skip
        sums = load_numbers(log_sum + tl.cast(head, tl.int64) * queries, column, highest, WHOLE) * LOG2_E
        scores = tl.dot(key, tl.trans(query), input_precision="ieee", out_dtype=dk.dtype)
        exponent = scores * SCALE - sums[None, :]
        if not WHOLE:
            seen = (column[None, :] >= row_first[:, None]) & (column[None, :] < row_last[:, None])
            exponent = tl.where(seen, exponent, float("-inf"))
        weights = tl.exp2(exponent)
        dy = load_rows(row_start(gradient, gradient_strides, 0, 0, head, start), gradient_strides[3], highest - start,
                       STEP, D, WIDTH, WHOLE)  # fmt: skip
        dv = tl.dot(weights.to(dy.dtype), dy, dv, input_precision="ieee", out_dtype=dv.dtype)
        to_weights = tl.dot(value, tl.trans(dy), input_precision="ieee", out_dtype=dk.dtype)
        inner = load_numbers(delta + tl.cast(head, tl.int64) * queries, column, highest, WHOLE)
        to_scores = weights * (to_weights - inner[None, :])
        dk = tl.dot(to_scores.to(query.dtype), query, dk, input_precision="ieee", out_dtype=dk.dtype)
        index += 1
        if HEADS > 1:
            # Cheaper than to divide a running number by the count.
            head += tl.cast(index == count, tl.int32)
            index = tl.where(index == count, 0, index)
    zero = index if HEADS > 1 else index - count
    return dk, dv, zero


@triton.jit
def dkv_kernel(gradient, q, k, v, log_sum, delta, first, last, dk, dv, gradient_strides, q_strides, k_strides,
               v_strides, dk_strides, dv_strides, queries, keys, GROUPS: tl.constexpr, HEADS: tl.constexpr,
               PARTS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
               CAUSAL: tl.constexpr, RANGES: tl.constexpr, SCALE: tl.constexpr, ACC: tl.constexpr,
               STAGES: tl.constexpr, EDGE_STAGES: tl.constexpr):  # fmt: skip
    # Of all heads the first keys first: under causal they have the most to do.
    sequence = tl.program_id(0).to(tl.int64)
    start = tl.program_id(1) * ROWS
    part, group, batch = sequence % PARTS, sequence // PARTS % GROUPS, sequence // (PARTS * GROUPS)
    row_first, row_last, lowest, highest, whole_low, whole_high = seen_by_keys(
        first, last, batch, start, queries, keys, ROWS, CAUSAL, RANGES)  # fmt: skip
    counts = count_tiles(lowest, highest, whole_low, whole_high, STEP)
    left = keys - start
    key = load_rows(row_start(k, k_strides, batch, group, 0, start), k_strides[3], left, ROWS, D, WIDTH, False)
    value = load_rows(row_start(v, v_strides, batch, group, 0, start), v_strides[3], left, ROWS, D, WIDTH, False)
    # The first of the program's heads.
    head = part * (HEADS // PARTS)
    q = row_start(q, q_strides, batch, group, head, 0)
    gradient = row_start(gradient, gradient_strides, batch, group, head, 0)
    numbers = tl.cast((batch * GROUPS + group) * HEADS + head, tl.int64) * queries
    log_sum += numbers
    delta += numbers
    rows, span = (row_first, row_last), (lowest, highest)
    state = (tl.zeros([ROWS, WIDTH], ACC), tl.zeros([ROWS, WIDTH], ACC), start * 0)
    state = dkv_visit(state, key, value, q, gradient, log_sum, delta, q_strides, gradient_strides, queries, rows, span,
                      counts, HEADS // PARTS, SCALE * LOG2_E, STEP, D, WIDTH, False, EDGE_STAGES)  # fmt: skip
    state = dkv_visit(state, key, value, q, gradient, log_sum, delta, q_strides, gradient_strides, queries, rows, span,
                      counts, HEADS // PARTS, SCALE * LOG2_E, STEP, D, WIDTH, True, STAGES)  # fmt: skip
    dk_sum, dv_sum, zero = state
    if PARTS > 1:
        sequence += zero  # found again after the loops, its place takes no register in them
        part, group, batch = sequence % PARTS, sequence // PARTS % GROUPS, sequence // (PARTS * GROUPS)
        # Float32 results lie in other threads than keys and values do: they share no addresses.
        zero = 0
    store_rows(row_start(dk, dk_strides, batch, group, part, start), dk_strides[3], left, dk_sum * SCALE, zero,
               ROWS, D, WIDTH)  # fmt: skip
    store_rows(row_start(dv, dv_strides, batch, group, part, start), dv_strides[3], left, dv_sum, zero,
               ROWS, D, WIDTH)  # fmt: skip


@triton.jit
def sum_kernel(partials, result, partial_strides, strides, keys, GROUPS: tl.constexpr, PARTS: tl.constexpr,
               D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    # A key's parts lie side by side: from one to the next is a number that the compiler knows.
    sequence = tl.program_id(0).to(tl.int64)
    start = tl.program_id(1) * ROWS
    group, batch = sequence % GROUPS, sequence // GROUPS
    left = keys - start
    total = tl.zeros([ROWS, WIDTH], partials.dtype.element_ty)
    partials = row_start(partials, partial_strides, batch, group, 0, start)
    for part in tl.static_range(PARTS):
        total += load_rows(partials + part * D, partial_strides[3], left, ROWS, D, WIDTH, False)
    store_rows(row_start(result, strides, batch, group, 0, start), strides[3], left, total, 0, ROWS, D, WIDTH)


def parts_of(sequences: int, keys: int, heads: int) -> int:
    """Into how many parts a group's heads are shared out, where so many sequences of groups have so many keys."""
    programs = sequences * triton.cdiv(keys, ENOUGH_ROWS)
    enough = (parts for parts in range(1, heads) if heads % parts == 0 and parts * programs >= ENOUGH)
    return next(enough, heads)


def _launch_dq(gradient, q, k, v, output, log_sum, causal, first, last, dq) -> Tensor:
    """Writes dq; gives delta [B, H, T]."""
    delta = torch.empty_like(log_sum)
    (batch, groups, heads, queries, head_dim), keys = q.shape, k.shape[2]
    ranges, first, last = _given(first, last, log_sum)
    tiles = tiles_for(QUERIES, head_dim, q.device)
    grid = (batch * groups * heads, triton.cdiv(queries, tiles.rows))
    if all(grid):
        dq_kernel[grid](
            gradient, q, k, v, output, log_sum, first, last, dq, delta,
            *map(strides_of, (gradient, q, k, v, output, dq)), queries, keys, groups, heads, head_dim,
            width_of(head_dim), tiles.rows, tiles.step, causal, ranges, head_dim**-0.5, accumulator(q.dtype),
            for_device(AFTER_LOOPS, q.device), **tiles.launch.options,
        )  # fmt: skip
    return delta


def _launch_dkv(gradient, q, k, v, log_sum, delta, causal, first, last, dk, dv, parts: int | None = None) -> None:
    """Writes dk and dv."""
    (batch, groups, heads, queries, head_dim), keys = q.shape, k.shape[2]
    ranges, first, last = _given(first, last, log_sum)
    if not batch * groups * keys:
        return
    parts = parts or parts_of(batch * groups, keys, heads)
    several = SEVERAL_HEADS_IN_RANGES if ranges else SEVERAL_HEADS
    tiles = tiles_for(KEYS if parts == heads else several, head_dim, q.device)
    grid = (batch * groups * parts, triton.cdiv(keys, tiles.rows))
    into = (dk, dv) if parts == 1 else _partials(dk, parts)
    dkv_kernel[grid](
        gradient, q, k, v, log_sum, delta, first, last, *into,
        *map(strides_of, (gradient, q, k, v, *into)), queries, keys, groups, heads, parts, head_dim,
        width_of(head_dim), tiles.rows, tiles.step, causal, ranges, head_dim**-0.5, accumulator(q.dtype),
        tiles.launch.stages, tiles.edge_stages if ranges else tiles.launch.stages, **tiles.launch.options,
    )  # fmt: skip
    if parts > 1:
        for partials, result in zip(into, (dk, dv), strict=True):
            _sum(partials, result)


def _partials(result: Tensor, parts: int) -> tuple[Tensor, Tensor]:
    """Room for the parts of two results [B, G, S, D], each [B, G, parts, S, D] with a key's parts side by side."""
    *sequences, head_dim = result.shape
    room = result.new_empty((2, *sequences, parts, head_dim), dtype=accumulator_dtype(result.dtype))
    first, second = room.transpose(-3, -2).unbind()
    return first, second


def _sum(partials: Tensor, result: Tensor) -> None:
    batch, groups, parts, keys, head_dim = partials.shape
    tiles = tiles_for(SUM, head_dim, partials.device)
    sum_kernel[(batch * groups, triton.cdiv(keys, tiles.rows))](
        partials, result, strides_of(partials), strides_of(result), keys, groups, parts, head_dim,
        width_of(head_dim), tiles.rows, **tiles.launch.options,
    )  # fmt: skip


def _given(first: Tensor | None, last: Tensor | None, any_tensor: Tensor) -> tuple[bool, Tensor, Tensor]:
    """Whether there are ranges, and what stands for them in a launch."""
    if first is None or last is None:
        return False, any_tensor, any_tensor
    return True, first.contiguous(), last.contiguous()


def _check(name, gradient, q, k, v, output, log_sum, causal, *ranges) -> None:
    check_attention(name, q, k, v, causal, dict(zip(RANGES, ranges, strict=True)))
    (batch, groups), queries = k.shape[:2], q.shape[-2]
    heads = q.shape[1] if q.dim() == 4 else groups * q.shape[2]
    for which, tensor in (("gradient", gradient), ("output", output)):
        check(name, which, tensor, q, (batch, heads, queries, q.shape[-1]), q.dtype)
    check(name, "log_sum", log_sum, q, (batch, heads, queries), accumulator_dtype(q.dtype))


def _check_results(name, q, k, v, dq, dk, dv) -> None:
    for which, tensor, input in (("dq", dq, q), ("dk", dk, k), ("dv", dv, v)):
        check(name, which, tensor, q, input.shape, q.dtype)
        if tensor.stride(-1) != 1:
            raise ValueError(f"{name}: {which} has last stride {tensor.stride(-1)}, must be 1")


def _run(gradient, q, k, v, output, log_sum, causal, first, last, first_query, last_query, dq, dk, dv) -> None:
    groups = k.shape[1]
    gradient, q, output, dq = (by_group(x, groups) for x in (gradient, q, output, dq))
    k, v, log_sum = along_rows(k), along_rows(v), log_sum.contiguous()
    delta = _launch_dq(gradient, q, k, v, output, log_sum, causal, first, last, dq)
    _launch_dkv(gradient, q, k, v, log_sum, delta, causal, first_query, last_query, dk, dv)


def _empty(x: Tensor) -> Tensor:
    """Of x's shape, rows [.., T, D] lying in memory as [T, .., D]."""
    return x.new_empty(x.movedim(-2, 0).shape).movedim(0, -2)


def _fake(gradient, q, k, v, output, log_sum, causal, first, last, first_query, last_query):
    return _empty(q), _empty(k), _empty(v)


def _flops(gradient, q, k, v, output, log_sum, causal, *_, out_shape=None):
    """Five products of matrices, as is usual to count, though two are made twice. Causal halves them."""
    return 10 * torch.Size(q).numel() * k[-2] // (2 if causal else 1)


@operation(
    "attention_backward(Tensor gradient, Tensor q, Tensor k, Tensor v, Tensor output, Tensor log_sum, bool causal, "
    "Tensor? first, Tensor? last, Tensor? first_query, Tensor? last_query) -> (Tensor, Tensor, Tensor)",
    _fake,
    _flops,
)
def _backward(*arguments):
    _check("attention_backward", *arguments)
    results = _fake(*arguments)
    _run(*arguments, *results)
    return results


@operation(
    "attention_backward_(Tensor gradient, Tensor q, Tensor k, Tensor v, Tensor output, Tensor log_sum, bool causal, "
    "Tensor? first, Tensor? last, Tensor? first_query, Tensor? last_query, "
    "Tensor(a!) dq, Tensor(b!) dk, Tensor(c!) dv) -> ()",
    lambda *_: None,
    _flops,
)
def _backward_into(*arguments):
    *inputs, dq, dk, dv = arguments
    _check("attention_backward_", *inputs)
    _, q, k, v, *_ = inputs
    _check_results("attention_backward_", q, k, v, dq, dk, dv)
    _run(*arguments)


def attention_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor, log_sum: Tensor, causal: bool,
    visible: Visible | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v in their shapes and dtypes, given the output's [B, H, T, D]; they lie in memory as [T, ..].

    `output` and `log_sum` are those over all keys, of which k and v may be a part: the results are then this part's
    share, as nothing but the log-sum-exp knows the other keys. Arguments are attention's, and so are the errors.
    """
    return _backward(gradient, q, k, v, output, log_sum, causal, *_ranges(visible))


def attention_backward_(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor, log_sum: Tensor, causal: bool,
    visible: Visible | None, dq: Tensor, dk: Tensor, dv: Tensor,
) -> None:  # fmt: skip
    """The same, written into dq, dk and dv: of the shapes of q, k, v, any strides with the last 1.

    So all three land in one packed buffer [T, B, G, R + 2, D], made by `split_packed` as q, k and v may have been.
    """
    _backward_into(gradient, q, k, v, output, log_sum, causal, *_ranges(visible), dq, dk, dv)


def split_packed(packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Views of a packed [T, B, G, R + 2, D]: queries by group [B, G, R, T, D], keys and values [B, G, T, D]."""
    by_head = packed.permute(1, 2, 3, 0, 4)
    return by_head[:, :, :-2], by_head[:, :, -2], by_head[:, :, -1]


def _ranges(visible: Visible | None) -> tuple[Tensor | None, ...]:
    return (None,) * 4 if visible is None else tuple(getattr(visible, name) for name in RANGES)
