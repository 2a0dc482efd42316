"""What tensor parallelism splits over the vocabulary: the embedding, the cross-entropy, the output projection with it.

A rank holds the rows [rank V/tp, (rank + 1) V/tp) of the embedding and of the projection, and so those columns of the
logits; V is padded to a multiple of 16 tp, so that rows of logits begin at aligned places. The loss takes one
all-gather of two numbers a token. It comes in two forms:

    whole       logits [T, B, V/tp] exist, and their gradient is written over them (`vocabulary_cross_entropy`)
    in chunks   a chunk of tokens goes through projection, loss and both gradients before the next one's logits are
                made, all in forward: full logits never exist (`chunked_cross_entropy`)
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from megatron_lite.kernels.choice import Kernels
from megatron_lite.kernels.linear_cross_entropy import (
    Projection,
    Seams,
    linear_cross_entropy,
    linear_cross_entropy_with_gradients,
)
from megatron_lite.kernels.reference.cross_entropy import combine_statistics
from megatron_lite.parallel.collectives import Communicator
from megatron_lite.parallel.tensor import Region
from megatron_lite.parallel.zero import Weight


def vocabulary_embedding(tokens: Tensor, weight: Weight, region: Region, anchor: Tensor) -> Tensor:
    """Tokens [T, B] -> [T or T/tp, B, H]: each rank looks up its own rows, the sum leaves as from a region.

    `anchor` is any tensor that requires a gradient; it makes autograd call this operation's backward.
    """
    return _VocabularyEmbedding.apply(tokens, weight, region, anchor)


class _VocabularyEmbedding(Function):
    @staticmethod
    def forward(ctx, tokens, weight, region, anchor):
        rows = weight.data.shape[0]
        local = tokens - region.tensor.rank * rows
        mine = (local >= 0) & (local < rows)
        ctx.save_for_backward(local)
        ctx.weight, ctx.region = weight, region
        embedded = weight.data[torch.where(mine, local, 0)] * mine.unsqueeze(-1).to(weight.data.dtype)
        return region.leave(embedded, "embedding.leave").wait()

    @staticmethod
    def backward(ctx, gradient):
        local, weight = ctx.saved_tensors[0].detach(), ctx.weight  # a queue would keep its graph
        full = ctx.region.leave_backward(gradient, "embedding.leave.backward").wait()
        weight.run_or_defer(lambda: weight.add_rows(local.flatten(), full.flatten(0, -2)))
        return None, None, None, None


@dataclass(frozen=True)
class Vocabulary:
    """The token ids that count, [0, size), the ranks over which their columns are split, and the kernels."""

    size: int
    tensor: Communicator
    kernels: Kernels

    def real(self, columns: int) -> int:
        """How many of a rank's `columns` belong to a token id; the rest is padding."""
        return min(max(self.size - self.tensor.rank * columns, 0), columns)

    def local(self, labels: Tensor, columns: int) -> Tensor:
        """The column of each label on this rank; -1 where it is another's or does not count."""
        column = labels - self.tensor.rank * columns
        return torch.where((column >= 0) & (column < self.real(columns)), column, -1)


def vocabulary_cross_entropy(logits: Tensor, labels: Tensor, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """Per-token loss and log-sum-exp, each [T, B] in float32 (float64 for float64), from local logits [T, B, V/tp].

    Labels outside the vocabulary have loss 0: they are not counted. Columns past its size are padding: outside the
    softmax, gradient 0. One all-gather carries two numbers a token, the local log-sum-exp and the local target logit,
    combined in rank order. Backward writes the gradient over the logits.
    """
    return _VocabularyCrossEntropy.apply(logits, labels, vocabulary)


class _VocabularyCrossEntropy(Function):
    @staticmethod
    def forward(ctx, logits, labels, vocabulary):
        columns, kernels = logits.shape[-1], vocabulary.kernels
        target = vocabulary.local(labels, columns)
        pair = torch.stack(kernels.cross_entropy_statistics(logits, target, vocabulary.real(columns)))
        pairs = vocabulary.tensor.all_gather(pair.unsqueeze(0), "cross_entropy.combine").wait()  # [tp, 2, T, B]
        log_sum, target_logit = combine_statistics(pairs)
        counted = (labels >= 0) & (labels < vocabulary.size)
        loss = torch.where(counted, log_sum - target_logit, torch.zeros_like(log_sum))
        ctx.save_for_backward(logits, log_sum, target, counted)
        ctx.vocabulary = vocabulary
        return loss, log_sum

    @staticmethod
    def backward(ctx, loss_gradient, log_sum_gradient):
        logits, log_sum, target, counted = ctx.saved_tensors
        loss_gradient = torch.where(counted, loss_gradient, torch.zeros_like(loss_gradient))
        gradient, vocabulary = logits.detach(), ctx.vocabulary
        vocabulary.kernels.cross_entropy_gradient_(
            gradient, target, vocabulary.real(logits.shape[-1]), log_sum, loss_gradient, log_sum_gradient
        )
        return gradient, None, None


def projection_of(weight: Weight, vocab_size: int, region: Region, chunk: int) -> Projection:
    """The output projection while its weight is full: `chunk` tokens of each rank that holds some at a time."""
    tensor = region.tensor
    return Projection(
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
    )


def chunked_cross_entropy(
    h: Tensor, labels: Tensor, projection: Projection, count: Tensor, z_loss: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(objective, sum of losses, z_loss * sum of lse^2) of h [T or T/tp, B, H] and labels [T, B].

    The objective is the two sums / count. Where h needs a gradient, forward works it out and adds the weight's: under a
    split backward too, since what is put off would keep the logits.
    """
    scale = 1 / count.to(torch.promote_types(h.dtype, torch.float32))
    if h.requires_grad:
        return _ChunkedCrossEntropy.apply(h, labels, projection, scale, z_loss)
    loss, log_sum = linear_cross_entropy(h, labels, projection)
    counted = (labels >= 0) & (labels < projection.vocab_size)
    total, z_total = loss.sum(), z_loss * torch.where(counted, log_sum, 0.0).square().sum()
    return (total + z_total) * scale, total, z_total


class _ChunkedCrossEntropy(Function):
    @staticmethod
    def forward(ctx, h, labels, projection, scale, z_loss):
        loss, z_total, dh = linear_cross_entropy_with_gradients(h, labels, projection, scale, z_loss)
        ctx.save_for_backward(dh)
        ctx.mark_non_differentiable(loss, z_total)
        return (loss + z_total) * scale, loss, z_total

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient, loss_gradient, z_gradient):
        # The objective is where a backward begins: its gradient is 1, as the weight's took for granted.
        (dh,) = ctx.saved_tensors
        return dh, None, None, None, None
