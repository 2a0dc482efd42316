"""The package flash-attn as our attention: version 2 on any GPU it knows, version 3 (beta) where it is on Hopper.

This has not run anywhere: no machine that this code saw had the package. Tests hold every call against the signatures
in the package's own source and every layout against a stand-in; numbers, speed and memory are unproved.

Whole blocks and causal squares go to the dense functions. Packed documents go to those that take lengths, which have to
be read back to the host once for each microbatch. Key ranges of any other shape, as a ring over packed documents has,
are refused. The backward is asked for its deterministic form: without it, it adds in whatever order its blocks finish.
Version 3 before September 2025 takes that request and drops it (flash-attention, issue 1596 and pull request 1893).

On meta tensors, as in a step on paper, the functions give sizes and call nothing.
"""

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

import torch
from megatron_lite.kernels.checks import check
from megatron_lite.kernels.visibility import Lengths, Visible
from torch import Tensor

# What tells the packages: a module of Python and a compiled one.
SECOND = ("flash_attn", "flash_attn_2_cuda")
THIRD = ("flash_attn_interface", "flash_attn_3")
NARROW = (torch.bfloat16, torch.float16)
WIDEST = 256  # elements of a head


def installed(modules: tuple[str, ...] = SECOND) -> bool:
    """Whether the modules can be found. Imports nothing."""
    return all(find_spec(module) is not None for module in modules)


def fits(head_dim: int) -> bool:
    """Whether the package has kernels for heads of so many elements."""
    return head_dim % 8 == 0 and head_dim <= WIDEST


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, visible: Visible | None) -> tuple[Tensor, Tensor]:
    """(output [B, H, T, D], log-sum-exp [B, H, T] in float32) of q [B, H, T, D] (or by group, [B, G, R, T, D]), k and v
    [B, G, S, D], as kernels/reference/attention.py.

    Raises ValueError for dtypes but bfloat16 and float16, head dimensions above 256 or no multiples of 8, and for key
    ranges that are not those of whole documents.
    """
    q = _in_one(q)
    _check("attention", q, k, v)
    if q.is_meta:
        return _empty(q), q.new_empty(q.shape[:-1], dtype=torch.float32)
    lengths = None if visible is None else lengths_of(visible)
    their_q, their_k, their_v = (_to_theirs(x, lengths) for x in (q, k, v))
    forward = _third_forward if _on_hopper(q) else _second_forward
    output, log_sum = forward(their_q, their_k, their_v, q.shape[-1] ** -0.5, causal or lengths is not None, lengths)
    return _to_ours(output, q), log_sum if lengths is None else _by_sequence(log_sum, q)


def attention_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor, log_sum: Tensor, causal: bool,
    visible: Visible | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v in their dtypes; `output`, `log_sum` are those over all keys, of which k may be a part."""
    results = _empty(q), _empty(k), _empty(v)
    attention_backward_(gradient, q, k, v, output, log_sum, causal, visible, *results)
    return results


def attention_backward_(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor, log_sum: Tensor, causal: bool,
    visible: Visible | None, dq: Tensor, dk: Tensor, dv: Tensor,
) -> None:  # fmt: skip
    """The same, written into dq, dk and dv, which may be views of a packed buffer.

    The package asks of them a contiguous last dimension alone. Heads, and documents' sequences, that do not follow each
    other at one stride, as the queries of several groups in a packed buffer, go there by a copy.
    """
    name = "attention_backward_"
    _check(name, _in_one(q), k, v)
    for label, into, like in (("dq", dq, q), ("dk", dk, k), ("dv", dv, v)):
        check(name, label, into, q, like.shape, q.dtype)
    if q.is_meta:
        return
    lengths = None if visible is None else lengths_of(visible)
    given = (gradient.to(q.dtype), _in_one(q), k, v, output.to(q.dtype))
    log_sum = log_sum.contiguous() if lengths is None else log_sum.transpose(0, 1).flatten(1).contiguous()
    places = [into if _evenly(into, lengths) else _empty(into) for into in (dq, dk, dv)]
    results = [_to_theirs(_in_one(place), lengths) for place in places]
    backward = _third_backward if _on_hopper(q) else _second_backward
    tensors = [*(_to_theirs(x, lengths) for x in given), log_sum, *results]
    backward(tensors, q.shape[-1] ** -0.5, causal or lengths is not None, lengths)
    for into, place in zip((dq, dk, dv), places, strict=True):
        if place is not into:
            into.copy_(place)


def lengths_of(visible: Visible) -> Lengths:
    """Where documents begin and end, if each query sees its own document up to itself; raises ValueError if not."""
    if visible.lengths is None:
        raise ValueError(
            "flash-attn attends within whole packed documents alone, and these key ranges are others, as those of a "
            "ring over packed documents: set kernels.attention to triton or sdpa"
        )
    return visible.lengths


def _second_forward(
    q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, lengths: Lengths | None
) -> tuple[Tensor, Tensor]:
    interface = import_module("flash_attn.flash_attn_interface")
    if lengths is None:
        return interface._flash_attn_forward(
            q, k, v, dropout_p=0.0, softmax_scale=scale, causal=causal, window_size_left=-1, window_size_right=-1,
            softcap=0.0, alibi_slopes=None, return_softmax=False,
        )[:2]  # fmt: skip
    return interface._flash_attn_varlen_forward(
        q, k, v, cu_seqlens_q=lengths.bounds, cu_seqlens_k=lengths.bounds, max_seqlen_q=lengths.longest,
        max_seqlen_k=lengths.longest, dropout_p=0.0, softmax_scale=scale, causal=causal,
    )[:2]  # fmt: skip


def _second_backward(tensors: Sequence[Tensor], scale: float, causal: bool, lengths: Lengths | None) -> None:
    """Of (dout, q, k, v, out, log_sum, dq, dk, dv)."""
    interface = import_module("flash_attn.flash_attn_interface")
    options = {
        "dropout_p": 0.0, "softmax_scale": scale, "causal": causal, "window_size_left": -1, "window_size_right": -1,
        "softcap": 0.0, "alibi_slopes": None, "deterministic": True,
    }  # fmt: skip
    if lengths is None:
        interface._flash_attn_backward(*tensors, **options)
    else:
        interface._flash_attn_varlen_backward(
            *tensors, cu_seqlens_q=lengths.bounds, cu_seqlens_k=lengths.bounds,
            max_seqlen_q=lengths.longest, max_seqlen_k=lengths.longest, **options,
        )  # fmt: skip


def _third_lengths(lengths: Lengths | None) -> tuple[tuple, tuple]:
    """Bounds of queries and keys, and longest of both."""
    return ((None,) * 2, (None,) * 2) if lengths is None else ((lengths.bounds,) * 2, (lengths.longest,) * 2)


def _third_forward(
    q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, lengths: Lengths | None
) -> tuple[Tensor, Tensor]:
    """By position: between its betas version 3 renamed parameters, and kept their order."""
    bounds, longest = _third_lengths(lengths)
    return import_module("flash_attn_interface")._flash_attn_forward(
        q, k, v,
        None, None, None, None,  # k_new, v_new, qv, out
        *bounds, None,  # cu_seqlens_q, cu_seqlens_k, cu_seqlens_k_new
        None, None,  # seqused_q, seqused_k
        *longest,  # max_seqlen_q, max_seqlen_k
        None, None, None,  # page_table, kv_batch_idx, leftpad_k
        None, None, None,  # rotary_cos, rotary_sin, seqlens_rotary
        None, None, None,  # q_descale, k_descale, v_descale
        scale, causal,
    )[:2]  # fmt: skip


def _third_backward(tensors: Sequence[Tensor], scale: float, causal: bool, lengths: Lengths | None) -> None:
    """Of the same."""
    *inputs, dq, dk, dv = tensors
    bounds, longest = _third_lengths(lengths)
    import_module("flash_attn_interface")._flash_attn_backward(
        *inputs,
        *bounds, None, None,  # cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k
        *longest,  # max_seqlen_q, max_seqlen_k
        dq, dk, dv, scale, causal, deterministic=True,
    )  # fmt: skip


def _on_hopper(q: Tensor) -> bool:
    return q.is_cuda and torch.cuda.get_device_capability(q.device)[0] == 9 and installed(THIRD)


def _check(name: str, q: Tensor, k: Tensor, v: Tensor) -> None:
    check(name, "q", q, q, dtype=NARROW)
    check(name, "k", k, q, (q.shape[0], k.shape[1], k.shape[2], q.shape[3]), q.dtype)
    check(name, "v", v, q, k.shape, q.dtype)
    if not fits(q.shape[-1]):
        raise ValueError(
            f"{name}: head dimension is {q.shape[-1]}, must be a multiple of 8 up to {WIDEST} for flash-attn"
        )


def _in_one(q: Tensor) -> Tensor:
    """Queries by group [B, G, R, T, D] as [B, H, T, D], in memory [T, B, H, D], as their output is wanted."""
    return q.permute(3, 0, 1, 2, 4).flatten(2, 3).permute(1, 2, 0, 3) if q.dim() == 5 else q


def _empty(x: Tensor) -> Tensor:
    """Of x's shape, lying in memory as [B, T, ..], as the package has it."""
    return x.new_empty(x.movedim(-2, 1).shape).movedim(1, -2)


def _evenly(x: Tensor, lengths: Lengths | None) -> bool:
    """Whether the package's form of [B, H, T, D] or [B, G, R, T, D] is a view of it."""
    heads = x.dim() == 4 or 1 in x.shape[1:3] or x.stride(1) == x.shape[2] * x.stride(2)
    sequences = lengths is None or x.shape[0] == 1 or x.stride(0) == x.shape[-2] * x.stride(-2)
    return heads and sequences and x.stride(-1) == 1


def _to_theirs(x: Tensor, lengths: Lengths | None) -> Tensor:
    """[B, H, T, D] as [B, T, H, D], by its strides; with lengths as [B T, H, D]."""
    x = x.transpose(1, 2)
    return x if lengths is None else x.flatten(0, 1)


def _to_ours(x: Tensor, like: Tensor) -> Tensor:
    """[B, T, H, D] or [B T, H, D] as `like`, [B, H, T, D]."""
    return x.reshape(like.shape[0], like.shape[2], like.shape[1], like.shape[3]).transpose(1, 2)


def _by_sequence(log_sum: Tensor, like: Tensor) -> Tensor:
    """[H, B T] as [B, H, T]."""
    return log_sum.view(like.shape[1], like.shape[0], like.shape[2]).transpose(0, 1)
