"""The package flash-attn, of either version: its recorded signatures, its checks, and numbers by our reference."""

from itertools import pairwise

import torch
from megatron_lite.kernels.adapters import flash_attn
from megatron_lite.kernels.reference import attention
from support.kernels.stand_ins import stand_in


def stand_in_for_flash_attn(monkeypatch, entry: dict, given: dict | None = None) -> None:
    """Put a recorded version in its place. `given` gathers the tensors that a backward is to write into, by name."""

    def noting(**arguments):
        if given is not None:
            given.update({name: arguments[name] for name in ("dq", "dk", "dv")})
        return theirs_backward(**arguments)

    behind = {name: noting if "backward" in name else theirs_forward for name in entry["functions"]}
    stand_in(monkeypatch, entry, behind)
    monkeypatch.setattr(flash_attn, "_on_hopper", lambda q: entry["package"] == "flash-attn-3")


def parts(bounds, longest):
    """The documents of a call by lengths, as slices; checks what the package checks."""
    assert bounds.dtype == torch.int32 and bounds.is_contiguous()
    cuts = bounds.tolist()
    assert max(end - begin for begin, end in pairwise(cuts)) == longest
    return [slice(begin, end) for begin, end in pairwise(cuts)]


def theirs_forward(q, k, v, softmax_scale, causal, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None,
                   max_seqlen_k=None, **others):  # fmt: skip
    """[B, T, H, D], or [documents' T, H, D]; the log-sum-exp [B, H, T], or [H, documents' T]."""
    assert_plain(others)
    assert softmax_scale == q.shape[-1] ** -0.5 and all(x.stride(-1) == 1 for x in (q, k, v))
    if cu_seqlens_q is None:
        output, log_sum = attention.attention(*(x.transpose(1, 2) for x in (q, k, v)), causal, None)
        return output.transpose(1, 2), log_sum, None, None
    assert torch.equal(cu_seqlens_q, cu_seqlens_k) and max_seqlen_q == max_seqlen_k and causal
    found = [
        attention.attention(*(x[part].transpose(0, 1).unsqueeze(0) for x in (q, k, v)), True, None)
        for part in parts(cu_seqlens_q, max_seqlen_q)
    ]
    return torch.cat([o[0].transpose(0, 1) for o, _ in found]), torch.cat([s[0] for _, s in found], 1), None, None


def theirs_backward(dout, q, k, v, out, softmax_lse, dq, dk, dv, softmax_scale, deterministic, cu_seqlens_q=None,
                    cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None, **others):  # fmt: skip
    causal = others.pop("causal") if "causal" in others else others.pop("is_causal")
    assert_plain(others)
    assert deterministic and softmax_scale == q.shape[-1] ** -0.5
    assert all(x.dtype == q.dtype and x.stride(-1) == 1 for x in (dout, k, v, out, dq, dk, dv))
    assert softmax_lse.dtype == torch.float32 and softmax_lse.is_contiguous()
    if cu_seqlens_q is None:
        given = [x.transpose(1, 2) for x in (dout, q, k, v, out)]
        found = attention.attention_backward(*given, softmax_lse, causal, None)
        for result, gradient in zip((dq, dk, dv), found, strict=True):
            result.copy_(gradient.transpose(1, 2))
        return
    assert torch.equal(cu_seqlens_q, cu_seqlens_k) and max_seqlen_q == max_seqlen_k and causal
    for part in parts(cu_seqlens_q, max_seqlen_q):
        given = [x[part].transpose(0, 1).unsqueeze(0) for x in (dout, q, k, v, out)]
        found = attention.attention_backward(*given, softmax_lse[:, part].unsqueeze(0), True, None)
        for result, gradient in zip((dq, dk, dv), found, strict=True):
            result[part] = gradient[0].transpose(0, 1)


def assert_plain(others):
    """No dropout, window, soft cap or slopes among the other arguments."""
    plain = {"dropout_p": 0.0, "window_size_left": -1, "window_size_right": -1, "softcap": 0.0, "return_softmax": False}
    assert all(value is None or value == plain[name] for name, value in others.items()), others
