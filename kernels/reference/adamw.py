"""AdamW in plain PyTorch; kernels/adamw.py says what it computes."""

from collections.abc import Sequence
from math import sqrt

from torch import Tensor


def adamw_(
    master: Tensor, gradient: Tensor, first: Tensor, second: Tensor, compute: Tensor | None, clip: Tensor | None,
    decayed: int, updates: int, learning_rate: float, betas: Sequence[float], eps: float, decay: float,
) -> None:  # fmt: skip
    beta1, beta2 = betas
    correction1, correction2 = 1 - beta1**updates, 1 - beta2**updates
    scaled = gradient if clip is None else gradient * clip
    first.mul_(beta1).add_(scaled, alpha=1 - beta1)
    second.mul_(beta2).addcmul_(scaled, scaled, value=1 - beta2)
    master[:decayed].mul_(1 - learning_rate * decay)
    spread = second.sqrt().mul_(1 / sqrt(correction2)).add_(eps)
    master.addcdiv_(first, spread, value=-learning_rate / correction1)
    if compute is not None:
        compute.copy_(master)
