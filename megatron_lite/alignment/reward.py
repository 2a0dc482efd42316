"""A reward model of pairs of answers: what a scalar head gives at a document's last token is its score."""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from megatron_lite.alignment.columns import LAST, MARGIN, PAIRED
from megatron_lite.config.aligned import RewardConfig
from megatron_lite.model.outputs import Values
from megatron_lite.model.sequences import Column, Sequences

SCALE = "reward_scale"  # in what a checkpoint says beside its weights


@dataclass(frozen=True)
class BradleyTerry:
    """With scores c of a pair's chosen document and r of the rejected one (Bradley and Terry 1952; the margin as in
    Touvron et al. 2023, arXiv 2307.09288, equation 2) a mean over the step's pairs of

        -log sigmoid(c - r - margin) + centring (c + r)^2

    `margin` holds for every pair (None: there is a column of them). Means over pairs are also accuracy and margin of
    c - r, and over both documents score and score_square, from which `Scale.of` follows.
    """

    margin: float | None = None
    centring: float = 0.0
    sums: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "margin", "score", "score_square")
    maxima: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def of(cls, config: RewardConfig) -> "BradleyTerry":
        return cls(config.margin, config.centring)

    @property
    def columns(self) -> tuple[Column, ...]:
        return (PAIRED, LAST, MARGIN) if self.margin is None else (PAIRED, LAST)

    def denominators(self, sequences: Sequences) -> Tensor:
        """float64 [1]: pairs."""
        return sequences.columns[PAIRED.name][:, 0::2].sum().unsqueeze(0)

    def loss(self, outputs: Values, sequences: Sequences, denominators: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        paired, last = (sequences.columns[column.name] for column in (PAIRED, LAST))
        scores = sequences.by_document(outputs.value * last, paired.shape[1])
        chosen, rejected, there = scores[:, 0::2], scores[:, 1::2], paired[:, 0::2]
        margin = sequences.columns[MARGIN.name][:, 0::2] if self.margin is None else self.margin
        by_pair = {
            "loss": -F.logsigmoid(chosen - rejected - margin) + self.centring * (chosen + rejected).square(),
            "accuracy": (chosen > rejected).double(), "margin": chosen - rejected,
            "score": 0.5 * (chosen + rejected), "score_square": 0.5 * (chosen.square() + rejected.square()),
        }  # fmt: skip
        means = {name: (there * values).sum() / denominators[0] for name, values in by_pair.items()}
        return means["loss"], {name: mean.detach() for name, mean in means.items()}


@dataclass(frozen=True)
class Scale:
    """Of scores: what brings them to mean 0 and deviation 1."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, score: float, score_square: float) -> "Scale":
        """From the means of scores and of their squares."""
        return cls(score, sqrt(max(score_square - score**2, 0.0)))
