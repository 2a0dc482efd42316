"""AdamW over flat float32 (or float64) shards.

    m = b1 m + (1 - b1) c g          v = b2 v + (1 - b2) (c g)^2
    p = p (1 - lr * decay) - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

(Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2; decay scaled by the learning rate as torch.optim.AdamW
does; c is the clip coefficient.) One operation a shard does all of it and writes the bfloat16 copy; kernels/choice.py
says whose. Padding has gradient 0 and value 0, and stays 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megatron_lite.kernels.choice import OptimizerKernels
from megatron_lite.parallel.zero import TrainedShards


@dataclass(frozen=True)
class AdamWSettings:
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1


@dataclass
class AdamW:
    """State: two moments for each shard's flat buffer, and the number of updates made."""

    shards: Sequence[TrainedShards]
    settings: AdamWSettings
    kernels: OptimizerKernels
    updates: int = 0
    moments: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.moments = [(torch.zeros_like(s.master), torch.zeros_like(s.master)) for s in self.shards]

    @torch.no_grad()
    def step(self, learning_rate: float, clip: Tensor | None) -> None:
        """One update with gradients scaled by `clip`, a tensor, so that nothing is read back from the device.

        The gradients are used up.
        """
        self.updates += 1
        if clip is not None and self.shards:
            clip = clip.to(self.shards[0].master.dtype)
        betas, eps, decay = self.settings.betas, self.settings.eps, self.settings.weight_decay
        for shards, moments in zip(self.shards, self.moments, strict=True):
            copy = None if shards.compute is shards.master else shards.compute
            self.kernels.adamw_(
                shards.master, shards.gradient, *moments, copy, clip, shards.layout.decayed, self.updates,
                learning_rate, betas, eps, decay,
            )  # fmt: skip
