"""AdamW in plain PyTorch, by its own fused update; kernels/adamw.py says what it computes."""

from collections.abc import Sequence

import torch
from torch import Tensor


def adamw_(
    master: Tensor, gradient: Tensor, first: Tensor, second: Tensor, compute: Tensor | None, clip: Tensor | None,
    decayed: int, updates: int, learning_rate: float, betas: Sequence[float], eps: float, decay: float,
) -> None:  # fmt: skip
    """As kernels/adamw.py; a clipped gradient stays scaled, where a copy would take a shard's memory."""
    if clip is not None:
        gradient.mul_(clip)
    count = torch.full((), float(updates), device=master.device)
    for part, rate in ((slice(0, decayed), decay), (slice(decayed, None), 0.0)):
        if master[part].numel():
            torch._fused_adamw_(
                [master[part]], [gradient[part]], [first[part]], [second[part]], [], [count],
                lr=learning_rate, beta1=betas[0], beta2=betas[1], eps=eps, weight_decay=rate, amsgrad=False,
                maximize=False,
            )  # fmt: skip
    if compute is not None:
        compute.copy_(master)
