"""The embedding's backward beyond what every operation is held to: exact sums, order, other ranks' tokens, errors."""

import pytest
import torch
from megatron_lite.kernels.embedding import embedding_backward_
from megatron_lite.kernels.reference import embedding as reference
from support.kernels.harness import fresh, random

BOTH = pytest.mark.parametrize(
    "operation", [embedding_backward_, reference.embedding_backward_], ids=["kernel", "reference"]
)
V, H = 6, 5


@BOTH
def test_it_adds_what_autograd_gives_for_a_lookup(operation):
    tokens = torch.randint(V, (7, 4), generator=fresh())
    table = random((V, H), torch.float64, fresh(1)).requires_grad_()
    dy = random((7, 4, H), torch.float64, fresh(2))
    before = random((V, H), torch.float64, fresh(3))
    (expected,) = torch.autograd.grad(table[tokens], table, dy)
    gradient = before.clone()
    operation(gradient, tokens, dy)
    torch.testing.assert_close(gradient, before + expected, rtol=0, atol=1e-13)


class Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table, tokens, operation):
        ctx.tokens, ctx.rows, ctx.operation = tokens, table.shape[0], operation
        return table[tokens]

    @staticmethod
    def backward(ctx, dy):
        gradient = dy.new_zeros(ctx.rows, dy.shape[-1])
        ctx.operation(gradient, ctx.tokens, dy)
        return gradient, None, None


@BOTH
def test_gradcheck_holds_in_float64(operation):
    table = random((3, 2), torch.float64, fresh()).requires_grad_()
    tokens = torch.tensor([[2, 0], [2, 2]])
    assert torch.autograd.gradcheck(lambda leaf: Lookup.apply(leaf, tokens, operation), table)


@BOTH
def test_ranks_of_a_split_vocabulary_together_hold_the_whole_gradient(operation):
    tokens = torch.randint(V, (30,), generator=fresh())
    dy = random((30, H), torch.float32, fresh(1))
    whole = torch.zeros(V, H)
    operation(whole, tokens, dy)
    parts = torch.zeros(3, V // 3, H)
    for rank, part in enumerate(parts):
        operation(part, tokens - rank * (V // 3), dy)
    assert torch.equal(parts.flatten(0, 1), whole)


@BOTH
def test_tokens_outside_the_vocabulary_change_nothing_even_if_their_gradient_is_nan(operation):
    tokens = torch.tensor([-1, V, 2**62, -(2**62), 1])
    dy = torch.full((5, H), float("nan"))
    dy[-1] = 1
    gradient = torch.ones(V, H)
    operation(gradient, tokens, dy)
    expected = torch.ones(V, H)
    expected[1] = 2
    assert torch.equal(gradient, expected)


def test_a_row_adds_up_its_positions_in_order_before_it_joins_the_gradient():
    """In float32: 2^24 + 1 = 2^24, so that the order shows."""
    dy = torch.tensor([[1.0], [2.0**24], [1.0], [-(2.0**24)], [5.0], [1.0]])
    tokens = torch.tensor([2, 1, 1, 1, 0, 2])
    gradient = torch.full((3, 1), 0.5)
    embedding_backward_(gradient, tokens, dy)
    assert gradient.flatten().tolist() == [5.5, 0.5, 2.5]


def test_many_small_bfloat16_rows_are_summed_in_float32():
    """In bfloat16 a sum of ones stops at 256."""
    gradient = torch.zeros(1, 3)
    embedding_backward_(gradient, torch.zeros(1000, dtype=torch.int64), torch.ones(1000, 3, dtype=torch.bfloat16))
    assert (gradient == 1000).all()


@BOTH
@pytest.mark.parametrize("exact", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_float_dtype_adds_to_either_gradient(operation, exact, dtype):
    dy = random((4, H), dtype, fresh())
    gradient = torch.zeros(V, H, dtype=exact)
    operation(gradient, torch.tensor([3, 0, 5, 1]), dy)
    expected = torch.zeros(V, H, dtype=exact)
    expected[[3, 0, 5, 1]] = dy.to(exact)
    assert torch.equal(gradient, expected)


def test_only_the_view_of_a_wider_gradient_is_written():
    room = torch.zeros(2 * V, H + 4)
    view = room[::2, 2 : 2 + H]
    embedding_backward_(view, torch.arange(V), torch.ones(V, H))
    assert (view == 1).all()
    assert room.sum() == V * H


@pytest.mark.parametrize(("count", "columns"), [(0, H), (4, 0)])
def test_nothing_to_add_leaves_the_gradient(count, columns):
    gradient = torch.ones(V, columns)
    embedding_backward_(gradient, torch.zeros(count, dtype=torch.int64), torch.ones(count, columns))
    assert (gradient == 1).all()


def test_the_schema_tells_what_is_written_and_the_fake_form_writes_nothing():
    arguments = torch.zeros(V, H), torch.tensor([1, 1, 7]), torch.ones(3, H)
    torch.library.opcheck(embedding_backward_, arguments, test_utils=("test_schema", "test_faketensor"))
    assert embedding_backward_(*(x.to("meta") for x in arguments)) is None


GRADIENT, TOKENS, DY = torch.zeros(V, H), torch.zeros(3, dtype=torch.int64), torch.ones(3, H)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((GRADIENT.bfloat16(), TOKENS, DY), "gradient is torch.bfloat16, must be torch.float32 or torch.float64"),
        ((GRADIENT.t(), TOKENS, DY), r"gradient has shape \[5, 6\] and strides \[1, 5\], must be \[V, H\]"),
        ((GRADIENT[0], TOKENS, DY), r"gradient has shape \[5\] and strides \[1\], must be \[V, H\]"),
        ((GRADIENT, TOKENS.int(), DY), "tokens is torch.int32, must be torch.int64"),
        ((GRADIENT, TOKENS, DY[:2]), r"dy has shape \[2, 5\], must be \[3, 5\]"),
        ((GRADIENT, TOKENS, DY.int()), "dy is torch.int32, must be torch.bfloat16 or"),
    ],
)
def test_wrong_arguments_raise_by_name(arguments, message):
    with pytest.raises(ValueError, match="embedding_backward_: " + message):
        embedding_backward_(*arguments)
