"""Entropy over a cut vocabulary in plain PyTorch; kernels/entropy.py says what it computes."""

import torch
from megatron_lite.kernels.reference.cross_entropy import (
    ROWS,
    combine_statistics,
    cross_entropy_statistics,
    in_rank_order,
    softmax_times_,
)
from torch import Tensor

# So far below the others exp is 0 in float64 too; and 0 times infinity would be NaN.
FAR = -1e4


def entropy_statistics(logits: Tensor, target: Tensor, real: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    log_sum, target_logit = cross_entropy_statistics(logits, target, real)
    if real == 0:
        return log_sum, target_logit, torch.zeros_like(log_sum), log_sum.clone()
    rows = logits[..., :real].flatten(0, -2)
    pairs = [_mean_and_largest(part.to(log_sum.dtype)) for part in rows.split(ROWS)]
    mean_logit, largest = (torch.cat(parts).view(target.shape) for parts in zip(*pairs, strict=True))
    return log_sum, target_logit, mean_logit, largest


def entropy_gradient_(
    logits: Tensor, target: Tensor, real: int, log_sum: Tensor, mean_logit: Tensor,
    loss_gradient: Tensor, log_sum_gradient: Tensor, entropy_gradient: Tensor,
) -> None:  # fmt: skip
    def factor(x: Tensor, both: Tensor, mean: Tensor, of_entropy: Tensor) -> Tensor:
        return (x - mean).clamp_(min=FAR).mul_(-of_entropy).add_(both)

    numbers = loss_gradient + log_sum_gradient, mean_logit, entropy_gradient
    softmax_times_(logits, target, real, log_sum, loss_gradient, factor, *numbers)


def combine_entropy_statistics(quads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Global (log_sum, target_logit, mean_logit, largest), each [..], of the ranks' quads [ranks, 4, ..].

    mean_logit = sum over ranks of w_r mean_r / sum over ranks of w_r, w_r = exp(log_sum_r - log_sum), in rank order; 0
    where every rank's log-sum is -inf.
    """
    log_sum, target_logit = combine_statistics(quads[:, :2])
    largest = quads[:, 3].amax(0)
    weights = torch.exp(quads[:, 0] - _finite_or_zero(log_sum))
    # About the largest logit: sums far from 0 would lose digits.
    origin = _finite_or_zero(largest)
    moment = in_rank_order(weights * (quads[:, 2] - origin))
    return log_sum, target_logit, origin + _quotient(moment, in_rank_order(weights)), largest


def _mean_and_largest(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of rows [n, real]: the mean under softmax, about the largest and 0 where that is -inf; and the largest."""
    largest = x.detach().amax(-1)
    origin = _finite_or_zero(largest)
    below = x - origin.unsqueeze(-1)
    weights = below.exp()
    moment = (weights * below.clamp(min=FAR)).sum(-1)
    return origin + _quotient(moment, weights.sum(-1)), largest


def _finite_or_zero(x: Tensor) -> Tensor:
    return torch.where(x == float("-inf"), torch.zeros_like(x), x)


def _quotient(above: Tensor, below: Tensor) -> Tensor:
    """0 where `below` is 0, and so is `above`."""
    return above / torch.where(below == 0, torch.ones_like(below), below)
