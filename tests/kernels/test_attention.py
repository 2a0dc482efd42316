"""Attention, PyTorch's and ours: whole and in parts, in documents, out of a packed projection."""

import pytest
import torch
from megatron_lite.kernels import attention as kernels
from megatron_lite.kernels.costs import Attention
from megatron_lite.kernels.reference import attention as reference
from megatron_lite.kernels.visibility import visible_from, visible_in_documents
from torch.utils.flop_counter import FlopCounterMode

B, H, G, D = 2, 6, 2, 16
BOTH = pytest.mark.parametrize("backend", [reference, kernels], ids=["torch", "triton"])


def inputs(queries: int, keys: int, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    sizes = [(B, H, queries, D), (B, G, keys, D), (B, G, keys, D)]
    return [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes]


def definition(q, k, v, seen):
    """Attention as its paper writes it; `seen` bool [.., T, S]. Also the log-sum-exp."""
    k, v = (x.repeat_interleave(H // G, dim=1) for x in (k, v))
    scores = (q @ k.transpose(-1, -2) / D**0.5).masked_fill(~seen, float("-inf"))
    return scores.softmax(-1).nan_to_num(0) @ v, scores.logsumexp(-1)


def documents_of(length: int) -> torch.Tensor:
    """Two sequences of documents of several lengths, one of them of one position."""
    return torch.stack([torch.arange(length) // 5, (torch.arange(length) > 0).long()])


def seen_in(documents, queries, keys):
    same = documents[:, queries].unsqueeze(-1) == documents[:, keys].unsqueeze(-2)
    return (same & (keys <= queries.unsqueeze(-1))).unsqueeze(1)


# (queries, keys, causal, positions of queries and keys in documents)
CASES = {
    "causal": (12, 12, True, None),
    "all": (5, 9, False, None),
    "documents": (12, 12, False, (torch.arange(12), torch.arange(12))),
    "documents of a ring": (6, 12, False, (torch.tensor([3, 4, 5, 18, 19, 20]), torch.arange(12))),
}


@BOTH
@pytest.mark.parametrize("case", CASES)
def test_output_log_sum_and_gradients_are_the_definitions(backend, case):
    queries, keys, causal, positions = CASES[case]
    leaves = [x.requires_grad_() for x in inputs(queries, keys)]
    seen, visible = torch.ones(queries, keys, dtype=torch.bool), None
    if causal:
        seen = seen.tril()
    if positions is not None:
        seen = seen_in(documents_of(24), *positions)
        visible = visible_in_documents(documents_of(24), *positions)
        assert torch.equal(visible.mask, seen)
    expected, expected_log_sum = definition(*leaves, seen)
    gradient = torch.randn(expected.shape, dtype=torch.float64)
    expected_gradients = torch.autograd.grad(expected.nan_to_num(0), leaves, gradient)
    with torch.no_grad():
        output, log_sum = backend.attention(*leaves, causal, visible)
        gradients = backend.attention_backward(gradient, *leaves, output, log_sum, causal, visible)
    torch.testing.assert_close(output, expected.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(log_sum, expected_log_sum.detach(), rtol=0, atol=1e-12)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs.nan_to_num(0), rtol=0, atol=1e-12)


@BOTH
def test_a_query_that_sees_nothing_has_output_zero_and_no_gradient(backend):
    q, k, v = inputs(4, 4)
    first = torch.zeros(B, 4, dtype=torch.int32)
    last = torch.tensor([[0, 0, 3, 4]] * B, dtype=torch.int32)
    visible = visible_from(first, last, 4)
    output, log_sum = backend.attention(q, k, v, False, visible)
    assert (output[:, :, :2] == 0).all()
    assert (log_sum[:, :, :2] == float("-inf")).all()
    gradients = backend.attention_backward(torch.ones_like(output), q, k, v, output, log_sum, False, visible)
    assert (gradients[0][:, :, :2] == 0).all()
    assert all(x.isfinite().all() for x in gradients)


@BOTH
@pytest.mark.parametrize("which", range(6), ids=["gradient", "q", "k", "v", "output", "log_sum"])
def test_a_last_stride_that_is_not_one_changes_no_result(backend, which):
    q, k, v = inputs(7, 9)
    output, log_sum = backend.attention(q, k, v, False, None)
    arguments = [torch.ones_like(q), q, k, v, output, log_sum]
    expected = backend.attention_backward(*arguments, False, None)
    arguments[which] = arguments[which].transpose(-1, -2).contiguous().transpose(-1, -2)
    found = backend.attention(*arguments[1:4], False, None), backend.attention_backward(*arguments, False, None)
    for ours, right in zip([*found[0], *found[1]], [output, log_sum, *expected], strict=True):
        torch.testing.assert_close(ours, right, rtol=0, atol=1e-12)


@BOTH
@pytest.mark.parametrize(("queries", "keys", "causal"), [(0, 3, False), (3, 0, False), (0, 0, True)])
def test_without_queries_or_keys_there_is_no_output_and_no_gradient(backend, queries, keys, causal):
    q, k, v = inputs(queries, keys)
    output, log_sum = backend.attention(q, k, v, causal, None)
    assert (output.shape, log_sum.shape) == (q.shape, q.shape[:-1])
    assert (output == 0).all()
    assert (log_sum == float("-inf")).all()
    gradients = backend.attention_backward(torch.ones_like(q), q, k, v, output, log_sum, causal, None)
    assert [gradient.shape for gradient in gradients] == [q.shape, k.shape, v.shape]
    assert all((gradient == 0).all() for gradient in gradients)


@BOTH
def test_two_halves_of_the_keys_merged_by_their_log_sums_are_the_whole(backend):
    q, k, v = inputs(7, 20)
    whole, log_sum = backend.attention(q, k, v, False, None)
    halves = [backend.attention(q, k[:, :, half], v[:, :, half], False, None) for half in (slice(0, 8), slice(8, 20))]
    shares = torch.stack([part for _, part in halves]).softmax(0).unsqueeze(-1)
    torch.testing.assert_close(sum(s * o for s, (o, _) in zip(shares, halves, strict=True)), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.logaddexp(halves[0][1], halves[1][1]), log_sum, rtol=0, atol=1e-12)


def test_a_packed_projection_gives_the_bits_of_its_copies_and_its_gradient_lands_in_one_buffer():
    generator = torch.Generator().manual_seed(5)
    packed = torch.randn(33, B, G, H // G + 2, D, generator=generator)
    q, k, v = kernels.split_packed(packed)
    copies = [x.contiguous() for x in (q.flatten(1, 2), k, v)]
    output, log_sum = kernels.attention(q, k, v, True, None)
    assert torch.equal(output, kernels.attention(*copies, True, None)[0])
    assert output.permute(2, 0, 1, 3).is_contiguous()
    gradient = torch.randn(output.shape, generator=generator)
    result = torch.full_like(packed, float("nan"))
    kernels.attention_backward_(gradient, q, k, v, output, log_sum, True, None, *kernels.split_packed(result))
    expected = kernels.attention_backward(gradient, *copies, output, log_sum, True, None)
    parts = kernels.split_packed(result)
    for ours, theirs in zip((parts[0].flatten(1, 2), *parts[1:]), expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("magnitude", [1e4, -1e4])
def test_scores_of_ten_thousand_give_finite_results(magnitude):
    q, k, v = inputs(9, 9, torch.float32)
    q = q * magnitude
    output, log_sum = kernels.attention(q, k, v, True, None)
    expected, expected_log_sum = reference.attention(q.double(), k.double(), v.double(), True, None)
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=1e-2)
    torch.testing.assert_close(log_sum.double(), expected_log_sum, rtol=0, atol=1e-2)
    assert all(x.isfinite().all() for x in kernels.attention_backward(output, q, k, v, output, log_sum, True, None))


@pytest.mark.parametrize("causal", [True, False])
def test_torchs_written_out_definition_is_its_fused_operation(causal, monkeypatch):
    """Other devices than the CPU take the first."""
    leaves = inputs(12, 12)
    gradient = torch.randn(B, H, 12, D, dtype=torch.float64)
    fused = reference.attention(*leaves, causal, None)
    fused_gradients = reference.attention_backward(gradient, *leaves, *fused, causal, None)
    monkeypatch.setattr("megatron_lite.kernels.reference.attention._FUSED", ())
    written = reference.attention(*leaves, causal, None)
    written_gradients = reference.attention_backward(gradient, *leaves, *written, causal, None)
    for ours, theirs in zip((*written, *written_gradients), (*fused, *fused_gradients), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


# As an operation of torch; test_registration.py has what is common to all


def small(dtype=torch.float64):
    """q [1, 4, 3, 5], k and v [1, 2, 3, 5] as leaves."""
    generator = torch.Generator().manual_seed(7)
    shapes = (1, 4, 3, 5), (1, 2, 3, 5), (1, 2, 3, 5)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


SEEN = visible_from(torch.tensor([[0, 1, 1]], dtype=torch.int32), torch.tensor([[1, 1, 3]], dtype=torch.int32), 3)
VISIBLE = pytest.mark.parametrize(
    ("causal", "visible"), [(True, None), (False, None), (False, SEEN)], ids=["causal", "all", "ranges"]
)


@VISIBLE
def test_gradcheck_holds_in_float64(causal, visible):
    """Along random directions. In the ranges one query sees nothing."""

    def output(*leaves):
        return kernels.attention(*leaves, causal, visible)[0]

    assert torch.autograd.gradcheck(output, small(), fast_mode=True)


def test_the_log_sum_has_no_gradient_and_does_not_pretend_to():
    assert [output.requires_grad for output in kernels.attention(*small(), True, None)] == [True, False]


@VISIBLE
def test_compiled_whole_it_gives_the_same_output_and_gradients(causal, visible):
    torch.compiler.reset()
    leaves = small(torch.float32)
    compiled = torch.compile(kernels.attention, fullgraph=True, backend="aot_eager")(*leaves, causal, visible)
    plain = kernels.attention(*leaves, causal, visible)
    assert all(map(torch.equal, compiled, plain))
    gradients = [torch.autograd.grad(output.square().sum(), leaves) for output, _ in (compiled, plain)]
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize(("causal", "share"), [(True, 2), (False, 1)])
def test_flops_are_two_products_forward_and_five_backward_and_causal_halves_them(causal, share):
    leaves = small(torch.float32)
    with FlopCounterMode(display=False) as counter:
        output, _ = kernels.attention(*leaves, causal, None)
    product = 2 * 4 * 3 * 3 * 5
    assert counter.get_total_flops() == 2 * product // share == Attention(1, 4, 2, 3, 3, 5, causal).flops(2)
    with FlopCounterMode(display=False) as counter:
        output.sum().backward()
    assert counter.get_total_flops() == 5 * product // share


def test_of_queries_by_group_meta_forms_are_laid_out_as_real_results():
    results = []
    for device in ("cpu", "meta"):
        q, k, v = kernels.split_packed(torch.zeros(7, B, G, H // G + 2, D, dtype=torch.bfloat16, device=device))
        output, log_sum = kernels.attention(q, k, v, True, None)
        gradients = kernels.attention_backward(output, q, k, v, output, log_sum, True, None)
        results.append([(x.shape, x.dtype, x.stride()) for x in (output, log_sum, *gradients)])
    assert results[0] == results[1]
    assert [x[0] for x in results[0]] == [(B, H, 7, D), (B, H, 7), (B, G, H // G, 7, D), (B, G, 7, D), (B, G, 7, D)]


@pytest.mark.parametrize("head_dim", [1, 2, 24, 64, 65, 80, 96, 128, 192, 256])
def test_every_head_dimension_is_right_in_both_directions(head_dim):
    """Powers of two and others, each tile table's widest, and less than a product of matrices takes."""
    generator = torch.Generator().manual_seed(head_dim)
    q, gradient = (torch.randn(1, 2, 5, head_dim, generator=generator, dtype=torch.float64) for _ in range(2))
    k, v = (torch.randn(1, 1, 5, head_dim, generator=generator, dtype=torch.float64) for _ in range(2))
    expected, expected_sum = reference.attention(q, k, v, True, None)
    output, log_sum = kernels.attention(q, k, v, True, None)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(log_sum, expected_sum, rtol=0, atol=1e-12)
    arguments = gradient, q, k, v, expected, expected_sum, True, None
    for ours, right in zip(
        kernels.attention_backward(*arguments), reference.attention_backward(*arguments), strict=True
    ):
        torch.testing.assert_close(ours, right, rtol=0, atol=1e-12)


Q, K, SUMS = torch.zeros(1, 4, 3, 8), torch.zeros(1, 2, 3, 8), torch.zeros(1, 4, 3)
WIDE = torch.zeros(1, 2, 3, 257)


@pytest.mark.parametrize(
    ("q", "k", "v", "causal", "message"),
    [
        (Q[0], K, K, True, r"q has 3 dimensions and k 4, must be 4 \(q by group: 5\) and 4"),
        (Q.int(), K, K, True, "q is torch.int32, must be torch.bfloat16 or"),
        (Q, K.bfloat16(), K, True, "k is torch.bfloat16, must be torch.float32"),
        (Q, K, K[:, :, :2], True, r"v has shape \[1, 2, 2, 8\], must be \[1, 2, 3, 8\]"),
        (Q, K.to("meta"), K, True, ".* is on .*, must be on .*, as its other inputs"),
        (Q[:, :3], K, K, True, r"q has shape \[1, 3, 3, 8\], must have a multiple of k's 2 heads"),
        (Q.view(1, 4, 1, 3, 8), K, K, True, r"q has shape \[1, 4, 1, 3, 8\], must have a multiple of k's 2 heads"),
        (Q[:, :, :2], K, K, True, "causal with 2 queries and 3 keys, must be as many"),
        (WIDE, WIDE, WIDE, True, "q has head dimension 257, must be at most 256"),
        (Q[..., :0], K[..., :0], K[..., :0], True, "q has head dimension 0, must be at most 256"),
    ],
)
def test_wrong_queries_keys_and_values_are_named(q, k, v, causal, message):
    with pytest.raises(ValueError, match=f"^attention: {message}"):
        kernels.attention(q, k, v, causal, None)
    with pytest.raises(ValueError, match=f"^attention_backward: {message}"):
        kernels.attention_backward(q, q, k, v, q, SUMS, causal, None)


def test_ranges_beside_causal_are_refused():
    three = torch.zeros(1, 3, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"^attention: ranges of what is seen come all together, and without causal"):
        kernels.attention(Q, K, K, True, visible_from(three, three + 3, 3))


def test_a_result_that_does_not_lie_along_its_rows_is_refused():
    across = torch.zeros(1, 2, 8, 3).transpose(2, 3)
    with pytest.raises(ValueError, match=r"^attention_backward_: dk has last stride 3, must be 1"):
        kernels.attention_backward_(Q, Q, K, K, Q, SUMS, True, None, Q.clone(), across, K.clone())
