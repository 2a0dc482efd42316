"""The exponential moving average of the trained weights, for models that are asked rather than trained on.

    a = decay * a + (1 - decay) * p     after each update of the weights p; before the first one a = p

(Tarvainen and Valpola 2017, arXiv 1703.01780, section 2.) It is kept where the masters are, shard by shard and in their
dtype, so no rank has to hear of another's. In float32 what lies closer to a weight than 6e-8 / (1 - decay) of it moves
its average no more.
"""

from collections.abc import Sequence

import torch

from megatron_lite.parallel.zero import TrainedShards


class MovingAverage:
    """`values`: of each shard's flat buffer [S], padding included, which is 0 there too."""

    def __init__(self, shards: Sequence[TrainedShards], decay: float):
        self.shards, self.decay = shards, decay
        self.values = [one.master.clone() for one in shards]

    @torch.no_grad()
    def begin(self) -> None:
        """With the weights as they are now."""
        for value, one in zip(self.values, self.shards, strict=True):
            value.copy_(one.master)

    @torch.no_grad()
    def update(self) -> None:
        """In place: nothing is made beside what is there."""
        for value, one in zip(self.values, self.shards, strict=True):
            value.lerp_(one.master, 1 - self.decay)
