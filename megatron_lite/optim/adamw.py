"""AdamW over flat float32 (or float64) shards.

    m = b1 m + (1 - b1) g          v = b2 v + (1 - b2) g^2
    p = p (1 - lr * decay) - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

(Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2; decay scaled by the learning rate as torch.optim.AdamW
does.) Padding has gradient 0 and value 0, and stays 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megatron_lite.parallel.zero import Shards


@dataclass(frozen=True)
class AdamWSettings:
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1


@dataclass
class AdamW:
    """State: two moments for each shard's flat buffer, and the number of updates made."""

    shards: Sequence[Shards]
    settings: AdamWSettings
    updates: int = 0
    moments: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.moments = [(torch.zeros_like(s.master), torch.zeros_like(s.master)) for s in self.shards]

    @torch.no_grad()
    def step(self, learning_rate: float, clip: Tensor) -> None:
        """One update with gradients scaled by `clip`, a tensor, so that nothing is read back from the device."""
        self.updates += 1
        (beta1, beta2), settings = self.settings.betas, self.settings
        gradients = [s.gradient for s in self.shards]
        masters = [s.master for s in self.shards]
        first = [m for m, _ in self.moments]
        second = [v for _, v in self.moments]
        torch._foreach_mul_(gradients, clip.to(gradients[0].dtype))
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
        decayed = [s.master[: s.layout.decayed] for s in self.shards if s.layout.decayed]
        torch._foreach_mul_(decayed, 1 - learning_rate * settings.weight_decay)
        denominators = torch._foreach_sqrt(second)
        torch._foreach_div_(denominators, (1 - beta2**self.updates) ** 0.5)
        torch._foreach_add_(denominators, settings.eps)
        torch._foreach_addcdiv_(masters, first, denominators, -learning_rate / (1 - beta1**self.updates))
        for shards in self.shards:
            shards.refresh()
