"""gradient += dy^T x in float32: what it adds, how often it rounds, and which of torch's products a GPU calls."""

import pytest
import torch
from megatron_lite.kernels import costs
from megatron_lite.kernels.reference import weight_gradient as reference
from megatron_lite.kernels.weight_gradient import add_on_gpu_, add_product_
from support.kernels.harness import error, fresh, random, size_of, strided, surrounded, untouched
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

SIZES = [(7, 5, 3), (1, 1, 1), (64, 48, 130), (16, 8, 0)]  # rows, columns, tokens
BOTH = pytest.mark.parametrize("add", [add_product_, reference.add_product_], ids=["operation", "reference"])


def operands(size, dtype, exact=None):
    rows, columns, tokens = size
    generator = fresh()
    gradient = random((rows, columns), exact or torch.promote_types(dtype, torch.float32), generator)
    return gradient, random((tokens, rows), dtype, generator), random((tokens, columns), dtype, generator)


@BOTH
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 1e-6)], ids=str
)
def test_it_adds_the_product_and_rounds_in_the_gradients_dtype(add, size, dtype, tolerance):
    """In bfloat16 the operands are exact and the sum has float32's precision: no product is rounded to bfloat16."""
    gradient, dy, x = operands(size, dtype)
    expected = gradient.double() + torch.einsum("nr,nc->rc", dy.double(), x.double())
    add(gradient, dy, x)
    assert error(gradient, expected)[0] <= tolerance * size_of(expected)


@BOTH
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_first_product_is_written_over_what_was_there_as_if_added_to_zeros(add, size, dtype):
    gradient, dy, x = operands(size, dtype)
    zeros, rubbish = torch.zeros_like(gradient), torch.full_like(gradient, torch.nan)
    add(zeros, dy, x)
    add(rubbish, dy, x, 0.0)
    assert torch.equal(zeros, rubbish)


@BOTH
def test_a_gradient_may_have_its_operands_dtype(add):
    gradient, dy, x = operands((6, 4, 5), torch.bfloat16, torch.bfloat16)
    expected = gradient.double() + dy.double().t() @ x.double()
    add(gradient, dy, x)
    assert gradient.dtype == torch.bfloat16
    assert error(gradient, expected)[0] <= 2**-8 * size_of(expected)


@BOTH
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_in_bfloat16_it_errs_at_most_twice_as_much_as_torchs_product_that_is_added(add, size):
    gradient, dy, x = operands(size, torch.bfloat16)
    expected = gradient.double() + dy.double().t() @ x.double()
    torchs = gradient + dy.t() @ x
    add(gradient, dy, x)
    for ours, theirs in zip(error(gradient, expected), error(torchs, expected), strict=True):
        assert ours <= 2 * theirs + 2**-22 * size_of(expected)


@BOTH
def test_large_products_that_cancel_leave_the_small_one(add):
    """In bfloat16 9984 + 1 is 9984."""
    dy = torch.tensor([[1e4], [1.0], [-1e4]], dtype=torch.bfloat16)
    gradient = torch.full((1, 2), 0.5)
    add(gradient, dy, torch.ones(3, 2, dtype=torch.bfloat16))
    assert gradient.tolist() == [[1.5, 1.5]]


class Product(torch.autograd.Function):
    """y = x W^T, whose weight gradient is ours."""

    @staticmethod
    def forward(ctx, weight, x, add):
        ctx.save_for_backward(x)
        ctx.shape, ctx.add = weight.shape, add
        return x @ weight.t()

    @staticmethod
    def backward(ctx, dy):
        (x,), gradient = ctx.saved_tensors, dy.new_zeros(ctx.shape)
        ctx.add(gradient, dy, x)
        return gradient, None, None


@BOTH
def test_gradcheck_holds_in_float64(add):
    weight, x = random((3, 2), torch.float64, fresh()).requires_grad_(), random((4, 2), torch.float64, fresh(1))
    assert torch.autograd.gradcheck(lambda leaf: Product.apply(leaf, x, add), weight)


@BOTH
def test_poison_around_every_operand_is_neither_read_nor_overwritten(add):
    given = operands((7, 5, 3), torch.bfloat16)
    inside, guards = surrounded(given)
    add(*inside)
    add(*given)
    assert torch.equal(inside[0], given[0])
    assert all(map(untouched, guards))


def test_operands_and_gradients_by_their_strides_give_the_same_sum():
    given = operands((64, 48, 130), torch.bfloat16)
    others = strided(given)
    add_product_(*given)
    add_product_(*others)
    assert not others[0].is_contiguous()
    torch.testing.assert_close(others[0], given[0], rtol=1e-6, atol=1e-5)


def test_torch_has_a_product_of_narrow_operands_with_a_float32_sum():
    """What a GPU is asked for, held by its schema: a build of torch for a CPU cannot run it."""
    schema = torch.ops.aten.addmm.dtype_out._schema
    assert [(a.name, str(a.type), a.kwarg_only) for a in schema.arguments] == [
        ("self", "Tensor", False),
        ("mat1", "Tensor", False),
        ("mat2", "Tensor", False),
        ("out_dtype", "int", False),
        ("beta", "number", True),
        ("alpha", "number", True),
        ("out", "Tensor", True),
    ]
    assert [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write] == ["out"]
    assert {a.name: a.default_value for a in schema.arguments if a.name in ("alpha", "beta")} == {"alpha": 1, "beta": 1}


class Calls(TorchDispatchMode):
    """Notes the calls of a product that a CPU lacks, and runs all others."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function != torch.ops.aten.addmm.dtype_out:
            return function(*args, **(kwargs or {}))
        self.seen.append((args, kwargs))
        return kwargs["out"]


def test_a_gpu_is_asked_for_that_product_with_the_gradient_as_its_sum_and_its_output():
    gradient, dy, x = operands((6, 4, 5), torch.bfloat16)
    with Calls() as calls:
        add_on_gpu_(gradient, dy, x)
    [(args, kwargs)] = calls.seen
    assert args[0] is gradient and kwargs["out"] is gradient and kwargs["beta"] == 1
    assert kwargs.keys() == {"out", "beta"}
    assert torch.equal(args[1], dy.t()) and torch.equal(args[2], x)
    assert args[3] == torch.float32


def test_the_operation_is_known_to_torch():
    assert [a.name for a in add_product_._schema.arguments if a.alias_info is not None] == ["gradient"]
    torch.library.opcheck(add_product_, operands((6, 4, 5), torch.bfloat16))
    meta = [tensor.to("meta") for tensor in operands((6, 4, 5), torch.bfloat16)]
    assert add_product_(*meta) is None


def test_its_flops_are_two_for_each_product_of_two_numbers_and_are_counted_once():
    with FlopCounterMode(display=False) as counter:
        add_product_(*operands((6, 4, 5), torch.bfloat16))
    assert counter.get_total_flops() == 2 * 6 * 4 * 5 == costs.add_product_(6, 4, 5, 2).flops


def test_it_moves_the_operands_once_and_the_sum_twice():
    cost = costs.add_product_(rows=6, columns=4, tokens=5, element=2)
    assert cost.moved == 2 * (6 * 4 * 4) + 2 * (5 * 6 + 5 * 4)


@pytest.mark.parametrize(
    ("shapes", "dtypes", "message"),
    [
        ([(24,), (5, 6), (5, 4)], "fff", r"add_product_: gradient has shape \[24\], must be \[rows, columns\]"),
        ([(6, 4), (5, 6), (5, 3)], "fff", r"add_product_: x has shape \[5, 3\], must be \[5, 4\]"),
        ([(6, 4), (5, 7), (5, 4)], "fff", r"add_product_: dy has shape \[5, 7\], must be \[5, 6\]"),
        ([(6, 4), (5, 6), (5, 4)], "fbf", "add_product_: dy is torch.bfloat16, must be torch.float32"),
        ([(6, 4), (5, 6), (5, 4)], "bff", "add_product_: gradient is torch.bfloat16, must be torch.float32"),
        ([(6, 4), (5, 6), (5, 4)], "dbb", "add_product_: gradient is torch.float64, must be torch.bfloat16 or"),
    ],
)
def test_what_it_refuses(shapes, dtypes, message):
    named = {"f": torch.float32, "b": torch.bfloat16, "d": torch.float64}
    tensors = [torch.zeros(shape, dtype=named[letter]) for shape, letter in zip(shapes, dtypes, strict=True)]
    with pytest.raises(ValueError, match=message):
        add_product_(*tensors)
