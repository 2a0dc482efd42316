"""What is worked out of each token's logits while its columns lie on several ranks: two sets of numbers.

    LOSS          loss and log-sum                         two numbers a token go round
    DISTRIBUTION  these, the entropy, whether the label    four
                  has the largest logit

A set says what a rank finds in its own columns (`local`), what follows from all ranks' (`combined`, in rank order),
what of it a backward needs (`kept`), what is given out (`outputs`), and how gradients of that become the logits'.
Formulas stand in kernels/cross_entropy.py and kernels/entropy.py.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from megatron_lite.kernels.choice import Kernels
from megatron_lite.kernels.reference.cross_entropy import combine_statistics
from megatron_lite.kernels.reference.entropy import combine_entropy_statistics

Numbers = tuple[Tensor, ...]


class Statistics(Protocol):
    """Tokens are [..]; a label that does not count (`counts`) has outputs 0, but for its log-sum. `count` is how many
    outputs there are.
    """

    count: int

    def local(self, kernels: Kernels, logits: Tensor, target: Tensor, real: int) -> Tensor:
        """[n, ..] of logits [.., V_local] and the label's column among them, or anything outside [0, real)."""

    def combined(self, ranks: Tensor) -> Numbers:
        """Of all ranks' [R, n, ..]."""

    def kept(self, combined: Numbers) -> Numbers:
        """Of those what `gradient_` takes."""

    def outputs(self, combined: Numbers, counts: Tensor) -> Numbers:
        """(loss, log_sum, ..)."""

    def gradient_(
        self,
        kernels: Kernels,
        logits: Tensor,
        target: Tensor,
        real: int,
        kept: Sequence[Tensor],
        gradients: Sequence[Tensor],
    ) -> None:
        """Put the logits' gradient in their place, from the outputs' gradients: each 0 where a label does not count,
        but for the log-sum's.
        """


class _Loss:
    count = 2

    def local(self, kernels, logits, target, real):
        return torch.stack(kernels.cross_entropy_statistics(logits, target, real))

    def combined(self, ranks):
        return combine_statistics(ranks)

    def kept(self, combined):
        return combined[:1]

    def outputs(self, combined, counts):
        log_sum, target_logit = combined
        return torch.where(counts, log_sum - target_logit, 0.0), log_sum

    def gradient_(self, kernels, logits, target, real, kept, gradients):
        kernels.cross_entropy_gradient_(logits, target, real, *kept, *gradients)


class _Distribution:
    count = 4

    def local(self, kernels, logits, target, real):
        return torch.stack(kernels.entropy_statistics(logits, target, real))

    def combined(self, ranks):
        return combine_entropy_statistics(ranks)

    def kept(self, combined):
        log_sum, _, mean_logit, _ = combined
        return log_sum, mean_logit

    def outputs(self, combined, counts):
        log_sum, target_logit, mean_logit, largest = combined
        is_largest = (counts & (target_logit >= largest)).to(log_sum.dtype)
        loss, entropy = (torch.where(counts, log_sum - x, 0.0) for x in (target_logit, mean_logit))
        return loss, log_sum, entropy, is_largest

    def gradient_(self, kernels, logits, target, real, kept, gradients):
        kernels.entropy_gradient_(logits, target, real, *kept, *gradients[:3])


LOSS: Statistics = _Loss()
DISTRIBUTION: Statistics = _Distribution()
