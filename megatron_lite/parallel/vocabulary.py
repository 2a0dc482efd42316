"""What tensor parallelism splits over the vocabulary: the embedding, the cross-entropy, the output projection with it.

A rank holds the rows [rank V/tp, (rank + 1) V/tp) of the embedding and of the projection, and so those columns of the
logits; V is padded to a multiple of 16 tp, so that rows of logits begin at aligned places. The loss takes one
all-gather of two numbers a token. Here logits [T, B, V/tp] exist, and their gradient is written over them;
linear_cross_entropy.py goes through projection and loss a chunk of tokens at a time.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import Function

from megatron_lite.kernels.choice import Kernels
from megatron_lite.parallel.collectives import Communicator
from megatron_lite.parallel.statistics import LOSS, Numbers, Statistics
from megatron_lite.parallel.tensor import Region
from megatron_lite.parallel.weights import Weight


def vocabulary_embedding(tokens: Tensor, weight: Weight, region: Region, anchor: Tensor | None) -> Tensor:
    """Tokens [T, B] -> [T or T/tp, B, H]: each rank looks up its own rows, the sum leaves as from a region.

    `anchor` is any tensor that requires a gradient; it makes autograd call this operation's backward (None: there
    will be none).
    """
    return _VocabularyEmbedding.apply(tokens, weight, region, anchor)


class _VocabularyEmbedding(Function):
    @staticmethod
    def forward(ctx, tokens, weight, region, anchor):
        rows = weight.data.shape[0]
        local = tokens - region.tensor.rank * rows
        mine = (local >= 0) & (local < rows)
        ctx.weight, ctx.region = weight, region
        if weight.trained:
            ctx.save_for_backward(local)
        embedded = weight.data[torch.where(mine, local, 0)] * mine.unsqueeze(-1).to(weight.data.dtype)
        return region.leave(embedded, "embedding.leave").wait()

    @staticmethod
    def backward(ctx, gradient):
        weight = ctx.weight
        if not weight.trained:
            return None, None, None, None
        local = ctx.saved_tensors[0].detach()  # a queue would keep its graph
        full = ctx.region.leave_backward(gradient, "embedding.leave.backward").wait()
        weight.run_or_defer(lambda: weight.add_rows(local.flatten(), full.flatten(0, -2)))
        return None, None, None, None


def counted(labels: Tensor, vocab_size: int) -> Tensor:
    """Which labels count: those of the vocabulary."""
    return (labels >= 0) & (labels < vocab_size)


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


def vocabulary_cross_entropy(
    logits: Tensor, labels: Tensor, vocabulary: Vocabulary, statistics: Statistics = LOSS
) -> Numbers:
    """Per-token loss and log-sum-exp (and what else `statistics` gives), each [T, B] in float32 (float64 for float64),
    from local logits [T, B, V/tp].

    Labels outside the vocabulary have loss 0: they are not counted. Columns past its size are padding: outside the
    softmax, gradient 0. One all-gather carries a few numbers a token, combined in rank order. Backward writes the
    gradient over the logits.
    """
    return _VocabularyCrossEntropy.apply(logits, labels, vocabulary, statistics)


class _VocabularyCrossEntropy(Function):
    @staticmethod
    def forward(ctx, logits, labels, vocabulary, statistics):
        columns = logits.shape[-1]
        target = vocabulary.local(labels, columns)
        mine = statistics.local(vocabulary.kernels, logits, target, vocabulary.real(columns))
        ranks = vocabulary.tensor.all_gather(mine.unsqueeze(0), "cross_entropy.combine").wait()  # [tp, n, T, B]
        combined = statistics.combined(ranks)
        counts = counted(labels, vocabulary.size)
        outputs = statistics.outputs(combined, counts)
        ctx.save_for_backward(logits, target, counts, *statistics.kept(combined))
        ctx.vocabulary, ctx.statistics = vocabulary, statistics
        ctx.mark_non_differentiable(*outputs[3:])
        return outputs

    @staticmethod
    def backward(ctx, loss_gradient, log_sum_gradient, *others):
        logits, target, counts, *kept = ctx.saved_tensors
        loss_gradient, *further = (torch.where(counts, x, torch.zeros_like(x)) for x in (loss_gradient, *others))
        logits, vocabulary = logits.detach(), ctx.vocabulary
        real, gradients = vocabulary.real(logits.shape[-1]), (loss_gradient, log_sum_gradient, *further)
        ctx.statistics.gradient_(vocabulary.kernels, logits, target, real, kept, gradients)
        return logits, None, None, None
