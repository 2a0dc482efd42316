"""The output projection and its cross-entropy, a chunk of tokens at a time: full logits never exist.

With h [T, H] and this rank's rows W [V_local, H] of the projection, logits = h W^T would be [T, V_local], the largest
tensor of a step, once for the values and once for their gradient. Here a chunk's logits become their own gradient and
are gone before the next chunk's are made:

    logits = h_c W^T                 [n, V_local]
    statistics, log_sum, loss        [n]
    dlogits, in the logits' place    [n, V_local]      (kernels/cross_entropy.py has the formulas)
    dh_c = dlogits W                 [n, H]
    dW += dlogits^T h_c              in float32

`linear_cross_entropy_with_gradients` does all of it in forward, 3 products a token. It has to know what a token's loss
counts in the objective: in pretraining 1 / the number of tokens. `linear_cross_entropy` knows nothing: it keeps h and
the log-sums, returns each token's loss, and makes the logits again in backward, 4 products. That is what evaluation
(which has no backward), DPO and PPO need.

Ranks meet in three places, which are the caller's: `Seams`. Under sequence parallelism a rank holds some of the tokens'
h and some of the vocabulary's rows; every rank sees every token's label:

    gather     h_c [n, H] of a rank      ->  h_c [R n, H] of all R ranks, in rank order
    combine    statistics [1, 2, N]      ->  [R, 2, N]
    scatter    dh_c [R n, H], a partial  ->  [n, H], summed over ranks, this rank's tokens

A seam starts a collective and returns what to wait for, so that the next chunk's h arrives, and the last chunk's dh
leaves, behind the products. A rank of its own passes its tensors through: ALONE. Without sequence parallelism `gather`
passes through and `scatter` is an all-reduce. So a chunk of n is n tokens of each rank, and the labels of chunk c are
columns of labels [R, T / R].
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from megatron_lite.kernels.checks import FLOATS, check
from megatron_lite.kernels.choice import Kernels
from megatron_lite.kernels.reference.cross_entropy import combine_statistics
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class Weight(Protocol):
    """A weight [rows, columns], asked for in every pass, and the sum of its gradients, kept elsewhere in float32."""

    @property
    def data(self) -> Tensor: ...

    def add_product(self, output_gradient: Tensor, x: Tensor) -> None:
        """gradient += output_gradient [N, rows]^T x [N, columns]."""


class Arriving(Protocol):
    """What a collective will have brought."""

    def wait(self) -> Tensor: ...


@dataclass(frozen=True)
class Here:
    """What needed no collective."""

    result: Tensor

    def wait(self) -> Tensor:
        return self.result


@dataclass(frozen=True)
class Seams:
    """Where ranks meet; the module's docstring gives the shapes."""

    gather: Callable[[Tensor], Arriving]
    combine: Callable[[Tensor], Arriving]
    scatter: Callable[[Tensor], Arriving]


ALONE = Seams(Here, Here, Here)


@dataclass(frozen=True)
class Projection:
    """A rank's rows of the output projection, from the vocabulary's `first` on; rows past `vocab_size` are padding."""

    weight: Weight
    first: int
    vocab_size: int
    chunk: int  # tokens of each rank at a time
    kernels: Kernels
    seams: Seams = ALONE

    @property
    def real(self) -> int:
        """How many of the rows are no padding."""
        return min(max(self.vocab_size - self.first, 0), self.weight.data.shape[0])


def linear_cross_entropy(h: Tensor, labels: Tensor, projection: Projection) -> tuple[Tensor, Tensor]:
    """Each token's loss and log-sum, in labels' shape and float32 (float64 for float64); logits again in backward.

    h [.., H] holds this rank's tokens, labels [..] those of all ranks, one rank's after another's. Labels outside
    [0, vocab_size) have loss 0. Backward gives dh, and adds the weight's gradient to its sum. Raises ValueError for
    shapes, dtypes and devices that do not fit together.
    """
    _check(h, labels, projection)
    loss, log_sum = _LinearCrossEntropy.apply(_rows(h), _by_rank(labels, h), projection)
    return loss.view(labels.shape), log_sum.view(labels.shape)


@torch.no_grad()
def linear_cross_entropy_with_gradients(
    h: Tensor, labels: Tensor, projection: Projection, scale: Tensor | float, z_loss: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """(sum of losses, z_loss times the sum of log_sum^2, dh [.., H]), both sums over the tokens that count.

    dh, and what is added to the weight's gradient, are the gradients of (the first + the second) times `scale`: in the
    autograd graph it is the caller who hands dh on.
    """
    _check(h, labels, projection)
    rows, labels = _rows(h), _by_rank(labels, h)
    losses, log_sums = _per_token(h, labels), _per_token(h, labels)
    dh = _Leaving(rows)
    for place, here in _arriving(rows, projection):
        tokens = labels[:, place].flatten()
        loss, log_sum, leaving = _chunk_and_gradient(here, tokens, projection, scale, z_loss)
        dh.put(place, leaving)
        _keep(losses, place, loss)
        _keep(log_sums, place, log_sum)
    return losses.sum(), z_loss * log_sums.square().sum(), dh.wait().view(h.shape)


def _chunk_and_gradient(h, labels, projection, scale, z_loss) -> tuple[Tensor, Tensor, Arriving]:
    logits = chunk_logits(h, projection.weight.data)
    loss, log_sum, counted = token_losses(logits, labels, projection)
    counting = torch.where(counted, log_sum, 0.0)
    gradients = counted.to(log_sum.dtype) * scale, 2 * z_loss * counting * scale
    # Every token's own log-sum: with another one exp(logit - log_sum) may be infinite, and 0 times it is no number.
    return loss, counting, chunk_gradient(h, logits, labels, log_sum, gradients, projection)


def chunk_logits(h: Tensor, weight: Tensor) -> Tensor:
    """h [n, H] -> logits [n, V_local]."""
    return torch.mm(h, weight.t())


def token_losses(logits: Tensor, labels: Tensor, projection: Projection) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, log-sum and whether the label counts, each [n], of logits [n, V_local] and labels [n]."""
    target = labels - projection.first
    pair = torch.stack(projection.kernels.cross_entropy_statistics(logits, target, projection.real))
    log_sum, target_logit = combine_statistics(projection.seams.combine(pair.unsqueeze(0)).wait())
    counted = (labels >= 0) & (labels < projection.vocab_size)
    return torch.where(counted, log_sum - target_logit, 0.0), log_sum, counted


def chunk_gradient(
    h: Tensor, logits: Tensor, labels: Tensor, log_sum: Tensor, gradients: tuple[Tensor, Tensor], projection: Projection
) -> Arriving:
    """Starts dh on its way and adds dW, from the gradients of loss and log-sum, each [n]. The logits are used up."""
    target = labels - projection.first
    projection.kernels.cross_entropy_gradient_(logits, target, projection.real, log_sum, *gradients)
    leaving = projection.seams.scatter(torch.mm(logits, projection.weight.data))
    # Now, even where a split backward defers such products: what is deferred would keep the logits.
    projection.weight.add_product(logits, h)
    return leaving


class _LinearCrossEntropy(Function):
    @staticmethod
    def forward(ctx, h, labels, projection):
        losses, log_sums = _per_token(h, labels), _per_token(h, labels)
        for place, here in _arriving(h, projection):
            loss, log_sum, _ = token_losses(
                chunk_logits(here, projection.weight.data), labels[:, place].flatten(), projection
            )
            _keep(losses, place, loss)
            _keep(log_sums, place, log_sum)
        ctx.save_for_backward(h, labels, log_sums)
        ctx.projection = projection
        return losses, log_sums

    @staticmethod
    @once_differentiable
    def backward(ctx, loss_gradient, log_sum_gradient):
        h, labels, log_sums = ctx.saved_tensors
        projection = ctx.projection
        counted = (labels >= 0) & (labels < projection.vocab_size)
        loss_gradient = torch.where(counted, loss_gradient, 0.0)
        dh = _Leaving(h)
        for place, here in _arriving(h, projection):
            tokens, log_sum = labels[:, place].flatten(), log_sums[:, place].flatten()
            gradients = loss_gradient[:, place].flatten(), log_sum_gradient[:, place].flatten()
            logits = chunk_logits(here, projection.weight.data)
            dh.put(place, chunk_gradient(here, logits, tokens, log_sum, gradients, projection))
            del logits  # before the next chunk's are made
        return dh.wait(), None, None


class _Leaving:
    """dh [n, H] as its chunks come back, each waited for when the next has been started."""

    def __init__(self, h: Tensor):
        self.whole = torch.empty_like(h)
        self.last: tuple[slice, Arriving] | None = None

    def put(self, place: slice, chunk: Arriving) -> None:
        self.wait()
        self.last = place, chunk

    def wait(self) -> Tensor:
        if self.last is not None:
            place, chunk = self.last
            self.whole[place] = chunk.wait()
        return self.whole


def _arriving(h: Tensor, projection: Projection) -> Iterator[tuple[slice, Tensor]]:
    """Each chunk's place among this rank's tokens, and its h of all ranks; the next is on its way meanwhile."""
    arriving = projection.seams.gather(h[: projection.chunk])
    for start in range(0, h.shape[0], projection.chunk):
        stop = start + projection.chunk
        here = arriving.wait()
        if stop < h.shape[0]:
            arriving = projection.seams.gather(h[stop : stop + projection.chunk])
        yield slice(start, stop), here


def _check(h: Tensor, labels: Tensor, projection: Projection) -> None:
    name, weight = "linear_cross_entropy", projection.weight.data
    check(name, "h", h, h, dtype=FLOATS)
    check(name, "weight", weight, h, (*weight.shape[:1], *h.shape[-1:]), h.dtype)
    check(name, "labels", labels, h)
    if projection.chunk < 1:
        raise ValueError(f"{name}: chunk is {projection.chunk}, must be at least 1")


def _rows(h: Tensor) -> Tensor:
    return h.reshape(-1, h.shape[-1])


def _by_rank(labels: Tensor, h: Tensor) -> Tensor:
    """Labels [R, T / R]: a row for each rank that h is gathered from. Raises ValueError where they do not divide."""
    tokens = h.shape[:-1].numel()
    if labels.dtype != torch.int64 or labels.numel() % max(tokens, 1):
        found = f"{labels.dtype} of {labels.numel()} tokens"
        raise ValueError(f"linear_cross_entropy: labels is {found}, must be int64 of {tokens} tokens for each rank")
    return labels.reshape(-1, max(tokens, 1))


def _per_token(h: Tensor, labels: Tensor) -> Tensor:
    return h.new_empty(labels.shape, dtype=torch.promote_types(h.dtype, torch.float32))


def _keep(whole: Tensor, place: slice, chunk: Tensor) -> None:
    """Put a chunk's numbers [R n] among all tokens' [R, T / R]."""
    whole[:, place] = chunk.view(whole.shape[0], -1)
