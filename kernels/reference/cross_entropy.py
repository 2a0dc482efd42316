"""Vocabulary-parallel cross-entropy in plain PyTorch; kernels/cross_entropy.py says what it computes."""

from collections.abc import Callable

import torch
from torch import Tensor

# Worked on at once: few enough that a pass finds in the cache what the pass before left there.
ROWS = 64


def cross_entropy_statistics(logits: Tensor, target: Tensor, real: int) -> tuple[Tensor, Tensor]:
    exact = torch.promote_types(logits.dtype, torch.float32)
    if real == 0:
        nothing = logits.new_zeros(logits.shape[:-1], dtype=exact)
        return torch.full_like(nothing, float("-inf")), nothing
    here, place = _place(target, real)
    picked = torch.gather(logits, -1, place).squeeze(-1).to(exact)
    rows = logits[..., :real].flatten(0, -2)
    log_sum = torch.cat([torch.logsumexp(part.to(exact), dim=-1) for part in rows.split(ROWS)])
    return log_sum.view(target.shape), torch.where(here, picked, torch.zeros_like(picked))


def cross_entropy_gradient_(
    logits: Tensor, target: Tensor, real: int, log_sum: Tensor, loss_gradient: Tensor, log_sum_gradient: Tensor
) -> None:
    share = loss_gradient + log_sum_gradient
    softmax_times_(logits, target, real, log_sum, loss_gradient, lambda x, share: share, share)


def softmax_times_(
    logits: Tensor, target: Tensor, real: int, log_sum: Tensor, loss_gradient: Tensor,
    factor: Callable[..., Tensor], *numbers: Tensor,
) -> None:  # fmt: skip
    """Put exp(logits - log_sum) factor(logits, *numbers) - [column is the label] loss_gradient in the logits' place.

    Columns from `real` on become 0. `factor` is given rows [n, real] and their numbers [n, 1], of each number [..].
    """
    logits[..., real:] = 0
    if real == 0:
        return
    # exp(x - inf) = 0: the softmax of a row that is masked throughout is nothing.
    log_sum = torch.where(log_sum == float("-inf"), float("inf"), log_sum)
    here, place = _place(target, real)
    hit = torch.where(here, loss_gradient, torch.zeros_like(loss_gradient)).neg_()
    of_rows = (log_sum, hit, place.squeeze(-1), *numbers)
    columns = (x.reshape(-1, 1).split(ROWS) for x in of_rows)
    rows = logits[..., :real].flatten(0, -2)
    for part, its_log_sum, its_hit, its_place, *its_numbers in zip(rows.split(ROWS), *columns, strict=True):
        gradient = part.to(log_sum.dtype)  # the logits themselves where the dtypes agree
        share = factor(gradient, *its_numbers)
        gradient.sub_(its_log_sum).exp_().mul_(share).scatter_add_(-1, its_place, its_hit)
        if gradient.data_ptr() != part.data_ptr():
            part.copy_(gradient)


def combine_statistics(pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Global (log_sum [..], target_logit [..]) of the ranks' pairs [ranks, 2, ..], summed in rank order.

    log_sum = m + log(sum over ranks of exp(log_sum_r - m)), m the largest; -inf where every rank's is.
    """
    largest = pairs[:, 0].amax(0)
    largest = torch.where(largest == float("-inf"), torch.zeros_like(largest), largest)
    total = in_rank_order(torch.exp(pairs[:, 0] - largest))
    # At most one rank has the label; the others' zeros change nothing.
    return largest + torch.log(total), pairs[:, 1].sum(0)


def in_rank_order(parts: Tensor) -> Tensor:
    """The sum [..] of the ranks' parts [ranks, ..], one after another."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _place(target: Tensor, real: int) -> tuple[Tensor, Tensor]:
    """Whether the label is among this rank's columns [..], and a column that can be asked for [.., 1]."""
    here = (target >= 0) & (target < real)
    return here, torch.where(here, target, torch.zeros_like(target)).unsqueeze(-1)
