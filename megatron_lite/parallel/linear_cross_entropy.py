"""The output projection and its cross-entropy, a chunk of tokens at a time: full logits never exist.

With h [T, H] and this rank's rows W [V_local, H] of the projection, logits = h W^T would be [T, V_local], the largest
tensor of a step, once for the values and once for their gradient. Here a chunk's logits become their own gradient and
are gone before the next chunk's are made:

    logits = h_c W^T                 [n, V_local]
    statistics, log_sum, loss        [n]
    dlogits, in the logits' place    [n, V_local]      (kernels/cross_entropy.py has the formulas)
    dh_c = dlogits W                 [n, H]
    dW += dlogits^T h_c              in float32

`linear_cross_entropy_with_gradients` does all of it in forward, 3 products a token. It has to know what each token's
loss counts in the objective: in pretraining 1 / the number of tokens. What it returns has no place in an autograd
graph: no gradient could come in that it would have to heed. `linear_cross_entropy` knows nothing: it keeps h and the
log-sums, returns each token's loss, and makes the logits again in backward, 4 products. That is what evaluation (which
has no backward), DPO and PPO need.

Ranks meet in three places, `Seams`. Under sequence parallelism a rank holds some of the tokens'
h and some of the vocabulary's rows; every rank sees every token's label:

    gather     h_c [n, H] of a rank      ->  h_c [R n, H] of all R ranks, in rank order
    combine    statistics [1, 2, N]      ->  [R, 2, N]
    scatter    dh_c [R n, H], a partial  ->  [n, H], summed over ranks, this rank's tokens

A seam starts a collective and returns what to wait for, so that the next chunk's h arrives, and the last chunk's dh
leaves, behind the products. A rank of its own passes its tensors through: ALONE. Without sequence parallelism `gather`
passes through and `scatter` is an all-reduce. So a chunk of n is n tokens of each rank, and the labels of chunk c are
columns of labels [R, T / R].
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from megatron_lite.kernels.checks import FLOATS, check
from megatron_lite.kernels.choice import Kernels
from megatron_lite.parallel.statistics import LOSS, Numbers, Statistics
from megatron_lite.parallel.tensor import Region
from megatron_lite.parallel.vocabulary import counted
from megatron_lite.parallel.weights import Weight


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
class ChunkedProjection:
    """A rank's rows of the output projection, from the vocabulary's `first` on; rows past `vocab_size` are padding."""

    weight: Weight
    first: int
    vocab_size: int
    chunk: int  # tokens of each rank at a time
    kernels: Kernels
    seams: Seams = ALONE
    statistics: Statistics = LOSS

    @property
    def real(self) -> int:
        """How many of the rows are no padding."""
        return min(max(self.vocab_size - self.first, 0), self.weight.data.shape[0])


def projection_of(
    weight: Weight, vocab_size: int, region: Region, chunk: int, statistics: Statistics = LOSS
) -> ChunkedProjection:
    """The output projection while its weight is full: `chunk` tokens of each rank that holds some at a time."""
    tensor = region.tensor
    return ChunkedProjection(
        weight=weight,
        first=tensor.rank * weight.data.shape[0],
        vocab_size=vocab_size,
        chunk=chunk,
        kernels=weight.kernels,
        seams=Seams(
            gather=lambda h: region.enter(h, "head.chunk"),
            combine=lambda pair: tensor.all_gather(pair, "cross_entropy.chunk"),
            scatter=lambda dh: region.enter_backward(dh, "head.chunk.backward"),
        ),
        statistics=statistics,
    )


def linear_cross_entropy(h: Tensor, labels: Tensor, projection: ChunkedProjection) -> Numbers:
    """Each token's loss and log-sum, and what else the projection's statistics give, in labels' shape and float32
    (float64 for float64); logits again in backward.

    h [.., H] holds this rank's tokens, labels [..] those of all ranks, one rank's after another's. Labels outside
    [0, vocab_size) have loss 0. Backward gives dh, and adds the weight's gradient to its sum. Raises ValueError for
    shapes, dtypes and devices that do not fit together.
    """
    _check(h, labels, projection)
    outputs = _LinearCrossEntropy.apply(_rows(h), _by_rank(labels, h), projection)
    return tuple(output.view(labels.shape) for output in outputs)


@torch.no_grad()
def linear_cross_entropy_with_gradients(
    h: Tensor, labels: Tensor, projection: ChunkedProjection, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, log-sum, dh [.., H]), the first two of each token in labels' shape, as `linear_cross_entropy` has them.

    dh, and what is added to the weight's gradient, are the gradients of sum(weights[0] loss + weights[1] log_sum^2)
    over the tokens that count; weights are in labels' shape. In the autograd graph it is the caller who hands dh on.
    """
    _check(h, labels, projection)
    rows, shape = _rows(h), labels.shape
    labels = _by_rank(labels, h)
    whole, dh = _Whole(labels), _Leaving(rows)
    of_loss, of_square = (weight.to(_exact(h)).reshape(labels.shape) for weight in weights)
    for place, here in _arriving(rows, projection):
        chunk = _Chunk(here, labels[:, place].flatten(), projection)
        (loss, log_sum), kept = chunk.outputs()
        shares = of_loss[:, place].flatten(), 2 * of_square[:, place].flatten() * log_sum
        dh.put(place, chunk.gradient(kept, shares))
        del chunk  # before the next one's logits are made
        whole.put(place, (loss, log_sum))
    loss, log_sum = (numbers.view(shape) for numbers in whole.numbers)
    return loss, log_sum, dh.wait().view(h.shape)


class _Chunk:
    """Some tokens' logits [n, V_local], and what is worked out of them, each [n]."""

    def __init__(self, h: Tensor, labels: Tensor, projection: ChunkedProjection):
        self.h, self.projection = h, projection
        self.counts, self.target = counted(labels, projection.vocab_size), labels - projection.first
        self.logits = torch.mm(h, projection.weight.data.t())

    def outputs(self) -> tuple[Numbers, Numbers]:
        """(what is given out, what a backward needs), of all ranks' statistics."""
        projection, statistics = self.projection, self.projection.statistics
        mine = statistics.local(projection.kernels, self.logits, self.target, projection.real)
        combined = statistics.combined(projection.seams.combine(mine.unsqueeze(0)).wait())
        return statistics.outputs(combined, self.counts), statistics.kept(combined)

    def gradient(self, kept: Sequence[Tensor], gradients: Sequence[Tensor]) -> Arriving:
        """Starts dh on its way and adds dW, from the outputs' gradients, each [n]. The logits are used up.

        `kept` is every token's own: with another log-sum exp(logit - log_sum) may be infinite, and 0 times it is no
        number.
        """
        projection, logits = self.projection, self.logits
        gradients = [torch.where(self.counts, x, 0.0) for x in gradients]
        projection.statistics.gradient_(projection.kernels, logits, self.target, projection.real, kept, gradients)
        leaving = projection.seams.scatter(torch.mm(logits, projection.weight.data))
        if projection.weight.trained:
            # Now, even where a split backward defers such products: what is deferred would keep the logits.
            projection.weight.add_product(logits, self.h)
        return leaving


class _LinearCrossEntropy(Function):
    @staticmethod
    def forward(ctx, h, labels, projection):
        outputs, kept = _Whole(labels), _Whole(labels)
        for place, here in _arriving(h, projection):
            chunk = _Chunk(here, labels[:, place].flatten(), projection)
            for whole, numbers in zip((outputs, kept), chunk.outputs(), strict=True):
                whole.put(place, numbers)
            del chunk  # before the next one's logits are made
        ctx.save_for_backward(h, labels, *kept.numbers)
        ctx.projection = projection
        ctx.mark_non_differentiable(*outputs.numbers[3:])
        return tuple(outputs.numbers)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        h, labels, *kept = ctx.saved_tensors
        projection = ctx.projection
        dh = _Leaving(h)
        for place, here in _arriving(h, projection):
            of_kept, of_outputs = ([x[:, place].flatten() for x in some] for some in (kept, gradients))
            chunk = _Chunk(here, labels[:, place].flatten(), projection)
            dh.put(place, chunk.gradient(of_kept, of_outputs))
            del chunk  # before the next one's logits are made
        return dh.wait(), None, None


class _Whole:
    """Numbers of all tokens [R, T / R], put together of chunks' [R n]."""

    def __init__(self, labels: Tensor):
        self.shape = labels.shape
        self.numbers: list[Tensor] = []

    def put(self, place: slice, chunk: Sequence[Tensor]) -> None:
        self.numbers = self.numbers or [x.new_empty(self.shape) for x in chunk]
        for whole, part in zip(self.numbers, chunk, strict=True):
            whole[:, place] = part.view(self.shape[0], -1)


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


def _arriving(h: Tensor, projection: ChunkedProjection) -> Iterator[tuple[slice, Tensor]]:
    """Each chunk's place among this rank's tokens, and its h of all ranks; the next is on its way meanwhile."""
    arriving = projection.seams.gather(h[: projection.chunk])
    for start in range(0, h.shape[0], projection.chunk):
        stop = start + projection.chunk
        here = arriving.wait()
        if stop < h.shape[0]:
            arriving = projection.seams.gather(h[stop : stop + projection.chunk])
        yield slice(start, stop), here


def _check(h: Tensor, labels: Tensor, projection: ChunkedProjection) -> None:
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


def _exact(h: Tensor) -> torch.dtype:
    return torch.promote_types(h.dtype, torch.float32)
