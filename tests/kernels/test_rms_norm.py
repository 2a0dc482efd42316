"""RMSNorm beyond what every operation is held to: gradients, parts of the weight's gradient, extreme rows, errors."""

import pytest
import torch
import torch.nn.functional as F
from megatron_lite.kernels import launch
from megatron_lite.kernels.costs import PARTIALS
from megatron_lite.kernels.reference import rms_norm as reference
from megatron_lite.kernels.rms_norm import add_partials_, add_rms_norm, rms_norm, rms_norm_backward
from support.kernels.harness import fresh, random
from torch.utils.flop_counter import FlopCounterMode

EPS = 1e-5
BOTH = pytest.mark.parametrize(
    ("norm", "add_norm", "backward"),
    [
        (rms_norm, add_rms_norm, rms_norm_backward),
        (reference.rms_norm, reference.add_rms_norm, reference.rms_norm_backward),
    ],
    ids=["kernel", "reference"],
)
EXTREME = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])


def numbers(*shape, dtype=torch.float64, seed=0):
    return random(shape, dtype, fresh(seed))


def definition(x, weight):
    """Equation 4 of its paper, with eps under the root."""
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight


@BOTH
def test_both_directions_are_what_autograd_makes_of_the_definition(norm, add_norm, backward):
    x, weight, dy = numbers(3, 4, 11).requires_grad_(), numbers(11, seed=1).requires_grad_(), numbers(3, 4, 11, seed=2)
    expected = definition(x, weight)
    dx, dw = torch.autograd.grad(expected, (x, weight), dy)
    with torch.no_grad():
        y, scales = norm(x, weight, EPS)
        found, partials = backward(dy, None, x, weight, scales)
    torch.testing.assert_close(y, expected.detach(), rtol=0, atol=1e-13)
    torch.testing.assert_close(found, dx, rtol=0, atol=1e-13)
    torch.testing.assert_close(partials.sum(0), dw, rtol=0, atol=1e-12)


@BOTH
def test_of_a_sum_the_gradient_is_both_addends_and_has_what_comes_past_the_norm(norm, add_norm, backward):
    x, residual = numbers(5, 11).requires_grad_(), numbers(5, 11, seed=1).requires_grad_()
    weight, dy, dtotal = (numbers(*shape, seed=2) for shape in ((11,), (5, 11), (5, 11)))
    total = x + residual
    expected = definition(total, weight)
    to_x, to_residual = torch.autograd.grad((expected, total), (x, residual), (dy, dtotal))
    with torch.no_grad():
        y, found_total, scales = add_norm(x, residual, weight, EPS)
        found, _ = backward(dy, dtotal, found_total, weight, scales)
    torch.testing.assert_close(y, expected.detach(), rtol=0, atol=1e-13)
    assert torch.equal(found_total, total) and torch.equal(to_x, to_residual)
    torch.testing.assert_close(found, to_x, rtol=0, atol=1e-13)


def test_gradcheck_holds_in_float64():
    x, residual, weight = numbers(2, 5), numbers(2, 5, seed=1), numbers(5, seed=2)
    leaves = [leaf.requires_grad_() for leaf in (x, residual, weight)]
    assert torch.autograd.gradcheck(lambda x, weight: rms_norm(x, weight, EPS)[0], (leaves[0], leaves[2]))
    assert torch.autograd.gradcheck(lambda *given: add_rms_norm(*given, EPS)[:2], leaves)


def test_the_scale_has_no_gradient_and_does_not_pretend_to():
    x, weight = numbers(3, 7).requires_grad_(), numbers(7).requires_grad_()
    assert [output.requires_grad for output in rms_norm(x, weight, EPS)] == [True, False]
    assert [output.requires_grad for output in add_rms_norm(x, x, weight, EPS)] == [True, True, False]


def test_compiled_whole_it_gives_the_same_outputs_and_gradients():
    def whole(x, residual, weight):
        total, y = add_rms_norm(x, residual, weight, EPS)[:2]
        return (rms_norm(total, weight, EPS)[0] * y).square().sum()

    leaves = [numbers(*shape, dtype=torch.float32).requires_grad_() for shape in ((5, 12), (5, 12), (12,))]
    compiled, plain = torch.compile(whole, fullgraph=True, backend="aot_eager")(*leaves), whole(*leaves)
    assert torch.equal(compiled, plain)
    for ours, expected in zip(torch.autograd.grad(compiled, leaves), torch.autograd.grad(plain, leaves), strict=True):
        assert torch.equal(ours, expected)


def test_it_counts_no_flops_as_torchs_own_norm_counts_none():
    x, weight = numbers(4, 8, dtype=torch.float32), numbers(8, dtype=torch.float32)
    for norm in (lambda: F.rms_norm(x, (8,), weight, EPS), lambda: rms_norm(x, weight, EPS)):
        with FlopCounterMode(display=False) as counter:
            norm()
        assert counter.get_total_flops() == 0


@pytest.mark.parametrize(
    ("dtype", "exact"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
    ids=str,
)
def test_meta_forms_have_the_shapes_and_dtypes_of_real_ones(dtype, exact):
    x, weight = (torch.empty(shape, dtype=dtype, device="meta") for shape in ((3, 50, 10), (10,)))
    y, total, scales = add_rms_norm(x, x, weight, EPS)
    dx, partials = rms_norm_backward(y, total, x, weight, scales)
    for tensor in (y, total, dx):
        assert (tensor.shape, tensor.dtype, tensor.is_contiguous()) == ((3, 50, 10), dtype, True)
    assert (scales.shape, scales.dtype) == ((3, 50), exact)
    assert (partials.shape, partials.dtype) == ((PARTIALS, 10), exact)


# Parts of the weight's gradient


def backward_of(rows, columns=6):
    """With scales of 1 and small whole numbers, so that sums are exact."""
    dy, x = (torch.randint(-4, 5, (rows, columns), generator=fresh(seed)).float() for seed in (1, 2))
    return dy, x, rms_norm_backward(dy, None, x, torch.ones(columns), torch.ones(rows))[1]


@pytest.mark.parametrize("rows", [1, 7, PARTIALS, PARTIALS + 3, 2 * PARTIALS + 1])
def test_a_part_is_the_sum_of_every_so_many_th_row(rows):
    dy, x, partials = backward_of(rows)
    parts = min(rows, PARTIALS)
    assert torch.equal(partials, torch.stack([(dy * x)[part::parts].sum(0) for part in range(parts)]))


def test_how_many_parts_there_are_and_their_bits_are_the_same_on_every_target(monkeypatch):
    found = []
    for target in launch.TARGETS:
        monkeypatch.setattr(launch, "target_of", lambda device, target=target: target)
        found.append(backward_of(PARTIALS + 3)[2])
    assert found[0].shape == (PARTIALS, 6)
    assert all(torch.equal(partials, found[0]) for partials in found)


def test_parts_are_added_to_what_the_gradient_holds():
    gradient, partials = torch.arange(70.0), torch.arange(3.0 * 70).view(3, 70)
    add_partials_(gradient, partials)
    assert torch.equal(gradient, torch.arange(70.0) + partials.sum(0))


# Rows of one kind


@EXTREME
def test_rows_of_ten_thousand_come_out_as_the_weight_and_have_next_to_no_gradient(dtype):
    """r = 1e-4, so y = +-w; a gradient along the row itself cancels."""
    weight, sign = torch.tensor([1.0, -2.0, 0.5, 4.0], dtype=dtype), torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=dtype)
    x = 1e4 * sign.expand(2, 4)
    y, scales = rms_norm(x, weight, EPS)
    torch.testing.assert_close(y, (sign * weight).expand(2, 4), rtol=1e-7, atol=0)
    torch.testing.assert_close(scales, torch.full_like(scales, 1 / float(x[0, 0])), rtol=1e-6, atol=0)
    dx, partials = rms_norm_backward(sign / weight * torch.ones_like(x), None, x, weight, scales)
    assert float(dx.abs().max()) < 1e-9
    torch.testing.assert_close(partials.sum(0), (2 / weight).to(partials.dtype), rtol=1e-6, atol=0)


@EXTREME
@pytest.mark.parametrize("value", [0.0, 1e-30])
def test_rows_of_zeros_and_of_what_vanishes_squared_are_scaled_by_eps_alone(dtype, value):
    x = torch.full((2, 4), value, dtype=dtype)
    weight, dy = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=dtype), torch.ones(2, 4, dtype=dtype)
    y, scales = rms_norm(x, weight, EPS)
    torch.testing.assert_close(scales, torch.full_like(scales, EPS**-0.5), rtol=1e-6, atol=0)
    torch.testing.assert_close(y.double(), (x * weight).double() * EPS**-0.5, rtol=1e-2, atol=0)
    dx, partials = rms_norm_backward(dy, None, x, weight, scales)
    torch.testing.assert_close(dx.double(), weight.double().expand(2, 4) * EPS**-0.5, rtol=1e-2, atol=0)
    torch.testing.assert_close(partials.double(), x.double() * EPS**-0.5, rtol=1e-2, atol=0)


def test_one_row_is_one_part():
    x, dy, weight = numbers(1, 9), numbers(1, 9, seed=1), numbers(9, seed=2)
    y, scales = rms_norm(x, weight, EPS)
    dx, partials = rms_norm_backward(dy, None, x, weight, scales)
    assert scales.shape == (1,) and dx.shape == (1, 9)
    torch.testing.assert_close(y, definition(x, weight), rtol=0, atol=1e-13)
    torch.testing.assert_close(partials, dy * x * scales, rtol=1e-14, atol=0)


def test_a_vector_without_rows_is_one_row():
    x, weight = numbers(9), numbers(9, seed=1)
    y, scales = rms_norm(x, weight, EPS)
    assert y.shape == (9,) and scales.shape == ()
    torch.testing.assert_close(y, definition(x, weight), rtol=0, atol=1e-13)


def test_nan_in_one_row_stays_in_its_row():
    x, weight = torch.ones(3, 4), torch.ones(4)
    x[1, 2] = float("nan")
    y, scales = rms_norm(x, weight, EPS)
    dx, _ = rms_norm_backward(torch.ones(3, 4), None, x, weight, scales)
    for tensor in (y, scales.unsqueeze(1), dx):
        assert tensor.isnan().any(1).tolist() == [False, True, False]


def test_in_bfloat16_the_sum_is_rounded_once_and_the_norm_sees_it_rounded():
    x, residual, weight = (numbers(*shape, dtype=torch.bfloat16, seed=4) for shape in ((6, 33), (6, 33), (33,)))
    residual = residual / 3
    y, total, scales = add_rms_norm(x, residual, weight, EPS)
    assert torch.equal(total, (x.float() + residual.float()).bfloat16())
    again, same_scales = rms_norm(total, weight, EPS)
    assert torch.equal(y, again) and torch.equal(scales, same_scales)
    assert torch.equal(y, (total.float() * scales.unsqueeze(1) * weight.float()).bfloat16())


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 4)])
def test_no_rows_no_work(shape):
    x, weight = torch.empty(shape), torch.ones(shape[-1])
    y, total, scales = add_rms_norm(x, x, weight, EPS)
    dx, partials = rms_norm_backward(y, total, x, weight, scales)
    assert y.shape == total.shape == dx.shape == shape and scales.shape == shape[:-1]
    assert partials.shape == (0, shape[-1])
    gradient = torch.ones(shape[-1])
    add_partials_(gradient, partials)
    assert (gradient == 1).all()


X, W, R = torch.ones(3, 4), torch.ones(4), torch.ones(3)


@pytest.mark.parametrize(
    ("operation", "arguments", "message"),
    [
        (rms_norm, (X.int(), W, EPS), "rms_norm: x is torch.int32, must be torch.bfloat16 or"),
        (rms_norm, (X, W[:3], EPS), r"rms_norm: weight has shape \[3\], must be \[4\]"),
        (rms_norm, (X, W.bfloat16(), EPS), "rms_norm: weight is torch.bfloat16, must be torch.float32"),
        (rms_norm, (X, W.to("meta"), EPS), "rms_norm: weight is on meta, must be on cpu"),
        (rms_norm, (X[:, :0], W[:0], EPS), r"rms_norm: x has shape \[3, 0\], must be rows of at least one column"),
        (rms_norm, (X[0, 0], W[0], EPS), r"rms_norm: x has shape \[\], must be rows of at least one column"),
        (add_rms_norm, (X, X[:2], W, EPS), r"add_rms_norm: residual has shape \[2, 4\], must be \[3, 4\]"),
        (add_rms_norm, (X, X.double(), W, EPS), "add_rms_norm: residual is torch.float64, must be torch.float32"),
        (add_rms_norm, (X, X.to("meta"), W, EPS), "add_rms_norm: residual is on meta, must be on cpu"),
        (rms_norm_backward, (X[:2], None, X, W, R), r"rms_norm_backward: dy has shape \[2, 4\], must be \[3, 4\]"),
        (rms_norm_backward, (X, X[0], X, W, R), r"rms_norm_backward: dtotal has shape \[4\], must be \[3, 4\]"),
        (rms_norm_backward, (X, None, X, W, R[:2]), r"rms_norm_backward: scales has shape \[2\], must be \[3\]"),
        (rms_norm_backward, (X, None, X, W, R.double()), "rms_norm_backward: scales is torch.float64, must be"),
        (add_partials_, (W, X[:, :3]), r"add_partials_: partials has shape \[3, 3\], must be \[3, 4\]"),
        (add_partials_, (X, X), r"add_partials_: gradient has shape \[3, 4\], must be \[12\]"),
        (add_partials_, (W, X.double()), "add_partials_: partials is torch.float64, must be torch.float32"),
        (add_partials_, (W, torch.ones(129, 4)), "add_partials_: partials has 129 rows, must be at most 128"),
        (add_partials_, (torch.ones(8)[::2], X), "add_partials_: gradient has stride 2, must be contiguous"),
    ],
)
def test_wrong_arguments_raise_by_name(operation, arguments, message):
    with pytest.raises(ValueError, match="^" + message):
        operation(*arguments)
