"""Where attention reads and writes: ranges that begin and end inside tiles, several heads of one program, strides that
differ from tensor to tensor, places past 2^31. Faults in each are planted (nightly), and found.
"""

import inspect
from math import prod

import pytest
import torch
from megatron_lite.kernels import attention as forward
from megatron_lite.kernels import attention_backward as backward
from megatron_lite.kernels.visibility import visible_in_documents
from support.kernels.far import FAR, far
from support.kernels.harness import random
from support.kernels.planted import planted
from torch import Tensor

D = 16


def inputs(batch: int, groups: int, heads: int, queries: int, keys: int, dtype=torch.float64) -> list[Tensor]:
    """gradient and q of `heads` heads a group [B, G R, T, D], k and v [B, G, S, D]."""
    generator = torch.Generator().manual_seed(11)
    sizes = [(batch, groups * heads, queries, D)] * 2 + [(batch, groups, keys, D)] * 2
    return [random(size, dtype, generator) for size in sizes]


def run(gradient, q, k, v, causal, visible) -> list[Tensor]:
    """Output, log-sum-exp, dq, dk, dv."""
    output, log_sum = forward.attention(q, k, v, causal, visible)
    return [output, log_sum, *forward.attention_backward(gradient, q, k, v, output, log_sum, causal, visible)]


def by_definition(gradient, q, k, v, seen) -> list[Tensor]:
    q, k, v = leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = (q @ k.transpose(-1, -2) / D**0.5).masked_fill(~seen, float("-inf"))
    output = scores.softmax(-1) @ v
    gradients = torch.autograd.grad(output, leaves, gradient)
    return [output.detach(), scores.logsumexp(-1).detach(), *gradients]


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    for ours, right in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, right, rtol=0, atol=1e-12)


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert [torch.equal(*pair) for pair in zip(found, expected, strict=True)] == [True] * len(found)


# Of the one long document some tiles of 128 and of 64 are seen whole; it begins and ends inside others.
LENGTH, ENDS = 330, torch.tensor([37, 310, 330])


def check_documents() -> None:
    place = torch.arange(LENGTH)
    documents = torch.searchsorted(ENDS, place, right=True)
    seen = (documents.unsqueeze(-1) == documents) & (place <= place.unsqueeze(-1))
    arguments = inputs(1, 1, 1, LENGTH, LENGTH)
    visible = visible_in_documents(documents.unsqueeze(0), place, place)
    assert_close(run(*arguments, False, visible), by_definition(*arguments, seen))


def check_heads_of_a_part() -> None:
    """Two programs of two heads, which take two tiles of queries of each."""
    arguments = inputs(1, 1, 4, 70, 70)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backward, "parts_of", lambda *_: 2)
        found = run(*arguments, True, None)
    assert_close(found, by_definition(*arguments, torch.ones(70, 70, dtype=torch.bool).tril()))


def laid_out(x: Tensor, order: tuple[int, ...], beside: int) -> Tensor:
    """x with its first three dimensions in memory in another order, and `beside` elements more in a row.

    Around it is memory enough for all that any other tensor's strides reach.
    """
    sizes = [*(x.shape[i] for i in order), D + beside]
    room, margin = x.new_full((2**16,), float("nan")), 2**14
    laid = room[margin : margin + prod(sizes)].view(sizes)
    return laid.permute(*(order.index(i) for i in range(3)), 3)[..., :D].copy_(x)


ORDERS = [(0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0), (1, 0, 2), (0, 2, 1)]


def check_strides() -> None:
    """Every tensor has strides of its own; dk and dv too, which of one part are written to where they belong."""
    arguments = inputs(2, 2, 2, 3, 3, torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backward, "parts_of", lambda *_: 1)
        output, log_sum, *expected = run(*arguments, True, None)
        gradient, q, k, v = (laid_out(x, ORDERS[i], 8 * i) for i, x in enumerate(arguments))
        assert_same(list(forward.attention(q, k, v, True, None)), [output, log_sum])
        of_output = laid_out(output, ORDERS[4], 40)
        results = [laid_out(torch.zeros_like(x), ORDERS[(i + 3) % 6], 72 - 8 * i) for i, x in enumerate((q, k, v))]
        forward.attention_backward_(gradient, q, k, v, of_output, log_sum, True, None, *results)
    assert_same(results, expected)


def check_far(dimension: int) -> None:
    """Of [B, H, T, D]: three sequences, three groups of two heads, or two tiles of rows."""
    sizes = [(3, 1, 1, 5, 5), (1, 3, 2, 5, 5), (1, 1, 1, 130, 130)][dimension]
    arguments = inputs(*sizes, torch.bfloat16)
    output, log_sum, *expected = run(*arguments, True, None)
    # A whole tile's rows have places that fit: it is where the tile begins that does not.
    of_queries, of_keys = [(FAR // 2 + 64,) * 2, (FAR // 4 + 64, FAR // 2 + 64), (FAR // 128,) * 2][dimension]
    gradient, q, of_output, dq = (far(x, of_queries, dimension) for x in (*arguments[:2], output, 0 * expected[0]))
    k, v, dk, dv = (far(x, of_keys, dimension) for x in (*arguments[2:], *(0 * x for x in expected[1:])))
    assert_same(list(forward.attention(q, k, v, True, None)), [output, log_sum])
    forward.attention_backward_(gradient, q, k, v, of_output, log_sum, True, None, dq, dk, dv)
    assert_same([dq, dk, dv], expected)


# check and its arguments, the faults that it has to find: (module, kernel, right, wrong)
CHECKS = {
    "ranges that end inside tiles": (check_documents, (), {
        "first keys rounded down": (
            forward, "seen_by_queries", "row_first = tl.load(first + row, mask=row < queries, other=0)",
            "row_first = tl.load(first + row, mask=row < queries, other=0) // 64 * 64"),
        "a tile's first key rounded up": (
            forward, "seen_by_queries", "= tl.load(first + start)", "= (tl.load(first + start) + 63) // 64 * 64"),
        "last key that all queries of a tile see, rounded up": (
            forward, "seen_by_queries", "= tl.load(last + start)", "= (tl.load(last + start) + 63) // 64 * 64"),
        "the same for dq": (
            backward, "seen_by_queries", "= tl.load(last + start)", "= (tl.load(last + start) + 63) // 64 * 64"),
        "first query that sees all keys of a tile, rounded down": (
            backward, "seen_by_keys", "tl.load(first + end)", "tl.load(first + end) // 64 * 64"),
        "last query that sees all, rounded up": (
            backward, "seen_by_keys", "= tl.load(last + start)", "= (tl.load(last + start) + 63) // 64 * 64"),
    }),
    "two heads of a part": (check_heads_of_a_part, (), {
        "a part's first head for all": (
            backward, "dkv_visit", "head += tl.cast(index == count, tl.int32)", "head += 0 * index"),
        "the second head's sums of the first": (
            backward, "dkv_visit", "log_sum + tl.cast(head, tl.int64) * queries", "log_sum"),
        "the second head's gradient of the first": (
            backward, "dkv_visit", "row_start(gradient, gradient_strides, 0, 0, head, start)",
            "row_start(gradient, gradient_strides, 0, 0, 0, start)"),
        "parts that begin where the last one does": (
            backward, "dkv_kernel", "head = part * (HEADS // PARTS)", "head = part"),
    }),
    "strides": (check_strides, (), {
        "values at the strides of keys": (
            forward, "forward_kernel", "v = row_start(v, v_strides,", "v = row_start(v, k_strides,"),
        "rows of values at those of keys": (
            forward, "forward_kernel", "k_strides[3], v_strides[3]", "k_strides[3], k_strides[3]"),
        "keys and values exchanged for dq": (
            backward, "dq_kernel", "k_strides[3], v_strides[3]", "v_strides[3], k_strides[3]"),
        "values at the strides of keys for dv": (
            backward, "dkv_kernel", "= load_rows(row_start(v, v_strides", "= load_rows(row_start(v, k_strides"),
        "dv at the strides of dk": (
            backward, "dkv_kernel", "store_rows(row_start(dv, dv_strides, batch, group, part, start), dv_strides[3]",
            "store_rows(row_start(dv, dk_strides, batch, group, part, start), dk_strides[3]"),
        "output at the strides of its gradient": (
            backward, "dq_kernel", "row_start(output, output_strides,", "row_start(output, gradient_strides,"),
    }),
    **{f"{name} past 2^31": (check_far, (dimension,), {
        f"{name} in 32 bits {way}": (module, "row_start", f"tl.cast({place}, tl.int64)", f"tl.cast({place}, tl.int32)")
        for module, way in ((forward, "forward"), (backward, "backward"))
    }) for dimension, (name, place) in enumerate((("sequences", "batch"), ("heads", "group")))},
    "rows past 2^31": (check_far, (2,), {
        "rows in 32 bits": (forward, "row_start", "tl.cast(row, tl.int64)", "row"),
        "rows in 32 bits for gradients": (backward, "row_start", "tl.cast(row, tl.int64)", "row"),
        "tiles of keys in 32 bits": (forward, "visit_keys", "place = tl.cast(start, tl.int64)", "place = start"),
        "tiles of keys in 32 bits for dq": (backward, "dq_visit", "place = tl.cast(start, tl.int64)", "place = start"),
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKS)
def test_attention_is_right_with(name):
    check, arguments, _ = CHECKS[name]
    check(*arguments)


FAULTS = [(name, fault) for name, (_, _, faults) in CHECKS.items() for fault in faults]


@pytest.mark.parametrize(("name", "fault"), FAULTS)
def test_a_fault_is_of_todays_source(name, fault):
    module, kernel, right, wrong = CHECKS[name][2][fault]
    assert right in inspect.getsource(getattr(module, kernel).fn) and wrong != right


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "fault"), FAULTS)
def test_it_is_found_wrong_with(name, fault, tmp_path):
    check, arguments, faults = CHECKS[name]
    with planted(*faults[fault], folder=tmp_path), pytest.raises(AssertionError):
        check(*arguments)
