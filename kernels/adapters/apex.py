"""NVIDIA's apex as our AdamW and as our product with a float32 sum.

This has not run anywhere: apex is on no package index (what is called apex there is another project), and no machine
that this code saw had it. Tests hold every call against the signatures in apex's own source.

apex has no AdamW that reads float32 gradients and writes a bfloat16 copy, so the copy is a pass of its own: 34 bytes a
parameter where our kernel has 30. With a clip coefficient it also writes the scaled gradient back: 38.
"""

from importlib import import_module
from importlib.util import find_spec

import torch
from megatron_lite.kernels.checks import check
from torch import Tensor

OPTIMIZER = "amp_C"
PRODUCT = "fused_weight_gradient_mlp_cuda"

CHUNK = 65536  # elements a block of threads works on
LARGEST = 2**31 - 1  # apex counts a tensor's elements in 32 bits
DECOUPLED, CORRECTED = 1, 1  # its modes: AdamW's decay; moments corrected for their start at 0


def installed(module: str = OPTIMIZER) -> bool:
    """Whether apex's compiled modules can be found; its name alone is another project's too. Imports nothing."""
    return find_spec(module) is not None


def adamw_(
    master: Tensor, gradient: Tensor, first: Tensor, second: Tensor, compute: Tensor | None, clip: Tensor | None,
    decayed: int, updates: int, learning_rate: float, betas, eps: float, decay: float,
) -> None:  # fmt: skip
    """As kernels/adamw.py, on float32 shards [S] of fewer than 2^31 elements; a clipped gradient stays scaled. On meta
    tensors nothing.
    """
    for label, tensor in (("master", master), ("gradient", gradient), ("first", first), ("second", second)):
        check("adamw_", label, tensor, master, (master.numel(),), torch.float32)
    if master.numel() > LARGEST:
        raise ValueError(f"adamw_: apex updates at most {LARGEST} elements of a shard, master has {master.numel()}")
    if master.is_meta:
        return
    for part, rate in ((slice(0, decayed), decay), (slice(decayed, None), 0.0)):
        lists = [[tensor[part]] for tensor in (gradient, master, first, second)]
        if lists[0][0].numel():
            _update(lists, clip, updates, learning_rate, betas, eps, rate)
    if compute is not None:
        compute.copy_(master)


def _update(lists, clip: Tensor | None, updates: int, learning_rate: float, betas, eps: float, decay: float) -> None:
    kernels, device = import_module(OPTIMIZER), lists[0][0].device
    proceed = torch.zeros(1, dtype=torch.int32, device=device)
    if clip is None:
        kernels.multi_tensor_adam(
            CHUNK, proceed, lists, learning_rate, *betas, eps, updates, DECOUPLED, CORRECTED, decay
        )
        return
    # The form for captured graphs is the one that scales gradients by a number on the device.
    rate = torch.full((1,), learning_rate, dtype=torch.float32, device=device)
    count = torch.full((1,), updates, dtype=torch.int32, device=device)
    kernels.multi_tensor_adam_capturable(
        CHUNK, proceed, lists, rate, *betas, eps, count, DECOUPLED, CORRECTED, decay, clip.to(torch.float32)
    )


def add_product_(gradient: Tensor, dy: Tensor, x: Tensor, beta: float = 1.0) -> None:
    """As kernels/weight_gradient.py, into a contiguous float32 gradient; on meta tensors nothing.

    apex only ever adds, so another beta than 1 is a pass of its own.
    """
    name = "add_product_"
    check(name, "gradient", gradient, gradient, (dy.shape[1], x.shape[1]), torch.float32)
    check(name, "dy", dy, x, (x.shape[0], dy.shape[1]), x.dtype)
    if not gradient.is_contiguous():
        raise ValueError(f"{name}: gradient has strides {gradient.stride()}, must be contiguous")
    if gradient.is_meta:
        return
    if beta != 1.0:
        gradient.zero_() if beta == 0.0 else gradient.mul_(beta)
    import_module(PRODUCT).wgrad_gemm_accum_fp32(x.contiguous(), dy.contiguous(), gradient)
