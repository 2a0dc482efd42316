"""What a microbatch is to a stage's units: a rank's positions of its sequences, and what is computed at the end."""

from dataclasses import dataclass

from torch import Tensor

from megatron_lite.model.objective import Objective
from megatron_lite.model.operations import AttentionMetadata
from megatron_lite.model.sequences import Draws, Sequences


@dataclass(frozen=True)
class Microbatch:
    """What every unit of a stage may read.

    tokens, labels  [T, B], this rank's positions
    attention       what attention needs to know of them
    positions       int64 [T], which those are
    draws           by what dropout and noise are drawn, [T, B] each (None: there is neither)
    sequences       what an objective sees
    objective       what the model's end makes of its outputs
    denominators    float64 [n], the objective's, summed over the whole step: known before forward, so that gradients
                    of all microbatches and ranks add up
    """

    tokens: Tensor
    labels: Tensor
    attention: AttentionMetadata
    positions: Tensor
    draws: Draws | None
    sequences: Sequences
    objective: Objective
    denominators: Tensor

    def own(self, whole: Tensor) -> Tensor:
        """[B, S] -> [T, B] of this rank's positions."""
        return whole[:, self.positions].t()
