"""RMSNorm in plain PyTorch; kernels/rms_norm.py says what it computes."""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    exact = _exact(x)
    mean_square = torch.linalg.vector_norm(exact, dim=-1).square_() / x.shape[-1]
    scale = mean_square.add_(eps).rsqrt_()
    return (exact * scale.unsqueeze(-1)).mul_(weight).to(x.dtype), scale


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    total = x + residual
    y, scale = rms_norm(total, weight, eps)
    return y, total, scale


def rms_norm_backward(
    dy: Tensor, dtotal: Tensor | None, x: Tensor, weight: Tensor, scales: Tensor
) -> tuple[Tensor, Tensor]:
    """As the kernel's, the weight's gradient as one part [1, H]."""
    exact, gain = dy.to(scales.dtype), weight.to(scales.dtype)
    product = exact * x
    partials = (product.flatten(0, -2).t() @ scales.flatten()).unsqueeze(0)
    # Both sums over a dimension are matrix-vector products.
    inner = (product @ gain / x.shape[-1]).mul_(scales.pow(3)).unsqueeze(-1)
    dx = (exact * gain).mul_(scales.unsqueeze(-1)).addcmul_(x, inner, value=-1)
    if dtotal is not None:
        dx += dtotal
    return dx.to(x.dtype), partials


def add_partials_(gradient: Tensor, partials: Tensor) -> None:
    gradient.add_(partials.sum(0))


def _exact(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
