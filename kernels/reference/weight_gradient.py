"""The gradient of a weight, added in place, in plain PyTorch; kernels/weight_gradient.py says what it computes."""

from torch import Tensor


def add_product_(gradient: Tensor, dy: Tensor, x: Tensor, beta: float = 1.0) -> None:
    gradient.addmm_(dy.t().to(gradient.dtype), x.to(gradient.dtype), beta=beta)
