"""Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290): a policy learns from pairs of answers which
it is to prefer, held to a reference whose log-probabilities were worked out beforehand (reference.py).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_lite.alignment.columns import PAIRED, REFERENCE
from megatron_lite.config.aligned import DpoConfig
from megatron_lite.model.outputs import Outputs
from megatron_lite.model.sequences import Column, Sequences
from megatron_lite.parallel.statistics import LOSS, Statistics


@dataclass(frozen=True)
class Dpo:
    """With h = (log p - reference) of a pair's chosen document, summed over its counted labels, less that of the
    rejected one, a pair's loss is

        sigmoid   -log sigmoid(beta h)         (the same paper, equation 7)
        ipo       (h - 1 / (2 beta))^2         (Azar et al. 2023, arXiv 2310.12036, equation 17)

    and where a share `label_smoothing` of preferences is taken to be wrong, (1 - share) loss(h) + share loss(-h). With
    `length_normalized` each document's sums are divided by its counted labels, as TRL does for ipo; OpenRLHF takes
    sums. `nll_weight` times the mean -log p of a chosen document's label joins the loss (the term of Pang et al. 2024,
    arXiv 2404.19733, equation 1, as one mean over the step's labels).

    Means over the step's pairs are also accuracy and margin of beta h, and the policy's sums chosen_logprob and
    rejected_logprob; nll is a mean over labels of chosen documents.
    """

    beta: float = 0.1
    kind: Literal["sigmoid", "ipo"] = "sigmoid"
    label_smoothing: float = 0.0
    nll_weight: float = 0.0
    length_normalized: bool = False
    temperature: ClassVar[float] = 1.0
    statistics: ClassVar[Statistics] = LOSS
    columns: ClassVar[tuple[Column, ...]] = (PAIRED, REFERENCE)
    sums: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "margin", "chosen_logprob", "rejected_logprob", "nll")
    maxima: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def of(cls, config: DpoConfig) -> "Dpo":
        return cls(config.beta, config.loss, config.label_smoothing, config.nll_weight, config.length_normalized)

    def denominators(self, sequences: Sequences) -> Tensor:
        """float64 [2]: pairs, and counted labels of chosen documents."""
        there = sequences.columns[PAIRED.name][:, 0::2]
        return torch.stack([there.sum(), (there * counted_labels(sequences)[:, 0::2]).sum()])

    def token_weights(self, sequences: Sequences, denominators: Tensor) -> None:
        return None

    def loss(self, outputs: Outputs, sequences: Sequences, denominators: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        paired, reference = (sequences.columns[column.name] for column in (PAIRED, REFERENCE))
        pairs, labels = denominators
        # In float64: h is a small difference of large sums.
        policy = sequences.by_document(outputs.log_probability.double(), paired.shape[1])
        ratio = policy - reference
        if self.length_normalized:
            ratio = ratio / counted_labels(sequences).clamp(min=1)  # what is no pair may have none
        h, there, chosen = ratio[:, 0::2] - ratio[:, 1::2], paired[:, 0::2], policy[:, 0::2]
        by_pair = {
            "loss": self.of_difference(h), "accuracy": (h > 0).double(), "margin": self.beta * h,
            "chosen_logprob": chosen, "rejected_logprob": policy[:, 1::2],
        }  # fmt: skip
        numbers = {name: (there * values).sum() / pairs for name, values in by_pair.items()}
        numbers["nll"] = -(there * chosen).sum() / labels
        numbers["loss"] = numbers["loss"] + self.nll_weight * numbers["nll"]
        return numbers["loss"], {name: number.detach() for name, number in numbers.items()}

    def of_difference(self, h: Tensor) -> Tensor:
        """Each pair's loss."""
        right, wrong = self._as_labelled(h), self._as_labelled(-h)
        return (1 - self.label_smoothing) * right + self.label_smoothing * wrong

    def _as_labelled(self, h: Tensor) -> Tensor:
        if self.kind == "ipo":
            return (h - 1 / (2 * self.beta)).square()
        return -F.logsigmoid(self.beta * h)


def counted_labels(sequences: Sequences) -> Tensor:
    """float64 [B, D]: of each document."""
    return sequences.by_document(sequences.counted.double(), sequences.columns[PAIRED.name].shape[1])
