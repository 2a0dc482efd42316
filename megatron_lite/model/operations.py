"""The operations of a block as autograd sees them: norms, rotary positions, attention, SwiGLU.

What they compute stands in kernels/; here is what each keeps for its backward, and where gradients go.

Shapes: T positions, B sequences, H hidden, D head dimension, G key-value heads of this rank, R query heads a key-value
head. The packed projection [T, B, G (R + 2) D] holds for each key-value head its R query heads, itself, and its value.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from megatron_lite.config import ModelConfig
from megatron_lite.kernels.choice import Kernels
from megatron_lite.model.rope import tables_of
from megatron_lite.parallel.context import Attention, ContextSplit, Documents, attend, exchange_heads, return_heads
from megatron_lite.parallel.weights import Weight


def norm_and_residual(x: Tensor, weight: Weight, eps: float) -> tuple[Tensor, Tensor]:
    """(RMSNorm of x, x): what goes on beside the norm, so that both gradients are added in the norm's own backward."""
    return _Norm.apply(x, weight, eps)


class _Norm(Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        y, scales = weight.kernels.rms_norm(x, weight.data, eps)
        ctx.save_for_backward(x, scales)
        ctx.weight = weight
        ctx.set_materialize_grads(False)
        return y, x.view_as(x)

    @staticmethod
    def backward(ctx, gradient, residual_gradient):
        return _norm_backward(ctx, gradient, residual_gradient), None, None


def add_norm(x: Tensor, residual: Tensor, weight: Weight, eps: float) -> tuple[Tensor, Tensor]:
    """(RMSNorm of x + residual, x + residual)."""
    return _AddNorm.apply(x, residual, weight, eps)


class _AddNorm(Function):
    @staticmethod
    def forward(ctx, x, residual, weight, eps):
        y, total, scales = weight.kernels.add_rms_norm(x, residual, weight.data, eps)
        ctx.save_for_backward(total, scales)
        ctx.weight = weight
        ctx.set_materialize_grads(False)
        return y, total

    @staticmethod
    def backward(ctx, gradient, total_gradient):
        both = _norm_backward(ctx, gradient, total_gradient)
        return both, both, None, None


def _norm_backward(ctx: Any, gradient: Tensor, beside: Tensor | None) -> Tensor:
    seen, scales = ctx.saved_tensors
    weight = ctx.weight
    result, partials = weight.kernels.rms_norm_backward(gradient, beside, seen, weight.data, scales)
    if weight.trained:
        weight.add_partials(partials)
    return result


def head_norm(qkv: Tensor, weights: tuple[Weight, Weight], queries: int, head_dim: int, eps: float) -> Tensor:
    """RMSNorm of each query and each key head of a packed projection, in place (as in Qwen3; Henry et al. 2020, arXiv
    2010.04245, section 2, has the idea). weights: of queries and of keys, [D] each.
    """
    return _HeadNorm.apply(qkv, weights, queries, head_dim, eps)


class _HeadNorm(Function):
    @staticmethod
    def forward(ctx, qkv, weights, queries, head_dim, eps):
        saved = []
        for weight, heads in zip(weights, _query_and_key_heads(qkv, queries, head_dim), strict=True):
            seen = heads.clone(memory_format=torch.contiguous_format)
            y, scales = weight.kernels.rms_norm(seen, weight.data, eps)
            heads.copy_(y)
            saved += [seen, scales]
        ctx.save_for_backward(*saved)
        ctx.arguments = weights, queries, head_dim
        ctx.mark_dirty(qkv)
        return qkv

    @staticmethod
    def backward(ctx, gradient):
        weights, queries, head_dim = ctx.arguments
        saved = zip(ctx.saved_tensors[::2], ctx.saved_tensors[1::2], strict=True)
        places = _query_and_key_heads(gradient, queries, head_dim)
        for weight, (seen, scales), heads in zip(weights, saved, places, strict=True):
            result, partials = weight.kernels.rms_norm_backward(heads.contiguous(), None, seen, weight.data, scales)
            if weight.trained:
                weight.add_partials(partials)
            heads.copy_(result)
        return gradient, None, None, None, None


def _query_and_key_heads(qkv: Tensor, queries: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """[T, B, G, R, D] and [T, B, G, 1, D], views."""
    heads = unpack(qkv, head_dim, queries)
    return heads[..., :queries, :], heads[..., queries : queries + 1, :]


@dataclass(frozen=True)
class Angles:
    """Rotary angles: tables cos and sin [P, D/2] of positions 0 to P - 1; each token's position int32 [T, 1 or B]."""

    cos: Tensor
    sin: Tensor
    positions: Tensor


def angles_of(positions: Tensor, length: int, model: ModelConfig, dtype: torch.dtype) -> Angles:
    """Of positions [T, 1 or B] below `length`; in float32 or wider."""
    cos, sin = tables_of(model, length, dtype, positions.device)
    return Angles(cos, sin, positions.to(torch.int32))


def rotate(qkv: Tensor, angles: Angles, queries: int, head_dim: int, kernels: Kernels) -> Tensor:
    """Turn the queries and keys of a packed projection by their positions, in place."""
    return _Rotate.apply(qkv, angles, queries, head_dim, kernels)


class _Rotate(Function):
    @staticmethod
    def forward(ctx, qkv, angles, queries, head_dim, kernels):
        ctx.arguments = angles, queries, head_dim, kernels
        ctx.mark_dirty(qkv)
        _turn(qkv, ctx.arguments, back=False)
        return qkv

    @staticmethod
    def backward(ctx, gradient):
        # Attention made it for this alone.
        _turn(gradient, ctx.arguments, back=True)
        return gradient, None, None, None, None


def _turn(qkv: Tensor, arguments: tuple[Angles, int, int, Kernels], back: bool) -> None:
    angles, queries, head_dim, kernels = arguments
    positions = angles.positions.expand(qkv.shape[:2])
    kernels.rope_(qkv, angles.cos, angles.sin, positions, queries, head_dim, back)


@dataclass(frozen=True)
class AttentionMetadata:
    """What attention needs to know of a microbatch's positions: angles, their split over ranks, their documents."""

    angles: Angles
    split: ContextSplit
    documents: Documents | None = None


def join_heads(output: Tensor) -> Tensor:
    """[B, heads, T, D] -> [T, B, heads D]."""
    return output.permute(2, 0, 1, 3).flatten(2)


def causal_attention(qkv: Tensor, head_dim: int, queries: int, metadata: AttentionMetadata, kernels: Kernels) -> Tensor:
    """Packed and rotated [T, B, G (R + 2) D] -> [T, B, G R D]: softmax(q k^T / sqrt(D)) v over what a position sees."""
    split = metadata.split
    how = Attention(split.attending, metadata.documents, kernels)
    if not split.swaps_heads:
        return join_heads(attend(unpack(qkv, head_dim, queries), how))
    groups = qkv.shape[-1] // (head_dim * (queries + 2))
    swapped = exchange_heads(qkv, head_dim, queries, split)
    packed = unpack(swapped, head_dim, split.heads(queries, groups))
    return return_heads(join_heads(attend(packed, how)), split)


def unpack(qkv: Tensor, head_dim: int, queries: int) -> Tensor:
    """[T, B, G (R + 2) D] -> [T, B, G, R + 2, D]."""
    return qkv.view(*qkv.shape[:2], -1, queries + 2, head_dim)


def swiglu(gate_up: Tensor, kernels: Kernels) -> Tensor:
    """Packed [.., 2 F] -> [.., F]: silu(gate) * up (Shazeer 2020, arXiv 2002.05202, equation 6)."""
    return _SwiGLU.apply(gate_up, kernels)


class _SwiGLU(Function):
    @staticmethod
    def forward(ctx, gate_up, kernels):
        ctx.save_for_backward(gate_up)
        ctx.kernels = kernels
        return kernels.swiglu(gate_up)

    @staticmethod
    def backward(ctx, gradient):
        (gate_up,) = ctx.saved_tensors
        return ctx.kernels.swiglu_backward(gradient, gate_up), None
