"""The weightless and the normalizing operations of a block: RMSNorm, rotary positions, attention, SwiGLU.

Shapes: T positions, B sequences, H hidden, D head dimension, G key-value heads of this rank, R query heads a key-value
head.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from megatron_lite.parallel.context import ContextSplit, Documents, attend, exchange_heads, return_heads
from megatron_lite.parallel.zero import Weight


def rms_norm(x: Tensor, weight: Weight, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich 2019, arXiv 1910.07467, eq. 4).

    Statistics in float32 (float64 for float64).
    """
    return _RMSNorm.apply(x, weight, eps)


class _RMSNorm(Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        mean_square = torch.linalg.vector_norm(exact, dim=-1, keepdim=True).square_() / x.shape[-1]
        scale = mean_square.add_(eps).rsqrt_()
        ctx.save_for_backward(x, scale)
        ctx.weight = weight
        return (exact * scale).mul_(weight.data).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        x, scale = ctx.saved_tensors
        exact, gain = gradient.to(scale.dtype), ctx.weight.data.to(scale.dtype)
        product = exact * x
        ctx.weight.add_gradient(product.flatten(0, -2).t() @ scale.flatten())
        # d/dx: scale g w - x scale^3 mean(g w x); both sums over a dimension are matrix-vector products
        inner = (product @ gain).unsqueeze(-1) / x.shape[-1]
        result = (exact * gain).mul_(scale).addcmul_(x, inner.mul_(scale.pow(3)), value=-1)
        return result.to(x.dtype), None, None


@dataclass(frozen=True)
class Rotary:
    """A microbatch's angles as a key-value group's packed columns, R queries, a key, a value: [T, 1 or B, 1, R + 2, D].

    Head x turns into x cos + swap(x) sin, where swap exchanges the halves and sin carries their signs, (-, +): Hugging
    Face's half rotation (RoFormer, arXiv 2104.09864, equation 34). A value's angle is 0.
    """

    cos: Tensor
    sin: Tensor


def rotary(positions: Tensor, head_dim: int, queries: int, theta: float, dtype: torch.dtype) -> Rotary:
    """Of positions [T] or [T, B], for R = `queries`: angles position * theta^(-2i/D).

    Computed in float64, kept in float32 or wider.
    """
    half = torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions.device)
    angle = positions.to(torch.float64).unsqueeze(-1) * theta ** (-half / head_dim)
    angle = angle.view(positions.shape[0], -1, 1, 1, half.numel())
    angles = torch.cat([angle.expand(-1, -1, -1, queries + 1, -1), torch.zeros_like(angle)], dim=3)
    kept, sin = torch.promote_types(dtype, torch.float32), angles.sin()
    return Rotary(torch.cat([angles.cos()] * 2, -1).to(kept), torch.cat([-sin, sin], -1).to(kept))


def split_heads(qkv: Tensor, head_dim: int, queries: int, rope: Rotary) -> tuple[Tensor, Tensor, Tensor]:
    """Packed [T, B, G (R + 2) D] -> rotated queries [B, G R, T, D], rotated keys and values [B, G, T, D]."""
    q, k, v = _SplitHeads.apply(qkv, head_dim, queries, rope.cos, rope.sin)
    return tuple(heads.flatten(2, 3).permute(1, 2, 0, 3) for heads in (q, k, v))


class _SplitHeads(Function):
    @staticmethod
    def forward(ctx, qkv, head_dim, queries, cos, sin):
        ctx.save_for_backward(cos, sin)
        ctx.sizes, ctx.shape = [queries, 1, 1], qkv.shape
        turned = _turn(qkv.view(*qkv.shape[:2], -1, queries + 2, head_dim), cos, sin, 1)
        return tuple(heads.contiguous() for heads in turned.split(ctx.sizes, dim=3))

    @staticmethod
    def backward(ctx, *gradients):
        cos, sin = ctx.saved_tensors
        return _turn(torch.cat(gradients, dim=3), cos, sin, -1).view(ctx.shape), None, None, None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    """x [T, B, G, R + 2, D] turned by the angles, or back with direction -1; one rounding."""
    turned = x * cos
    for to, other, signed in zip(turned.chunk(2, -1), reversed(x.chunk(2, -1)), sin.chunk(2, -1), strict=True):
        to.addcmul_(other, signed, value=direction)
    return turned.to(x.dtype)


def join_heads(output: Tensor) -> Tensor:
    """[B, heads, T, D] -> [T, B, heads D]."""
    return output.permute(2, 0, 1, 3).flatten(2)


@dataclass(frozen=True)
class Sight:
    """What attention needs to know of a microbatch's positions: angles, their split over ranks, document numbers."""

    rope: Rotary
    split: ContextSplit
    documents: Documents | None = None


def causal_attention(qkv: Tensor, head_dim: int, queries: int, sight: Sight) -> Tensor:
    """Packed [T, B, G (R + 2) D] -> [T, B, G R D]: softmax(q k^T / sqrt(D)) v over a position and those before it."""
    split = sight.split
    if not split.swaps_heads:
        return join_heads(attend(*split_heads(qkv, head_dim, queries, sight.rope), split, sight.documents))
    groups = qkv.shape[-1] // (head_dim * (queries + 2))
    swapped = exchange_heads(qkv, head_dim, queries, split)
    heads = split_heads(swapped, head_dim, split.heads(queries, groups), sight.rope)
    return return_heads(join_heads(attend(*heads, split.whole, sight.documents)), split)


def swiglu(gate_up: Tensor) -> Tensor:
    """Packed [.., 2 F] -> [.., F]: silu(gate) * up (Shazeer 2020, arXiv 2002.05202, equation 6)."""
    return _SwiGLU.apply(gate_up)


class _SwiGLU(Function):
    @staticmethod
    def forward(ctx, gate_up):
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, gradient):
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        result = torch.empty_like(gate_up)
        to_gate, to_up = result.chunk(2, -1)
        torch.ops.aten.silu.out(gate, out=to_up).mul_(gradient)
        torch.mul(gradient, up, out=to_gate)
        torch.ops.aten.silu_backward.grad_input(to_gate, gate, grad_input=to_gate)
        return result
