"""Attention in plain PyTorch; kernels/attention.py says what it computes.

Without ranges PyTorch's own fused operations do it, on a CPU and, in bfloat16 and float16, on NVIDIA's GPUs, where its
backward is asked for a fixed order of sums; on a CPU they do whole documents, too, one by one. Elsewhere the definition
is computed as written, whole scores and all. What a GPU would run has not run on one: tests hold its calls against the
operations' schemas.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
from megatron_lite.kernels.visibility import Visible
from torch import Tensor

# PyTorch's fused operation with a log-sum-exp; on meta tensors it keeps what a fused GPU kernel would.
_FUSED = ("cpu", "meta")
_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_CPU_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_GPU = torch.ops.aten._scaled_dot_product_flash_attention.default
_GPU_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_backward.default


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, visible: Visible | None) -> tuple[Tensor, Tensor]:
    """(output [B, H, T, D] in q's dtype, log-sum-exp of the scaled scores [B, H, T] in float32, float64 for float64).

    q [B, H, T, D], k and v [B, G, S, D]; query head h reads key-value head h // (H / G). `causal` (T = S): query t
    sees keys up to t. `visible`: it sees these alone; a query that sees none has output 0 and log-sum-exp -inf. Scores
    are q k^T / sqrt(D) (Vaswani et al. 2017, arXiv 1706.03762, equation 1).
    """
    q, k, v = (_along_rows(x) for x in (_in_one(q), k, v))
    if visible is None and _fused(q, k):
        return _CPU(q, k, v, 0.0, causal)
    if visible is None and _gpu_has_it(q):
        return _GPU(q, k, v, 0.0, causal)[:2]
    documents = _documents(q, k, visible)
    if documents is not None:
        output, log_sum = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=_exact(q))
        for one in documents:
            output[one], log_sum[one] = _CPU(q[one], k[one], v[one], 0.0, True)
        return output, log_sum
    scores = _scores(q, k, _seen(q, k, causal, visible))
    log_sum = scores.logsumexp(-1)
    return _heads_times(_probabilities(scores, log_sum), v).to(q.dtype), log_sum


def attention_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor, log_sum: Tensor, causal: bool,
    visible: Visible | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v in their dtypes, given the gradient of the output.

    `output` and `log_sum` are those over all keys, of which k and v may be a part: the results are then this part's
    share (Dao et al. 2022, arXiv 2205.14135, algorithm 4; nothing in it but the log-sum-exp knows the other keys).
    """
    shape = q.shape
    q, k, v, gradient, output = (_along_rows(x) for x in (_in_one(q), k, v, gradient, output))
    if visible is None and _fused(q, k):
        dq, dk, dv = _CPU_BACKWARD(gradient, q, k, v, output, log_sum, 0.0, causal)
        return dq.reshape(shape), dk, dv
    if visible is None and _gpu_has_it(q):
        dq, dk, dv = _gpu_backward(gradient, q, k, v, output, log_sum, causal)
        return dq.reshape(shape), dk, dv
    documents = _documents(q, k, visible)
    if documents is not None:
        gradients = [torch.empty_like(x) for x in (q, k, v)]
        for one in documents:
            parts = _CPU_BACKWARD(gradient[one], q[one], k[one], v[one], output[one], log_sum[one], 0.0, True)
            for whole, part in zip(gradients, parts, strict=True):
                whole[one] = part
        return gradients[0].reshape(shape), gradients[1], gradients[2]
    probabilities = _probabilities(_scores(q, k, _seen(q, k, causal, visible)), log_sum)
    exact = gradient.to(probabilities.dtype)
    groups = (*k.shape[:2], q.shape[1] // k.shape[1], *q.shape[2:])
    grouped = probabilities.unflatten(1, groups[1:3])
    v_gradient = (grouped.transpose(-1, -2) @ exact.reshape(groups)).sum(2)
    to_probabilities = exact.reshape(groups) @ v.unsqueeze(2).to(exact.dtype).transpose(-1, -2)
    inner = (exact * output).sum(-1).view(groups[:4]).unsqueeze(-1)
    to_scores = grouped * (to_probabilities - inner) / q.shape[-1] ** 0.5
    q_gradient = (to_scores @ k.unsqueeze(2).to(exact.dtype)).view(shape)
    k_gradient = (to_scores.transpose(-1, -2) @ q.reshape(groups).to(exact.dtype)).sum(2)
    return q_gradient.to(q.dtype), k_gradient.to(k.dtype), v_gradient.to(v.dtype)


def attention_backward_(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor, log_sum: Tensor, causal: bool,
    visible: Visible | None, dq: Tensor, dk: Tensor, dv: Tensor,
) -> None:  # fmt: skip
    """The same, written into dq, dk and dv."""
    results = attention_backward(gradient, q, k, v, output, log_sum, causal, visible)
    for into, result in zip((dq, dk, dv), results, strict=True):
        into.copy_(result)


def _fused(q: Tensor, k: Tensor) -> bool:
    """Whether PyTorch's operation of the CPU does it. Of no query, or no key, it dies of a division by zero."""
    return q.device.type in _FUSED and q.numel() > 0 and k.numel() > 0


def _documents(q: Tensor, k: Tensor, visible: Visible | None) -> list[tuple[slice, slice, slice]] | None:
    """Where in [B, H, T] each lies, where PyTorch's operation of the CPU can do them one by one: where every query sees
    its own document up to itself.
    """
    if visible is None or q.device.type != "cpu" or not _fused(q, k) or visible.lengths is None:
        return None
    length, every, places = q.shape[2], slice(None), []
    for begin, end in pairwise(visible.lengths.bounds.tolist()):
        row, first = divmod(begin, length)
        places.append((slice(row, row + 1), every, slice(first, first + end - begin)))
    return places


def _along_rows(x: Tensor) -> Tensor:
    """Fused operations take the last stride for 1 without looking: of any other they read foreign memory."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _gpu_has_it(q: Tensor) -> bool:
    """Whether PyTorch's build for CUDA has a fused operation for such queries: its FlashAttention 2."""
    fits = q.shape[-1] % 8 == 0 and q.shape[-1] <= 256 and q.dtype in (torch.bfloat16, torch.float16)
    return q.is_cuda and torch.version.hip is None and fits


def _gpu_backward(gradient, q, k, v, output, log_sum, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
    """As attention_backward. What the forward pass returned beside its results is of use with dropout alone."""
    unused = q.new_empty(0, dtype=torch.uint64)
    with _fixed_order():
        return _GPU_BACKWARD(
            gradient.to(q.dtype), q, k, v, output.to(q.dtype), log_sum.contiguous(), None, None, q.shape[2], k.shape[2],
            0.0, causal, unused, unused,
        )  # fmt: skip


@contextmanager
def _fixed_order() -> Iterator[None]:
    """PyTorch's switch for the process, which is the only way to ask its backward for the same bits each time."""
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("error")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


def _in_one(q: Tensor) -> Tensor:
    """Queries by group [B, G, R, T, D] as [B, H, T, D], in memory [T, B, H, D], as their output is wanted."""
    return q.permute(3, 0, 1, 2, 4).flatten(2, 3).permute(1, 2, 0, 3) if q.dim() == 5 else q


def _seen(q: Tensor, k: Tensor, causal: bool, visible: Visible | None) -> Tensor:
    """Which keys queries see, bool, [T, S] or [B, 1, T, S]."""
    if visible is not None:
        return visible.mask
    seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
    return seen.tril() if causal else seen


def _exact(q: Tensor) -> torch.dtype:
    return torch.promote_types(q.dtype, torch.float32)


def _scores(q: Tensor, k: Tensor, seen: Tensor) -> Tensor:
    """[B, H, T, S] in float32 or wider, -inf where nothing is to be seen."""
    exact = _exact(q)
    groups = (*k.shape[:2], q.shape[1] // k.shape[1], *q.shape[2:])
    scores = q.reshape(groups).to(exact) @ k.unsqueeze(2).to(exact).transpose(-1, -2) / q.shape[-1] ** 0.5
    return scores.flatten(1, 2).masked_fill(seen.logical_not(), float("-inf"))


def _probabilities(scores: Tensor, log_sum: Tensor) -> Tensor:
    """exp(scores - log_sum), 0 for queries that see nothing anywhere."""
    return torch.exp(scores - log_sum.clamp(min=torch.finfo(scores.dtype).min).unsqueeze(-1))


def _heads_times(probabilities: Tensor, v: Tensor) -> Tensor:
    """[B, H, T, S] times [B, G, S, D] -> [B, H, T, D]."""
    groups = v.shape[1], probabilities.shape[1] // v.shape[1]
    return (probabilities.unflatten(1, groups) @ v.unsqueeze(2).to(probabilities.dtype)).flatten(1, 2)
