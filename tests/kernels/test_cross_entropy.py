"""Vocabulary-parallel cross-entropy's pieces: composed into a loss, at extreme values, as operations of torch."""

import pytest
import torch
import torch.nn.functional as F
from megatron_lite.kernels import costs
from megatron_lite.kernels import cross_entropy as triton
from megatron_lite.kernels.reference import cross_entropy as reference
from megatron_lite.kernels.reference.cross_entropy import combine_statistics
from support.interpreter import watch_traffic
from support.kernels.cases.cross_entropy import EXTREME
from support.kernels.harness import fresh, random

BOTH = pytest.mark.parametrize("operations", [triton, reference], ids=["triton", "reference"])
IGNORED = -100
INF = float("inf")


def labels_of(tokens: int, vocab_size: int, ignored: int) -> torch.Tensor:
    labels = torch.randint(vocab_size, (tokens,), generator=fresh(1))
    labels[:ignored] = IGNORED
    return labels


def shards(logits: torch.Tensor, ranks: int) -> list[torch.Tensor]:
    """Equal columns for each rank, the last one's filled up with poison."""
    local = -(-logits.shape[-1] // ranks)
    padding = local * ranks - logits.shape[-1]
    padded = F.pad(logits, (0, padding), value=float("nan"))
    return [part.contiguous() for part in padded.chunk(ranks, dim=-1)]


def composed(operations, logits, labels, ranks, z_loss):
    """Loss and gradient as the module's docstring puts them together, mean over counted tokens."""
    vocab_size, local = logits.shape[-1], -(-logits.shape[-1] // ranks)
    places = [(labels - rank * local, min(max(vocab_size - rank * local, 0), local)) for rank in range(ranks)]
    parts = shards(logits, ranks)
    pairs = [
        torch.stack(operations.cross_entropy_statistics(part, target, real))
        for part, (target, real) in zip(parts, places, strict=True)
    ]
    log_sum, target_logit = combine_statistics(torch.stack(pairs))
    counted = (labels >= 0) & (labels < vocab_size)
    scale = counted.to(log_sum.dtype) / counted.sum()
    loss = (torch.where(counted, log_sum - target_logit + z_loss * log_sum.square(), 0.0) * scale).sum()
    for part, (target, real) in zip(parts, places, strict=True):
        operations.cross_entropy_gradient_(part, target, real, log_sum, scale, 2 * z_loss * log_sum * scale)
    return loss, torch.cat(parts, dim=-1)


@BOTH
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_any_number_of_ranks_gives_torchs_loss_and_gradient_with_ignored_labels_and_z_loss(operations, ranks, z_loss):
    logits = (3 * random((9, 43), torch.float64, fresh())).requires_grad_()
    labels = labels_of(9, 43, ignored=2)
    expected = F.cross_entropy(logits, labels, ignore_index=IGNORED)
    expected = expected + z_loss * logits[2:].logsumexp(-1).square().mean()
    (gradient,) = torch.autograd.grad(expected, logits)
    loss, found = composed(operations, logits.detach(), labels, ranks, z_loss)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found[:, :43], gradient, rtol=1e-12, atol=1e-14)
    assert torch.equal(found[:, 43:], torch.zeros_like(found[:, 43:]))


@BOTH
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_labels_that_do_not_count_leave_no_gradient(operations, z_loss):
    logits = random((3, 2100), torch.float32, fresh())
    target = torch.tensor([IGNORED, -1, 2**40])
    nothing = torch.zeros(3)
    operations.cross_entropy_gradient_(logits, target, 2100, torch.full((3,), 9.0), nothing, z_loss * nothing)
    assert torch.equal(logits, torch.zeros_like(logits))


@BOTH
def test_a_label_beyond_32_bits_is_not_taken_for_a_column(operations):
    logits = random((2, 40), torch.float32, fresh())
    _, target_logit = operations.cross_entropy_statistics(logits, torch.tensor([2**32 + 5, -(2**32) + 5]), 40)
    assert target_logit.tolist() == [0, 0]


@BOTH
def test_the_target_logit_is_that_very_number_wherever_it_stands(operations):
    places = torch.tensor([0, 2047, 2048, 4149])
    logits = random((4, 4150), torch.bfloat16, fresh())
    _, found = operations.cross_entropy_statistics(logits, places, 4150)
    assert torch.equal(found, logits[torch.arange(4), places].float())


@BOTH
@pytest.mark.parametrize("columns", [4, 2048 + 4])
@pytest.mark.parametrize("values", EXTREME.values(), ids=EXTREME)
def test_extreme_logits_are_right_in_both_directions(operations, columns, values):
    """Four numbers, first or last of a row that is masked beside them."""
    row = torch.full((1, columns), -INF)
    row[0, -4:] = torch.tensor(values)
    target = torch.tensor([columns - 1])
    exact = row.double().requires_grad_()
    log_sum = exact.logsumexp(-1)
    loss = log_sum - exact[0, -1]
    loss.sum().backward()
    found, target_logit = operations.cross_entropy_statistics(row, target, columns)
    torch.testing.assert_close(found.double(), log_sum.detach(), rtol=1e-7, atol=1e-7)
    assert target_logit.item() == values[-1]
    operations.cross_entropy_gradient_(row, target, columns, found, torch.ones(1), torch.zeros(1))
    # Where log-sum is 1e4, its last place in float32 is 1e-3.
    torch.testing.assert_close(row.double(), exact.grad, rtol=0, atol=1e-3 if abs(values[0]) == 1e4 else 1e-6)


@BOTH
@pytest.mark.parametrize("real", [0, 40, 2100])
def test_a_row_that_is_masked_throughout_has_log_sum_minus_infinity_and_gradient_zero(operations, real):
    logits = torch.full((2, 2100), -INF)
    target = torch.tensor([IGNORED, IGNORED])
    log_sum, target_logit = operations.cross_entropy_statistics(logits, target, real)
    assert log_sum.tolist() == [-INF, -INF] and target_logit.tolist() == [0, 0]
    operations.cross_entropy_gradient_(logits, target, real, log_sum, torch.zeros(2), torch.zeros(2))
    assert torch.equal(logits, torch.zeros_like(logits))


@BOTH
def test_nan_among_the_logits_reaches_the_log_sum(operations):
    logits = random((2, 2100), torch.float32, fresh())
    logits[0, 7], logits[1, 2099] = float("nan"), float("nan")
    assert operations.cross_entropy_statistics(logits, torch.zeros(2, dtype=torch.int64), 2100)[0].isnan().all()


@BOTH
def test_a_sure_and_right_answers_gradient_keeps_its_digits_in_bfloat16(operations):
    """p - 1 is -2.5e-4 here, and bfloat16 has steps of 4e-3 below 1; the log-sum's last place is a 250th of it."""
    logits = torch.tensor([[9.0, 0.0, 0.0]], dtype=torch.bfloat16)
    target, exact = torch.tensor([0]), torch.tensor([9.0, 0.0, 0.0], dtype=torch.float64)
    log_sum, _ = operations.cross_entropy_statistics(logits, target, 3)
    operations.cross_entropy_gradient_(logits, target, 3, log_sum, torch.ones(1), torch.zeros(1))
    expected = exact.softmax(0)[0] - 1
    assert logits[0, 0].double() == pytest.approx(expected.item(), rel=1e-2)


def test_statistics_are_combined_in_rank_order_and_survive_ranks_without_columns():
    parts = torch.tensor([[1.0, -INF, -INF, 1e4], [-INF, -INF, 2.0, -1e4], [3.0, -INF, -INF, 1e4]])
    picked = torch.tensor([[0.0, 0, 0, 0], [0.0, 0, 2, 0], [3.0, 0, 0, 5]])
    log_sum, target_logit = combine_statistics(torch.stack([parts, picked], dim=1))
    expected = torch.tensor([[1.0, 3.0]]).logsumexp(-1).item()
    assert log_sum.tolist() == pytest.approx([expected, -INF, 2.0, 1e4 + torch.tensor(2.0).log().item()], rel=1e-6)
    assert target_logit.tolist() == [3, 0, 2, 5]


def test_both_directions_together_move_six_bytes_an_element_in_bfloat16():
    rows, columns = 4, 16000
    logits = random((rows, columns), torch.bfloat16, fresh())
    target, number = torch.arange(rows), torch.ones(rows)
    with watch_traffic() as traffic:
        log_sum, _ = triton.cross_entropy_statistics(logits, target, columns)
        triton.cross_entropy_gradient_(logits, target, columns, log_sum, number, number)
    ours = [argument for name, argument in traffic.arguments.items() if name.endswith(".logits")]
    assert sum(argument.loaded + argument.stored for argument in ours) == 6 * rows * columns
    cost = costs.cross_entropy_statistics(rows, columns, columns, 2)
    cost += costs.cross_entropy_gradient_(rows, columns, columns, 2)
    assert traffic.loaded + traffic.stored == cost.moved
    assert cost.moved / (rows * columns) == pytest.approx(6, rel=2e-3)


def test_the_statistics_gradient_is_right_by_differences():
    logits = random((1, 3, 4), torch.float64, fresh()).requires_grad_()
    target = torch.tensor([[0, IGNORED, 2]])
    torch.autograd.gradcheck(lambda x: triton.cross_entropy_statistics(x, target, 3), (logits,))


def test_statistics_are_an_operation_as_torch_wants_them():
    logits = random((3, 40), torch.float32, fresh()).requires_grad_()
    torch.library.opcheck(triton.cross_entropy_statistics, (logits, torch.tensor([3, -1, 39]), 40))


def test_the_gradient_is_an_operation_as_torch_wants_them():
    logits, number = random((3, 40), torch.float32, fresh()), torch.ones(3)
    arguments = logits, torch.tensor([3, -1, 39]), 40, number, number, number
    torch.library.opcheck(triton.cross_entropy_gradient_, arguments)


def test_compiled_as_one_graph_the_bits_are_the_same():
    def both(logits, target):
        log_sum, target_logit = triton.cross_entropy_statistics(logits, target, 40)
        gradient = logits.clone()
        triton.cross_entropy_gradient_(gradient, target, 40, log_sum, log_sum, target_logit)
        return log_sum, target_logit, gradient

    arguments = random((3, 43), torch.float32, fresh()), torch.tensor([3, -1, 39])
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, compiled(*arguments), both(*arguments)))


@pytest.mark.parametrize(
    ("dtype", "exact"), [(torch.bfloat16, torch.float32), (torch.float32,) * 2, (torch.float64,) * 2], ids=str
)
def test_on_meta_tensors_statistics_have_their_shape_and_dtype(dtype, exact):
    logits = torch.empty(5, 2, 40, dtype=dtype, device="meta")
    target = torch.empty(5, 2, dtype=torch.int64, device="meta")
    for tensor in triton.cross_entropy_statistics(logits, target, 40):
        assert tensor.shape == (5, 2) and tensor.dtype == exact and tensor.device.type == "meta"


def test_no_tokens_are_no_work():
    log_sum, target_logit = triton.cross_entropy_statistics(torch.ones(0, 8), torch.ones(0, dtype=torch.int64), 8)
    assert log_sum.shape == target_logit.shape == (0,)
    triton.cross_entropy_gradient_(torch.ones(0, 8), torch.ones(0, dtype=torch.int64), 8, *[torch.ones(0)] * 3)


@BOTH
def test_a_rank_without_columns_has_nothing_to_add(operations):
    logits, target = torch.ones(3, 0), torch.tensor([0, -1, 5])
    log_sum, target_logit = operations.cross_entropy_statistics(logits, target, 0)
    assert log_sum.tolist() == [-INF] * 3 and target_logit.tolist() == [0] * 3
    operations.cross_entropy_gradient_(logits, target, 0, log_sum, torch.ones(3), torch.zeros(3))


def test_wrong_arguments_are_named():
    logits, target, number = torch.zeros(3, 8), torch.zeros(3, dtype=torch.int64), torch.zeros(3)
    with pytest.raises(ValueError, match=r"statistics: real is 9, must be from 0 to the 8 columns of logits"):
        triton.cross_entropy_statistics(logits, target, 9)
    with pytest.raises(ValueError, match=r"statistics: target is torch.int32, must be torch.int64"):
        triton.cross_entropy_statistics(logits, target.int(), 8)
    with pytest.raises(ValueError, match=r"statistics: target has shape \[2\], must be \[3\]"):
        triton.cross_entropy_statistics(logits, target[:2], 8)
    with pytest.raises(ValueError, match=r"statistics: logits is torch.int64, must be torch.bfloat16 or"):
        triton.cross_entropy_statistics(logits.long(), target, 8)
    with pytest.raises(ValueError, match=r"gradient_: log_sum is torch.float64, must be torch.float32"):
        triton.cross_entropy_gradient_(logits, target, 8, number.double(), number, number)
    with pytest.raises(ValueError, match=r"gradient_: loss_gradient has shape \[\], must be \[3\]"):
        triton.cross_entropy_gradient_(logits, target, 8, number, number[0], number)
    with pytest.raises(ValueError, match=r"logits has strides \(1, 8\), must be rows without gaps, evenly apart"):
        triton.cross_entropy_gradient_(
            torch.zeros(3, 8).t(), torch.zeros(8, dtype=torch.int64), 3, *[torch.zeros(8)] * 3
        )
