"""What a microbatch is to the model: whole sequences as an objective sees them, and a rank's positions of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from megatron_lite.model.operations import AttentionMetadata


@dataclass(frozen=True)
class Sequences:
    """Whole sequences of a microbatch, the same on every tensor, context and pipeline rank of a data rank.

    tokens   int64 [B, S]
    labels   int64 [B, S]; those outside the vocabulary do not count
    counted  bool [B, S]: which labels do
    columns  what else an objective asked for, by name: [B, S], aligned with the labels, or a number a document
    """

    tokens: Tensor
    labels: Tensor
    counted: Tensor
    columns: Mapping[str, Tensor] = field(default_factory=dict)


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
