"""SwiGLU beyond what every operation is held to: gradient, meta form, compilation, errors, extreme gates."""

import pytest
import torch
import torch.nn.functional as F
from megatron_lite.kernels.reference import swiglu as reference
from megatron_lite.kernels.swiglu import TILE, swiglu, swiglu_backward, tiling
from support.kernels.harness import fresh, random

BOTH = pytest.mark.parametrize(
    ("forward", "backward"),
    [(swiglu, swiglu_backward), (reference.swiglu, reference.swiglu_backward)],
    ids=["kernel", "reference"],
)


@BOTH
def test_both_directions_are_what_autograd_makes_of_the_definition(forward, backward):
    gate_up = random((3, 7, 22), torch.float64, fresh()).requires_grad_()
    gate, up = gate_up[..., :11], gate_up[..., 11:]
    expected = gate / (1 + (-gate).exp()) * up
    gradient = random((3, 7, 11), torch.float64, fresh(1))
    (expected_gradient,) = torch.autograd.grad(expected, gate_up, gradient)
    with torch.no_grad():
        torch.testing.assert_close(forward(gate_up), expected.detach(), rtol=0, atol=1e-13)
        torch.testing.assert_close(backward(gradient, gate_up), expected_gradient, rtol=0, atol=1e-13)


def test_gradcheck_holds_in_float64():
    assert torch.autograd.gradcheck(swiglu, random((3, 10), torch.float64, fresh()).requires_grad_())


def test_opcheck_finds_nothing():
    torch.library.opcheck(swiglu, (torch.randn(3, 10, requires_grad=True),))
    torch.library.opcheck(swiglu_backward, (torch.randn(3, 5), torch.randn(3, 10)))


def test_compiled_whole_it_gives_the_same_output_and_gradient():
    leaf = torch.randn(5, 12, requires_grad=True)
    compiled = torch.compile(swiglu, fullgraph=True, backend="aot_eager")(leaf)
    assert torch.equal(compiled, swiglu(leaf))
    (gradient,) = torch.autograd.grad(compiled.square().sum(), leaf)
    (expected,) = torch.autograd.grad(swiglu(leaf).square().sum(), leaf)
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_meta_forms_have_the_shapes_and_dtypes_of_real_ones(dtype):
    gate_up = torch.empty(3, 2, 10, dtype=dtype, device="meta")
    y = swiglu(gate_up)
    back = swiglu_backward(y, gate_up)
    assert (y.shape, y.dtype, y.is_contiguous()) == ((3, 2, 5), dtype, True)
    assert (back.shape, back.dtype, back.is_contiguous()) == ((3, 2, 10), dtype, True)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # numpy's word for what the sigmoid then turns to 0
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_large_gates_pass_or_shut_completely_with_gradients_to_match(dtype):
    gate = torch.tensor([-3e38, -1000, -100, 100, 1000, 1e30], dtype=dtype)
    gate_up = torch.cat([gate, torch.full_like(gate, 0.5)])
    assert torch.equal(swiglu(gate_up), gate.clamp(min=0) * 0.5)
    back = swiglu_backward(torch.ones_like(gate), gate_up)
    assert torch.equal(back, torch.cat([(gate > 0) * 0.5, gate.clamp(min=0)]).to(dtype))


def test_nan_in_one_column_stays_in_its_column():
    gate_up = torch.ones(2, 8)
    gate_up[1, 2] = float("nan")
    assert swiglu(gate_up).isnan().nonzero().tolist() == [[1, 2]]
    assert swiglu_backward(torch.ones(2, 4), gate_up).isnan().nonzero().tolist() == [[1, 2], [1, 6]]


def test_half_precision_is_rounded_once():
    gate_up = random((64, 64), torch.float16, fresh())
    gate, up = gate_up.float().chunk(2, -1)
    assert torch.equal(swiglu(gate_up), (F.silu(gate) * up).half())


@pytest.mark.parametrize("columns", [2752, 3200, 22016, 25600])
def test_feed_forward_widths_of_large_models_waste_no_lane(columns):
    programs, row_block, block = tiling(8192, columns)
    assert programs * TILE == programs * row_block * block == 8192 * columns


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (2, 0, 4)])
def test_nothing_in_nothing_out(shape):
    y = swiglu(torch.empty(shape))
    assert y.shape == (*shape[:-1], shape[-1] // 2)
    assert swiglu_backward(y, torch.empty(shape)).shape == shape


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(2, 8, dtype=torch.int32),), "swiglu: gate_up is torch.int32, must be torch.bfloat16 or"),
        ((torch.ones(2, 7),), r"swiglu: gate_up has shape \[2, 7\], must be \[.., 2 F\]"),
        ((torch.ones(2, 5), torch.ones(2, 8)), r"swiglu_backward: gradient has shape \[2, 5\], must be \[2, 4\]"),
        ((torch.ones(2, 4).double(), torch.ones(2, 8)), "swiglu_backward: gradient is torch.float64, must be torch.fl"),
    ],
)
def test_wrong_arguments_raise_by_name(arguments, message):
    operation = swiglu if len(arguments) == 1 else swiglu_backward
    with pytest.raises(ValueError, match=message):
        operation(*arguments)
