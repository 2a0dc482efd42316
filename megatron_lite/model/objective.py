"""What is computed of the head's per-token numbers: an objective, frozen data and pure functions.

The head gives, for whole sequences, each token's log-probability of its label and log-sum-exp of its logits. An
objective makes a scalar of them, which training descends, and named numbers, which a step reports. One that knows
beforehand what each token counts says so in `token_weights`: then projection, loss and gradient can take one pass over
a chunk of logits (parallel/vocabulary.py). Whatever else depends on the numbers (a preference, a clipped ratio) returns
None there, and autograd differentiates `loss`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from megatron_lite.model.batch import Sequences
from megatron_lite.parallel.statistics import LOSS, Statistics


@dataclass(frozen=True)
class Outputs:
    """Of one microbatch, each [B, S] in float32 (float64 in a float64 run).

    log_probability  of the label; 0 where a label does not count
    log_sum          log-sum-exp of the logits
    entropy          of the distribution, in nats; 0 where a label does not count
    is_largest       1 where a label counts and no piece is more likely, else 0; without a gradient

    The last two are there where the objective wants the distribution.
    """

    log_probability: Tensor
    log_sum: Tensor
    entropy: Tensor | None = None
    is_largest: Tensor | None = None


def joined(outputs: Sequence[Outputs]) -> Outputs:
    """Those of several microbatches, one after the other."""
    return Outputs(
        torch.cat([one.log_probability for one in outputs]),
        torch.cat([one.log_sum for one in outputs]),
        _joined([one.entropy for one in outputs]),
        _joined([one.is_largest for one in outputs]),
    )


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """None where the objective did not want them."""
    given = [part for part in parts if part is not None]
    return torch.cat(given) if given else None


class Objective(Protocol):
    """Frozen data: the same objective and batch give the same numbers on every layout.

    sums         names of the numbers that add up over a step's microbatches and data ranks
    maxima       names of those whose largest counts
    temperature  by which hidden states are divided before the projection, and so the logits
    statistics   what the head works out of each token's logits
    """

    @property
    def sums(self) -> tuple[str, ...]: ...

    @property
    def maxima(self) -> tuple[str, ...]: ...

    @property
    def temperature(self) -> float: ...

    @property
    def statistics(self) -> Statistics: ...

    def denominators(self, sequences: Sequences) -> Tensor:
        """float64 [n]: what these sequences add to what the step's losses are divided by; the step sums them up."""

    def token_weights(self, sequences: Sequences, denominators: Tensor) -> tuple[Tensor, Tensor] | None:
        """[B, S] each, what every token's -log p and squared log-sum count in `loss`; None where that depends on the
        outputs. Their sum has to be the scalar of `loss`.
        """

    def loss(self, outputs: Outputs, sequences: Sequences, denominators: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(scalar, numbers by name): a microbatch's share of what is descended, and of what is reported."""


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
