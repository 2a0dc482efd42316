"""Blocks of attention against the definition in float64, whole and in parts."""

import pytest
import torch
from megatron_lite.kernels.attention import attention_backward, attention_forward

B, H, G, D = 2, 6, 2, 8


def inputs(queries: int, keys: int, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    sizes = [(B, H, queries, D), (B, G, keys, D), (B, G, keys, D)]
    return [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes]


def definition(q, k, v, seen):
    """Attention as its paper writes it; `seen` bool [.., T, S]. Also the log-sum-exp."""
    k, v = (x.repeat_interleave(H // G, dim=1) for x in (k, v))
    scores = (q @ k.transpose(-1, -2) / D**0.5).masked_fill(~seen, float("-inf"))
    return scores.softmax(-1).nan_to_num(0) @ v, scores.logsumexp(-1)


def random_mask(queries: int, keys: int) -> torch.Tensor:
    mask = torch.rand(B, 1, queries, keys, generator=torch.Generator().manual_seed(5)) > 0.4
    mask[..., 0] = True
    return mask


CASES = {
    "causal": (12, 12, True, None),
    "all": (5, 9, False, None),
    "masked": (12, 12, False, random_mask(12, 12)),
    "masked block": (5, 9, False, random_mask(5, 9)),
}


@pytest.mark.parametrize("case", CASES)
def test_output_log_sum_and_gradients_are_the_definitions(case):
    queries, keys, causal, allowed = CASES[case]
    leaves = [x.requires_grad_() for x in inputs(queries, keys)]
    seen = torch.ones(queries, keys, dtype=torch.bool).tril() if causal else allowed
    seen = torch.ones(queries, keys, dtype=torch.bool) if seen is None else seen
    expected, expected_log_sum = definition(*leaves, seen)
    gradient = torch.randn(expected.shape, dtype=torch.float64)
    expected_gradients = torch.autograd.grad(expected, leaves, gradient)
    with torch.no_grad():
        output, log_sum = attention_forward(*leaves, causal, allowed)
        gradients = attention_backward(gradient, *leaves, output, log_sum, causal, allowed)
    torch.testing.assert_close(output, expected.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(log_sum, expected_log_sum.detach(), rtol=0, atol=1e-12)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_a_query_that_sees_nothing_has_output_zero_and_no_gradient():
    q, k, v = inputs(4, 4)
    allowed = torch.ones(B, 1, 4, 4, dtype=torch.bool)
    allowed[:, :, 2] = False
    output, log_sum = attention_forward(q, k, v, False, allowed)
    assert (output[:, :, 2] == 0).all()
    assert (log_sum[:, :, 2] == float("-inf")).all()
    q_gradient, *others = attention_backward(torch.ones_like(output), q, k, v, output, log_sum, False, allowed)
    assert (q_gradient[:, :, 2] == 0).all()
    assert all(x.isfinite().all() for x in others)


@pytest.mark.parametrize("masked", [False, True])
def test_bfloat16_keeps_its_dtype_and_errs_by_its_rounding(masked):
    exact = inputs(16, 16)
    rounded = [x.bfloat16() for x in exact]
    allowed = random_mask(16, 16) if masked else None
    output, log_sum = attention_forward(*rounded, False, allowed)
    expected, expected_log_sum = attention_forward(*(x.double() for x in rounded), False, allowed)
    assert (output.dtype, log_sum.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(output.double(), expected, rtol=2**-7, atol=2**-7)
    torch.testing.assert_close(log_sum.double(), expected_log_sum, rtol=0, atol=1e-3)


@pytest.mark.parametrize("causal", [True, False])
def test_the_written_out_definition_is_the_fused_operation(causal, monkeypatch):
    """Other devices than the CPU take the first."""
    leaves = inputs(12, 12)
    gradient = torch.randn(B, H, 12, D, dtype=torch.float64)
    fused = attention_forward(*leaves, causal, None)
    fused_gradients = attention_backward(gradient, *leaves, *fused, causal, None)
    monkeypatch.setattr("megatron_lite.kernels.attention._FUSED", ())
    written = attention_forward(*leaves, causal, None)
    written_gradients = attention_backward(gradient, *leaves, *written, causal, None)
    for ours, theirs in zip((*written, *written_gradients), (*fused, *fused_gradients), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
