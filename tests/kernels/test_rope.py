"""Rotary positions beyond what every operation is held to: the formula, what is left alone, positions of any kind."""

import cmath

import pytest
import torch
from megatron_lite.kernels.reference import rope as reference
from megatron_lite.kernels.reference.rope import rope_tables
from megatron_lite.kernels.rope import rope_
from support.interpreter import watch_traffic
from support.kernels.harness import fresh, random

BOTH = pytest.mark.parametrize("operation", [rope_, reference.rope_], ids=["kernel", "reference"])
T, B, G, R, D = 5, 2, 2, 3, 8
THETA = 50.0


def inputs(dtype=torch.float64, length=20):
    qkv = random((T, B, G * (R + 2) * D), dtype, fresh())
    positions = torch.randint(length, (T, B), generator=fresh(1), dtype=torch.int32)
    return qkv, *rope_tables(length, D, THETA, dtype, "cpu"), positions


def by_complex_numbers(qkv, positions, way=1):
    """Equation 34 as it is meant: pair i of a head is one complex number, times e^(i position theta^(-2i/D))."""
    expected = qkv.clone().view(T, B, G, R + 2, D)
    for t in range(T):
        for b in range(B):
            for i in range(D // 2):
                turn = cmath.exp(1j * way * int(positions[t, b]) * THETA ** (-2 * i / D))
                heads = expected[t, b, :, : R + 1]
                turned = torch.complex(heads[..., i], heads[..., i + D // 2]) * turn
                heads[..., i], heads[..., i + D // 2] = turned.real, turned.imag
    return expected.view(qkv.shape)


@BOTH
@pytest.mark.parametrize("back", [False, True])
def test_queries_and_keys_turn_as_complex_numbers_and_values_stay(operation, back):
    qkv, cos, sin, positions = inputs()
    expected = by_complex_numbers(qkv, positions, -1 if back else 1)
    operation(qkv, cos, sin, positions, R, D, back)
    torch.testing.assert_close(qkv, expected, rtol=0, atol=1e-13)


@BOTH
def test_back_is_the_gradient_of_forth(operation):
    """<turn(x), y> = <x, turn back(y)> for every x and y."""
    x, cos, sin, positions = inputs()
    y = random(x.shape, torch.float64, fresh(2))
    turned, back = x.clone(), y.clone()
    operation(turned, cos, sin, positions, R, D, False)
    operation(back, cos, sin, positions, R, D, True)
    torch.testing.assert_close((turned * y).sum(), (x * back).sum(), rtol=1e-13, atol=0)


class Turn(torch.autograd.Function):
    """Forth on a copy; its gradient is turned back in place."""

    @staticmethod
    def forward(ctx, qkv, operation, *angles):
        ctx.turn = lambda x, back: operation(x, *angles, 2, 4, back)
        turned = qkv.clone()
        ctx.turn(turned, False)
        return turned

    @staticmethod
    def backward(ctx, gradient):
        turned = gradient.clone()
        ctx.turn(turned, True)
        return turned, None, None, None, None


@BOTH
def test_gradcheck_holds_in_float64_and_values_pass_their_gradient_on(operation):
    angles = *rope_tables(5, 4, THETA, torch.float64, "cpu"), torch.tensor([[3, 0], [1, 4]], dtype=torch.int32)
    leaf = random((2, 2, 4 * 4), torch.float64, fresh()).requires_grad_()
    assert torch.autograd.gradcheck(lambda qkv: Turn.apply(qkv, operation, *angles), leaf, fast_mode=True)


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_is_huge_or_no_number_stays_in_its_pair(operation, dtype):
    """Half of the largest number has room to turn; NaN reaches both halves of its pair in one head and no more."""
    qkv, cos, sin, positions = inputs(dtype)
    plain = qkv.clone()
    operation(plain, cos, sin, positions, R, D, False)
    qkv[0, 0, 1], qkv[1, 1, 2] = torch.finfo(dtype).max / 2, float("nan")
    operation(qkv, cos, sin, positions, R, D, False)
    changed = (qkv != plain).nonzero().tolist()
    assert changed == [[0, 0, 1], [0, 0, 1 + D // 2], [1, 1, 2], [1, 1, 2 + D // 2]]
    assert qkv[0].isfinite().all() and qkv.isnan().sum() == 2


@BOTH
def test_scores_depend_on_the_distance_of_positions_alone(operation):
    qkv, cos, sin, _ = inputs(length=40)
    scores = []
    for offset in (0, 17):
        moved = qkv.clone()
        positions = torch.arange(T, dtype=torch.int32).unsqueeze(1).expand(T, B) + offset
        operation(moved, cos, sin, positions, R, D, False)
        heads = moved.view(T, B, G, R + 2, D)
        scores.append(torch.einsum("tbgrd,sbgd->bgrts", heads[..., :R, :], heads[..., R, :]))
    torch.testing.assert_close(*scores, rtol=0, atol=1e-12)


@BOTH
@pytest.mark.parametrize("turned_over", [False, True])
def test_positions_and_rows_of_any_stride_are_the_same_as_dense_ones(operation, turned_over):
    qkv, cos, sin, positions = inputs()
    positions = positions[:, :1].expand(T, B)
    expected = by_complex_numbers(qkv, positions)
    room = torch.full((B, 2 * T, 3 + qkv.shape[-1]), 7.0, dtype=torch.float64)
    view = room[:, ::2, 3:].transpose(0, 1)
    view.copy_(qkv)
    if turned_over:
        operation(view.transpose(0, 1), cos, sin, positions.t(), R, D, False)
    else:
        operation(view, cos, sin, positions, R, D, False)
    torch.testing.assert_close(view, expected, rtol=0, atol=1e-13)
    assert (room[:, 1::2] == 7).all()
    assert (room[..., :3] == 7).all()


def test_values_are_neither_read_nor_written():
    qkv, cos, sin, positions = inputs(torch.float32)
    with watch_traffic() as traffic:
        rope_(qkv, cos, sin, positions, R, D, False)
    touched = traffic.arguments["turn_kernel.qkv"]
    assert touched.loaded == touched.stored == T * B * G * (R + 1) * D * 4


def test_bfloat16_is_rounded_once():
    qkv, cos, sin, positions = inputs(torch.bfloat16)
    expected = qkv.float()
    rope_(expected, cos, sin, positions, R, D, False)
    rope_(qkv, cos, sin, positions, R, D, False)
    assert torch.equal(qkv, expected.bfloat16())


def test_tables_keep_float64_angles_of_far_positions():
    """At position 2^20 float32 angles would be off by up to 0.06."""
    length, theta = 2**20 + 1, 10000.0
    cos, sin = rope_tables(length, 4, theta, torch.bfloat16, "cpu")
    assert (cos.shape, cos.dtype, sin.dtype) == ((length, 2), torch.float32, torch.float32)
    for i in range(2):
        exact = cmath.exp(1j * 2**20 * theta ** (-2 * i / 4))
        assert abs(complex(cos[-1, i], sin[-1, i]) - exact) < 1e-7
    assert rope_tables(3, 4, theta, torch.float64, "cpu")[0].dtype == torch.float64


def test_the_schema_tells_what_is_written_and_the_fake_form_writes_nothing():
    qkv, cos, sin, positions = inputs(torch.float32)
    torch.library.opcheck(rope_, (qkv, cos, sin, positions, R, D, False), test_utils=("test_schema", "test_faketensor"))
    assert rope_(*(x.to("meta") for x in (qkv, cos, sin, positions)), R, D, False) is None


@pytest.mark.parametrize("shape", [(0, 2), (3, 0)])
def test_no_positions_no_work(shape):
    _, cos, sin, _ = inputs(torch.float32)
    rope_(torch.empty(*shape, (R + 2) * D), cos, sin, torch.empty(shape, dtype=torch.int32), R, D, False)


def changed(**changes):
    qkv, cos, sin, positions = inputs(torch.float32)
    arguments = {"qkv": qkv, "cos": cos, "sin": sin, "positions": positions, "queries": R, "head_dim": D}
    return {**arguments, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qkv": torch.ones(T, B, 81)}, r"qkv has shape \[5, 2, 81\], must be \[T, B, G \(R \+ 2\) D\], .* = 40"),
        ({"qkv": torch.ones(T, 80)}, r"qkv has shape \[5, 80\], must be"),
        ({"qkv": torch.ones(T, 80, B).transpose(1, 2)}, "qkv's last dimension has stride 2, must be 1"),
        ({"qkv": torch.ones(T, B, 80).int()}, "qkv is torch.int32, must be torch.bfloat16 or"),
        ({"head_dim": 5}, "head_dim is 5, must be even"),
        ({"queries": 0}, "queries is 0, must be positive"),
        ({"positions": torch.ones(T, B, dtype=torch.int64)}, "positions is torch.int64, must be torch.int32"),
        ({"positions": torch.ones(T, 1, dtype=torch.int32)}, r"positions has shape \[5, 1\], must be \[5, 2\]"),
        ({"cos": torch.ones(20, 8)}, r"cos has shape \[20, 8\], must be \[20, 4\]"),
        ({"cos": torch.ones(20, 4).bfloat16()}, "cos is torch.bfloat16, must be torch.float32"),
        ({"sin": torch.ones(19, 4)}, r"sin has shape \[19, 4\], must be \[20, 4\]"),
    ],
)
def test_wrong_arguments_raise_by_name(changes, message):
    with pytest.raises(ValueError, match="rope_: " + message):
        rope_(**changed(**changes), back=False)
