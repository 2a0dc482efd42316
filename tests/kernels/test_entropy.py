"""Entropy, log-probability and argmax over a cut vocabulary, and their gradient: against torch in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from megatron_lite.kernels import cross_entropy, entropy
from megatron_lite.kernels.reference import cross_entropy as reference_cross_entropy
from megatron_lite.kernels.reference import entropy as reference
from megatron_lite.kernels.reference.cross_entropy import combine_statistics
from megatron_lite.kernels.reference.entropy import combine_entropy_statistics
from support.kernels.cases.cross_entropy import EXTREME
from support.kernels.harness import exact_of, fresh, random

BOTH = pytest.mark.parametrize("operations", [entropy, reference], ids=["triton", "reference"])
INF = float("inf")
TOKENS, WORDS = 5, 13


def cut(logits, labels, ranks):
    """Each rank's columns, filled up with poison; the label's place among them; how many are real."""
    local = -(-WORDS // ranks)
    padded = F.pad(logits, (0, local * ranks - WORDS), value=float("nan"))
    reals = (min(max(WORDS - rank * local, 0), local) for rank in range(ranks))
    return [
        (part.contiguous(), labels - rank * local, real)
        for rank, (part, real) in enumerate(zip(padded.split(local, dim=-1), reals, strict=True))
    ]


def combined(operations, shards):
    return combine_entropy_statistics(torch.stack([torch.stack(operations.entropy_statistics(*one)) for one in shards]))


def expected_of(logits, labels, weights):
    """Log-probability, entropy and gradient of a (log_sum - target_logit) + b log_sum + c entropy, in float64."""
    exact = logits.double().clone().requires_grad_()
    log_p = exact.log_softmax(-1)
    of_label = log_p.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    whole = -(log_p.exp() * log_p).sum(-1)
    a, b, c = weights.double()
    (gradient,) = torch.autograd.grad((-a * of_label + b * exact.logsumexp(-1) + c * whole).sum(), exact)
    return of_label.detach(), whole.detach(), gradient


@BOTH
@pytest.mark.parametrize("ranks", [1, 6])  # of six the fifth has one column, the last padding alone
@pytest.mark.parametrize(
    ("dtype", "near", "rounded"),
    [(torch.float64, 1e-12, 1e-12), (torch.float32, 2e-6, 2e-6), (torch.bfloat16, 2e-6, 2**-8)],
    ids=["float64", "float32", "bfloat16"],
)
def test_ranks_together_have_torchs_entropy_log_probability_argmax_and_gradient(
    operations, ranks, dtype, near, rounded
):
    logits = 3 * random((TOKENS, WORDS), dtype, fresh())
    labels = torch.randint(WORDS, (TOKENS,), generator=fresh(1))
    labels[:2] = logits[:2].argmax(-1)
    weights = random((3, TOKENS), exact_of(dtype), fresh(2))
    labels[2], weights[:, 2] = -100, 0  # does not count
    of_label, whole, gradient = expected_of(logits, labels, weights)
    shards = cut(logits, labels, ranks)
    log_sum, target_logit, mean_logit, largest = combined(operations, shards)
    counts = labels >= 0
    torch.testing.assert_close((target_logit - log_sum).double()[counts], of_label[counts], rtol=near, atol=10 * near)
    torch.testing.assert_close((log_sum - mean_logit).double(), whole, rtol=near, atol=10 * near)
    assert torch.equal(largest, logits.amax(-1).to(largest.dtype))
    assert torch.equal((target_logit == largest)[counts], (logits.argmax(-1) == labels)[counts])
    for part, target, real in shards:
        operations.entropy_gradient_(part, target, real, log_sum, mean_logit, *weights)
    found = torch.cat([part for part, _, _ in shards], dim=-1)
    size = gradient.abs().max().item()
    torch.testing.assert_close(found[:, :WORDS].double(), gradient, rtol=rounded, atol=rounded * size)
    assert torch.equal(found[:, WORDS:], torch.zeros_like(found[:, WORDS:]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@BOTH
def test_log_sum_and_target_logit_are_the_cross_entropys_bits(operations, dtype):
    others = cross_entropy if operations is entropy else reference_cross_entropy
    logits = 4 * random((3, 4150), dtype, fresh())
    logits[0, 7:2100] = -INF
    for real in (4150, 2001):
        arguments = logits, torch.tensor([4149, 2000, -1]), real
        found, expected = operations.entropy_statistics(*arguments), others.cross_entropy_statistics(*arguments)
        assert all(map(torch.equal, found[:2], expected))


def test_combined_log_sum_and_target_logit_are_the_cross_entropys_bits():
    quads = random((5, 4, 300), torch.float32, fresh())
    quads[1:3, 0, :7] = -INF
    assert all(map(torch.equal, combine_entropy_statistics(quads)[:2], combine_statistics(quads[:, :2])))


def test_ranks_without_columns_change_nothing_and_none_at_all_are_nothing():
    some = torch.tensor([2.0, 1.5, 1.0, 1.25]).unsqueeze(-1)
    nothing = torch.tensor([-INF, 0.0, 0.0, -INF]).unsqueeze(-1)
    assert torch.equal(torch.stack(combine_entropy_statistics(torch.stack([nothing, some, nothing]))), some)
    assert torch.equal(torch.stack(combine_entropy_statistics(torch.stack([nothing, nothing]))), nothing)


LOWEST = torch.finfo(torch.float32).min
MASKED = EXTREME | {"masked by the lowest number": [LOWEST, 2.0, LOWEST, 1.0]}


@BOTH
@pytest.mark.parametrize("columns", [4, 2048 + 4])
@pytest.mark.parametrize("values", MASKED.values(), ids=MASKED)
def test_extreme_logits_are_right_in_both_directions(operations, columns, values):
    """Four numbers, first or last of a row that is masked beside them; entropy's gradient counts three times."""
    row = torch.full((1, columns), -INF)
    row[0, -4:] = torch.tensor(values)
    target, finite = torch.tensor([columns - 1]), torch.tensor([x for x in values if x > LOWEST])
    found = operations.entropy_statistics(row, target, columns)
    _, whole, gradient = expected_of(finite, torch.tensor(len(finite) - 1), torch.tensor([1.0, 0.0, 3.0]))
    mean = (finite.double().softmax(0) * finite.double()).sum()
    # Where log-sum is 1e4, its last place in float32 is 1e-3.
    near = 1e-3 if abs(values[0]) == 1e4 else 1e-6
    assert found[2].item() == pytest.approx(mean.item(), rel=1e-7)
    assert (found[0] - found[2]).item() == pytest.approx(whole.item(), abs=near)
    assert found[3].item() == max(values)
    ones = torch.ones(1)
    operations.entropy_gradient_(row, target, columns, found[0], found[2], ones, 0 * ones, 3 * ones)
    expected = torch.zeros(columns, dtype=torch.float64)
    expected[-4:][torch.tensor(values) > LOWEST] = gradient
    torch.testing.assert_close(row[0].double(), expected, rtol=0, atol=5 * near)


@BOTH
@pytest.mark.parametrize("order", ["rising", "falling"])
def test_a_maximum_that_moves_from_tile_to_tile_leaves_the_entropy_right(operations, order):
    logits = torch.linspace(-50, 50, 3 * 2048 + 4).unsqueeze(0) + 200
    logits = logits if order == "rising" else logits.flip(-1)
    log_p = logits.double().log_softmax(-1)
    log_sum, _, mean_logit, _ = operations.entropy_statistics(logits, torch.tensor([0]), logits.shape[-1])
    # The last place of 250 is 1.5e-5.
    assert (log_sum - mean_logit).item() == pytest.approx(-(log_p.exp() * log_p).sum().item(), abs=4e-5)


@BOTH
def test_equal_logits_have_the_logarithm_of_their_number_and_no_gradient_of_entropy(operations):
    logits, zero = torch.full((2, 2100), 3.0), torch.zeros(2)
    log_sum, _, mean_logit, largest = operations.entropy_statistics(logits, torch.tensor([0, -1]), 2100)
    assert mean_logit.tolist() == largest.tolist() == [3.0, 3.0]
    assert (log_sum - mean_logit).tolist() == pytest.approx([math.log(2100)] * 2, rel=1e-6)
    operations.entropy_gradient_(logits, torch.tensor([0, -1]), 2100, log_sum, mean_logit, zero, zero, zero + 1)
    assert torch.equal(logits, torch.zeros_like(logits))


@BOTH
@pytest.mark.parametrize("real", [0, 40, 2100])
def test_a_row_that_is_masked_throughout_has_mean_0_maximum_minus_infinity_and_no_gradient(operations, real):
    logits, target, one = torch.full((2, 2100), -INF), torch.tensor([-100, 2200]), torch.ones(2)
    log_sum, target_logit, mean_logit, largest = operations.entropy_statistics(logits, target, real)
    assert log_sum.tolist() == largest.tolist() == [-INF, -INF]
    assert target_logit.tolist() == mean_logit.tolist() == [0, 0]
    operations.entropy_gradient_(logits, target, real, log_sum, mean_logit, one, one, one)
    assert torch.equal(logits, torch.zeros_like(logits))


@BOTH
def test_a_rank_without_columns_has_nothing_to_add(operations):
    logits, target, one = torch.ones(3, 0), torch.tensor([0, -1, 5]), torch.ones(3)
    found = operations.entropy_statistics(logits, target, 0)
    assert [one.tolist() for one in found] == [[-INF] * 3, [0] * 3, [0] * 3, [-INF] * 3]
    operations.entropy_gradient_(logits, target, 0, *[one] * 5)


@BOTH
def test_nan_among_the_logits_reaches_the_log_sum_and_the_mean(operations):
    logits = random((2, 2100), torch.float32, fresh())
    logits[0, 7], logits[1, 2099] = float("nan"), float("nan")
    log_sum, _, mean_logit, _ = operations.entropy_statistics(logits, torch.zeros(2, dtype=torch.int64), 2100)
    assert log_sum.isnan().all() and mean_logit.isnan().all()


@BOTH
def test_the_statistics_gradient_is_right_by_differences_and_the_maximum_has_none(operations):
    logits = random((1, 2, 4), torch.float64, fresh()).requires_grad_()
    target = torch.tensor([[-100, 2]])
    torch.autograd.gradcheck(lambda x: operations.entropy_statistics(x, target, 3)[:3], (logits,))
    assert not operations.entropy_statistics(logits, target, 3)[3].requires_grad


def test_no_tokens_are_no_work():
    nothing, target = torch.ones(0), torch.ones(0, dtype=torch.int64)
    assert [one.shape for one in entropy.entropy_statistics(torch.ones(0, 8), target, 8)] == [(0,)] * 4
    entropy.entropy_gradient_(torch.ones(0, 8), target, 8, *[nothing] * 5)


def test_wrong_arguments_are_named():
    logits, target, number = torch.zeros(3, 8), torch.zeros(3, dtype=torch.int64), torch.zeros(3)
    with pytest.raises(ValueError, match=r"entropy_statistics: real is 9, must be from 0 to the 8 columns of logits"):
        entropy.entropy_statistics(logits, target, 9)
    with pytest.raises(ValueError, match=r"entropy_gradient_: mean_logit is torch.float64, must be torch.float32"):
        entropy.entropy_gradient_(logits, target, 8, number, number.double(), number, number, number)
    with pytest.raises(ValueError, match=r"entropy_gradient_: entropy_gradient has shape \[\], must be \[3\]"):
        entropy.entropy_gradient_(logits, target, 8, number, number, number, number, number[0])
    with pytest.raises(ValueError, match=r"entropy_gradient_: logits has strides \(1, 8\), must be rows without gaps"):
        zeros = [torch.zeros(8)] * 5
        entropy.entropy_gradient_(torch.zeros(3, 8).t(), torch.zeros(8, dtype=torch.int64), 3, *zeros)
