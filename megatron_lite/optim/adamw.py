"""AdamW over flat float32 (or float64) shards.

    m = b1 m + (1 - b1) g          v = b2 v + (1 - b2) g^2
    p = p (1 - lr * decay) - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

(Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2; decay scaled by the learning rate as torch.optim.AdamW
does.) torch's fused kernel reads and writes each element once, where one tensor operation after the other would take
ten passes over memory. Padding has gradient 0 and value 0, and stays 0.
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
    def step(self, learning_rate: float, clip: Tensor | None) -> None:
        """One update with gradients scaled by `clip`, a tensor, so that nothing is read back from the device."""
        self.updates += 1
        if clip is not None:
            torch._foreach_mul_([s.gradient for s in self.shards], clip.to(self.shards[0].gradient.dtype))
        decay = self.settings.weight_decay
        self._update([slice(0, s.layout.decayed) for s in self.shards], learning_rate, decay)
        self._update([slice(s.layout.decayed, None) for s in self.shards], learning_rate, 0.0)
        for shards in self.shards:
            shards.refresh()

    def _update(self, ranges: Sequence[slice], learning_rate: float, decay: float) -> None:
        """Update one flat range of each shard, all with the same decay."""
        states = [
            (s.master[r], s.gradient[r], first[r], second[r])
            for s, (first, second), r in zip(self.shards, self.moments, ranges, strict=True)
            if s.master[r].numel()
        ]
        if not states:
            return
        masters, gradients, first, second = (list(tensors) for tensors in zip(*states, strict=True))
        count = torch.tensor(float(self.updates), device=masters[0].device)
        torch._fused_adamw_(
            masters, gradients, first, second, [], [count] * len(masters),
            lr=learning_rate, beta1=self.settings.betas[0], beta2=self.settings.betas[1], eps=self.settings.eps,
            weight_decay=decay, amsgrad=False, maximize=False,
        )  # fmt: skip
