"""What a microbatch is to the model: whole sequences as an objective sees them, and a rank's positions of them."""

from dataclasses import dataclass

from torch import Tensor

from megatron_lite.model.operations import AttentionMetadata
from megatron_lite.parallel.vocabulary import counted


@dataclass(frozen=True)
class Sequences:
    """Whole sequences of a microbatch, the same on every tensor, context and pipeline rank of a data rank.

    tokens, labels  int64 [B, S]; labels outside the vocabulary do not count
    """

    tokens: Tensor
    labels: Tensor
    vocab_size: int

    @property
    def counted(self) -> Tensor:
        """bool [B, S]: which labels count."""
        return counted(self.labels, self.vocab_size)


@dataclass(frozen=True)
class Microbatch:
    """What every unit of a stage may read.

    tokens, labels  [T, B], this rank's positions
    attention       what attention needs to know of them
    positions       int64 [T], which those are
    sequences       what an objective sees
    denominators    float64 [n], the objective's, summed over the whole step: known before forward, so that gradients
                    of all microbatches and ranks add up
    """

    tokens: Tensor
    labels: Tensor
    attention: AttentionMetadata
    positions: Tensor
    sequences: Sequences
    denominators: Tensor

    def own(self, whole: Tensor) -> Tensor:
        """[B, S] -> [T, B] of this rank's positions."""
        return whole[:, self.positions].t()
