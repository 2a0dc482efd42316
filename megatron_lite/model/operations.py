"""The weightless and the normalizing operations of a block: RMSNorm, rotary positions, attention, SwiGLU.

Shapes: T positions, B sequences, H hidden, D head dimension, G key-value heads of this rank, R query heads a key-value
head.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from megatron_lite.parallel.zero import Weight


def rms_norm(x: Tensor, weight: Weight, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich 2019, arXiv 1910.07467, equation
    4).

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
    """Cosines and sines of the positions of one microbatch, each [T, 1, 1, 1, D/2] (RoFormer, arXiv 2104.09864,
    equation 34)."""

    cos: Tensor
    sin: Tensor


def rotary(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> Rotary:
    """Angles position * theta^(-2i/D), computed in float64, kept in float32 or wider."""
    frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions.device) / head_dim)
    angle = torch.outer(positions.to(torch.float64), frequency)[:, None, None, None]
    kept = torch.promote_types(dtype, torch.float32)
    return Rotary(angle.cos().to(kept), angle.sin().to(kept))


def split_heads(qkv: Tensor, head_dim: int, queries: int, rope: Rotary) -> tuple[Tensor, Tensor, Tensor]:
    """Packed [T, B, G (R + 2) D] -> rotated queries [B, G R, T, D], rotated keys and values [B, G, T, D].

    The pairs (i, i + D/2) of a head turn together: Hugging Face's half rotation.
    """
    q, k, v = _SplitHeads.apply(qkv, head_dim, queries, rope.cos, rope.sin)
    return tuple(heads.flatten(2, 3).permute(1, 2, 0, 3) for heads in (q, k, v))


class _SplitHeads(Function):
    @staticmethod
    def forward(ctx, qkv, head_dim, queries, cos, sin):
        ctx.save_for_backward(cos, sin)
        ctx.queries, ctx.shape = queries, qkv.shape
        packed = qkv.view(*qkv.shape[:2], -1, queries + 2, head_dim)
        q, k, v = packed.split([queries, 1, 1], dim=3)
        return _rotate(q, cos, sin, torch.empty_like(q)), _rotate(k, cos, sin, torch.empty_like(k)), v.contiguous()

    @staticmethod
    def backward(ctx, q_gradient, k_gradient, v_gradient):
        cos, sin = ctx.saved_tensors
        packed = v_gradient.new_empty(*v_gradient.shape[:3], ctx.queries + 2, v_gradient.shape[-1])
        to_q, to_k, to_v = packed.split([ctx.queries, 1, 1], dim=3)
        _rotate(q_gradient, cos, -sin, to_q)
        _rotate(k_gradient, cos, -sin, to_k)
        to_v.copy_(v_gradient)
        return packed.view(ctx.shape), None, None, None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> Tensor:
    """Write x [T, B, G, heads, D], turned by the angles, into `out`; one rounding."""
    a, b = x.chunk(2, -1)
    to_a, to_b = out.chunk(2, -1)
    torch.sub(a * cos, b * sin, out=to_a)
    torch.add(b * cos, a * sin, out=to_b)
    return out


def join_heads(output: Tensor) -> Tensor:
    """[B, heads, T, D] -> [T, B, heads D]."""
    return output.permute(2, 0, 1, 3).flatten(2)


def causal_attention(qkv: Tensor, head_dim: int, queries: int, rope: Rotary) -> Tensor:
    """Packed [T, B, G (R + 2) D] -> [T, B, G R D]: softmax(q k^T / sqrt(D)) v, each position seeing itself and what
    came before."""
    q, k, v = split_heads(qkv, head_dim, queries, rope)
    return join_heads(F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True))


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
        torch.mul(F.silu(gate), gradient, out=to_up)
        to_gate.copy_(torch.ops.aten.silu_backward(gradient * up, gate))
        return result
