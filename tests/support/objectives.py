"""Objectives that are no pretraining, and the same written out over a plain model's logits."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_lite.model.outputs import Outputs, Values
from megatron_lite.model.sequences import Column, Sequences
from megatron_lite.parallel.statistics import DISTRIBUTION, LOSS, Statistics


def importance(tokens: Tensor) -> Tensor:
    """What a token's loss counts here: 1, 2 or 3."""
    return (1 + tokens % 3).double()


@dataclass(frozen=True)
class Weighted:
    """Each token counts by what it is; the sum of those weights divides. `knows` is whether it says so beforehand."""

    z_loss: float
    knows: bool
    temperature: float = 1.0
    statistics: ClassVar[Statistics] = LOSS
    columns: ClassVar[tuple[Column, ...]] = ()
    sums: ClassVar[tuple[str, ...]] = ("loss",)
    maxima: ClassVar[tuple[str, ...]] = ("worst",)

    def denominators(self, sequences: Sequences) -> Tensor:
        weights = torch.where(sequences.counted, importance(sequences.tokens), 0.0)
        return weights.sum(dtype=torch.float64).unsqueeze(0)

    def token_weights(self, sequences: Sequences, denominators: Tensor) -> tuple[Tensor, Tensor] | None:
        share = self._share(sequences, denominators)
        return (share, self.z_loss * share) if self.knows else None

    def loss(self, outputs: Outputs, sequences: Sequences, denominators: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        share = self._share(sequences, denominators)
        loss = -(share * outputs.log_probability).sum() + self.z_loss * (share * outputs.log_sum.square()).sum()
        worst = -outputs.log_probability.detach().min()
        return loss, {"loss": loss.detach().double(), "worst": worst.double()}

    def _share(self, sequences: Sequences, denominators: Tensor) -> Tensor:
        return torch.where(sequences.counted, importance(sequences.tokens), 0.0) / denominators[0]

    def plain(self, logits: Tensor, labels: Tensor, tokens: Tensor) -> tuple[Tensor, dict[str, float]]:
        logits = logits / self.temperature
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-1, reduction="none")
        weights = importance(tokens).flatten() * (labels.flatten() >= 0)
        squares = logits.logsumexp(-1).flatten().square()
        loss = (weights * (losses + self.z_loss * squares)).sum() / weights.sum()
        return loss, {"loss": loss.item(), "worst": losses.max().item()}


@dataclass(frozen=True)
class Preference:
    """Sequences in pairs, the first preferred: -log sigmoid(beta (sum log p of one - of the other)), as DPO's without a
    reference (Rafailov et al. 2023, arXiv 2305.18290, equation 7).
    """

    beta: float = 0.3
    temperature: float = 1.0
    statistics: ClassVar[Statistics] = LOSS
    columns: ClassVar[tuple[Column, ...]] = ()
    sums: ClassVar[tuple[str, ...]] = ("loss", "accuracy")
    maxima: ClassVar[tuple[str, ...]] = ("margin",)

    def denominators(self, sequences: Sequences) -> Tensor:
        return sequences.counted.new_full((1,), len(sequences.counted) // 2, dtype=torch.float64)

    def token_weights(self, sequences: Sequences, denominators: Tensor) -> None:
        return None

    def loss(self, outputs: Outputs, sequences: Sequences, denominators: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        sums = outputs.log_probability.sum(1)
        margin = self.beta * (sums[0::2] - sums[1::2])
        loss, pairs, seen = -F.logsigmoid(margin).sum() / denominators[0], denominators[0], margin.detach().double()
        return loss, {"loss": loss.detach().double(), "accuracy": (seen > 0).sum() / pairs, "margin": seen.max()}

    def plain(self, logits: Tensor, labels: Tensor, tokens: Tensor) -> tuple[Tensor, dict[str, float]]:
        losses = [
            -sum(row[t].log_softmax(-1)[label] for t, label in enumerate(its) if label >= 0)
            for row, its in zip(logits, labels, strict=True)
        ]
        margins = torch.stack([self.beta * (b - a) for a, b in zip(losses[0::2], losses[1::2], strict=True)])
        loss = torch.log1p(torch.exp(-margins)).mean()
        accuracy = (margins > 0).double().mean().item()
        return loss, {"loss": loss.item(), "accuracy": accuracy, "margin": margins.max().item()}


@dataclass(frozen=True)
class Explore:
    """Policy gradient with fixed advantages and an entropy bonus: mean of -(a log p + bonus H)."""

    bonus: float = 0.2
    temperature: float = 1.3
    statistics: ClassVar[Statistics] = DISTRIBUTION
    columns: ClassVar[tuple[Column, ...]] = ()
    sums: ClassVar[tuple[str, ...]] = ("loss", "entropy", "hits")
    maxima: ClassVar[tuple[str, ...]] = ()

    def denominators(self, sequences: Sequences) -> Tensor:
        return sequences.counted.sum(dtype=torch.float64).unsqueeze(0)

    def token_weights(self, sequences: Sequences, denominators: Tensor) -> None:
        return None

    def loss(self, outputs: Outputs, sequences: Sequences, denominators: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        count, advantages = denominators[0], importance(sequences.tokens) - 2
        loss = -(advantages * outputs.log_probability + self.bonus * outputs.entropy).sum() / count
        numbers = {"loss": loss, "entropy": outputs.entropy.sum() / count, "hits": outputs.is_largest.sum()}
        return loss, {name: number.detach().double() for name, number in numbers.items()}

    def plain(self, logits: Tensor, labels: Tensor, tokens: Tensor) -> tuple[Tensor, dict[str, float]]:
        counted = labels >= 0
        distribution = torch.distributions.Categorical(logits=(logits / self.temperature)[counted])
        advantages = importance(tokens)[counted] - 2
        entropy = distribution.entropy()
        loss = -(advantages * distribution.log_prob(labels[counted]) + self.bonus * entropy).mean()
        hits = (logits.argmax(-1) == labels).sum().item()
        return loss, {"loss": loss.item(), "entropy": entropy.mean().item(), "hits": hits}


@dataclass(frozen=True)
class Regression:
    """Half the squared distance of each token's value from a target made of its id: a critic's loss."""

    sums: ClassVar[tuple[str, ...]] = ("loss",)
    maxima: ClassVar[tuple[str, ...]] = ("largest",)
    columns: ClassVar[tuple[Column, ...]] = ()

    def denominators(self, sequences: Sequences) -> Tensor:
        return sequences.counted.sum(dtype=torch.float64).unsqueeze(0)

    def loss(self, outputs: Values, sequences: Sequences, denominators: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = 0.5 * (outputs.value - target(sequences.tokens)).square().sum() / denominators[0]
        return loss, {"loss": loss.detach().double(), "largest": outputs.value.detach().double().amax()}


def target(tokens: Tensor) -> Tensor:
    return (tokens % 5).double() / 7
