"""Closed forms of what a rank of one stage holds while it generates, and of how many sequences there is room for.

    weights   the rank's shards; where several ranks share one set of shards, beside them the gathered ones
    cache     keys and values of every position, of the rank's key-value heads in the stage's layers
    a step    of one new token a row: a layer's keys and values of all rows, copied out of the cache's blocks; or, where
              the model ends, the rows' logits in all the forms that drawing takes at once, if that is more

Kernels take nothing beside their results. Left out are what is small beside these: a step's activations, masks, rotary
tables. A step with a prompt in it holds that many tokens' activations more.
"""

from functools import cached_property

from megatron_lite.inference.paged_cache import cache_bytes
from megatron_lite.inference.scheduler import Sizes
from megatron_lite.planning.sizes import StageSizes

EXACT = 8  # bytes of float64, in which tokens are drawn
AT_ONCE = 4  # of the vocabulary, while random numbers are made: scaled logits, and those numbers' bits three times


class GenerationMemory(StageSizes):
    """Of a model that is only asked, `trainable` is NOTHING. Of the schedule the placement counts. Bytes throughout."""

    @cached_property
    def weights(self) -> int:
        """To the byte, while they are held."""
        shards = sum(map(self.shard_size, self.shards))
        # Gathered rows are copied apart without the shards' tails.
        full = sum(self.sharding * self.rows_size(one.weights) for one in self.shards) if self.sharding > 1 else 0
        return (shards + full) * self.element_bytes

    def cache(self, length: int) -> int:
        """Of a sequence of so many positions."""
        return self._keys_and_values(self._layers, length)

    def row(self, length: int) -> int:
        """What a step takes for a row whose sequence is so long, unless its tokens are drawn greedily."""
        copies = self._keys_and_values(min(self._layers, 1), length)
        ends = any(unit.ends for unit in self.units)
        return max(copies, self.config.model.vocab_size * self._drawing_bytes if ends else 0)

    def sequences(self, length: int, memory: int) -> int:
        """How many of so many positions run at once in so much memory; 0 where the weights do not fit."""
        return max(memory - self.weights, 0) // (self.cache(length) + self.row(length))

    @property
    def _layers(self) -> int:
        return sum(unit.kind == "block" for unit in self.units)

    @property
    def _drawing_bytes(self) -> int:
        """Of a logit: as it is, in float32 or wider if that is another, as it is drawn from."""
        exact = self.exact_bytes if self.exact_bytes > self.element_bytes else 0
        return self.element_bytes + exact + AT_ONCE * EXACT

    def _keys_and_values(self, layers: int, length: int) -> int:
        sizes = Sizes(Sizes(1).blocks_of(length))
        return cache_bytes(self.config.model, self.resolved.tensor, layers, sizes, self.element_bytes)
