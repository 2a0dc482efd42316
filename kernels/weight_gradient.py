"""The gradient of a weight, added in place: gradient += dy^T x, in float32 over operands of half the width.

A product with its own sum as the third operand saves what a product of its own would cost: a buffer of the weight's
size, written in bfloat16, read again and added. On a GPU this is one call of cuBLAS (rocBLAS), which torch offers as
`addmm` with an `out_dtype`; a CPU has no such product, and multiplies the operands in float32.
"""

import torch
from megatron_lite.kernels.checks import FLOATS, check
from megatron_lite.kernels.registration import operation


def add_on_gpu_(gradient: torch.Tensor, dy: torch.Tensor, x: torch.Tensor, beta: float = 1.0) -> None:
    """A product of narrow operands that is added to a float32 sum as it is made."""
    torch.addmm(gradient, dy.t(), x, beta=beta, out_dtype=torch.float32, out=gradient)


def _flops(gradient, dy, x, beta=1.0, **_) -> int:
    return 2 * dy[0] * dy[1] * x[1]


def _fake(gradient, dy, x, beta=1.0) -> None:
    """What is written is there already."""


@operation("add_product_(Tensor(a!) gradient, Tensor dy, Tensor x, float beta=1.0) -> ()", _fake, flops=_flops)
def add_product_(gradient, dy, x, beta=1.0):
    """gradient [rows, columns] = beta gradient + dy [N, rows]^T x [N, columns], rounded once.

    With beta 0 what the gradient held is not read, whatever it is: the first product of a step needs no zeros. The
    gradient is in float32, or in the operands' own dtype. Raises ValueError for other dtypes and shapes.
    """
    name = "add_product_"
    if gradient.dim() != 2:
        raise ValueError(f"{name}: gradient has shape {list(gradient.shape)}, must be [rows, columns]")
    check(name, "x", x, gradient, (*x.shape[:1], gradient.shape[1]), FLOATS)
    check(name, "dy", dy, gradient, (*x.shape[:1], gradient.shape[0]), x.dtype)
    check(name, "gradient", gradient, gradient, dtype=(x.dtype, torch.promote_types(x.dtype, torch.float32)))
    if gradient.dtype == x.dtype:
        gradient.addmm_(dy.t(), x, beta=beta)
    elif gradient.device.type == "cuda":
        add_on_gpu_(gradient, dy, x, beta)
    else:
        gradient.addmm_(dy.t().to(gradient.dtype), x.to(gradient.dtype), beta=beta)
