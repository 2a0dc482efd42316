"""What is computed of the numbers at the model's end: an objective, frozen data and pure functions.

A language model's head gives, for whole sequences, each token's log-probability of its label and log-sum-exp of its
logits; a scalar head gives a value. An objective makes a scalar of them, which training descends, and named numbers,
which a step reports. One that knows beforehand what each token counts says so in `token_weights`: then projection, loss
and gradient can take one pass over a chunk of logits (parallel/linear_cross_entropy.py). Whatever else depends on the
numbers (a preference, a clipped ratio) returns None there, and autograd differentiates `loss`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from megatron_lite.model.outputs import Outputs
from megatron_lite.model.sequences import Column, Sequences
from megatron_lite.parallel.statistics import LOSS, Statistics


@runtime_checkable
class Objective(Protocol):
    """Frozen data: the same objective and batch give the same numbers on every layout.

    sums     names of the numbers that add up over a step's microbatches and data ranks
    maxima   names of those whose largest counts
    columns  what it wants of the batch beside tokens and labels
    """

    @property
    def sums(self) -> tuple[str, ...]: ...

    @property
    def maxima(self) -> tuple[str, ...]: ...

    @property
    def columns(self) -> tuple[Column, ...]: ...

    def denominators(self, sequences: Sequences) -> Tensor:
        """float64 [n]: what these sequences add to what the step's losses are divided by; the step sums them up."""

    def loss(self, outputs: Any, sequences: Sequences, denominators: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(scalar, numbers by name): a microbatch's share of what is descended, and of what is reported.

        `outputs` are what the model's head gives: `Outputs` or `Values`.
        """


@runtime_checkable
class TokenObjective(Objective, Protocol):
    """Over a vocabulary.

    temperature  by which hidden states are divided before the projection, and so the logits
    statistics   what the head works out of each token's logits
    """

    @property
    def temperature(self) -> float: ...

    @property
    def statistics(self) -> Statistics: ...

    def token_weights(self, sequences: Sequences, denominators: Tensor) -> tuple[Tensor, Tensor] | None:
        """[B, S] each, what every token's -log p and squared log-sum count in `loss`; None where that depends on the
        outputs. Their sum has to be the scalar of `loss`.
        """


@dataclass(frozen=True)
class CrossEntropy:
    """Mean -log p of the counted labels, and z_loss times the mean squared log-sum-exp, which keeps the softmax's
    normalizer near 1 (PaLM, arXiv 2204.02311, section 5).
    """

    z_loss: float = 0.0
    temperature: float = 1.0
    statistics: ClassVar[Statistics] = LOSS
    sums: ClassVar[tuple[str, ...]] = ("loss", "z_loss")
    maxima: ClassVar[tuple[str, ...]] = ()
    columns: ClassVar[tuple[Column, ...]] = ()

    def denominators(self, sequences: Sequences) -> Tensor:
        return sequences.counted.sum(dtype=torch.float64).unsqueeze(0)

    def token_weights(self, sequences: Sequences, denominators: Tensor) -> tuple[Tensor, Tensor]:
        share = sequences.counted / denominators[0]
        return share, self.z_loss * share

    def loss(self, outputs: Outputs, sequences: Sequences, denominators: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = -outputs.log_probability
        z_loss = self.z_loss * torch.where(sequences.counted, outputs.log_sum, 0.0).square()
        count = denominators[0]
        reported = {"loss": loss, "z_loss": z_loss}
        numbers = {name: tokens.detach().sum(dtype=torch.float64) / count for name, tokens in reported.items()}
        return (loss.sum() + z_loss.sum()) / count, numbers
