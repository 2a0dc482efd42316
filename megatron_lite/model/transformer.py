"""The decoder-only transformer, written once for every layout.

    Embedding -> Block x layers -> Head          each a unit: what ZeRO gathers, recomputes and walks over at once

Between units activations are [T/tp, B, H] under sequence parallelism, [T, B, H] without. A block's four collectives
stand in its four products: enter, leave, enter, leave (parallel/tensor.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from megatron_lite.config import ModelConfig
from megatron_lite.model.operations import AttentionMetadata, add_norm, causal_attention, norm, rotate, swiglu
from megatron_lite.parallel.pipeline.stage import Recompute
from megatron_lite.parallel.tensor import Region, enter_linear, linear_leave
from megatron_lite.parallel.vocabulary import (
    Vocabulary,
    chunked_cross_entropy,
    projection_of,
    vocabulary_cross_entropy,
    vocabulary_embedding,
)
from megatron_lite.parallel.zero import Shards, Weight

Projection = Callable[[Tensor], Tensor]


@dataclass
class Microbatch:
    """What every unit of a stage may read: tokens and labels [T, B], what attention sees, and the loss's divisor.

    Labels outside the vocabulary are not counted. `count` is the step's global number of counted tokens, so that
    gradients of all microbatches and ranks add up to the mean's. The head leaves its sums in `loss` and `z_loss`.
    """

    tokens: Tensor
    labels: Tensor
    metadata: AttentionMetadata
    count: Tensor
    loss: Tensor | None = None
    z_loss: Tensor | None = None


class Embedding:
    """Token embedding, split over the vocabulary."""

    def __init__(self, shards: Shards, region: Region):
        self.shards, self.region = (shards,), region
        (self.embed,) = shards.weights
        self.recompute: Recompute = "none"

    def forward(self, x: Tensor, batch: Microbatch) -> Tensor:
        return vocabulary_embedding(batch.tokens, self.embed, self.region, anchor=x)


class Block:
    """Pre-norm attention and SwiGLU, each added to its input (Llama, arXiv 2302.13971, section 2.2)."""

    def __init__(self, model: ModelConfig, shards: Shards, region: Region, recompute: Recompute):
        self.model, self.shards, self.region, self.recompute = model, (shards,), region, recompute
        self.kernels = shards.numerics.kernels
        self.queries = model.num_attention_heads // model.num_key_value_heads  # of a key-value head
        self.qkv, self.o, self.gate_up, self.down, self.attention_norm, self.mlp_norm = shards.weights

    def forward(self, x: Tensor, batch: Microbatch) -> Tensor:
        return self.transform(
            x, partial(self._rotate, metadata=batch.metadata), partial(self._attention, metadata=batch.metadata)
        )

    def transform(self, x: Tensor, rotate: Projection, attention: Projection) -> Tensor:
        """The block around any attention; generation passes one with a cache.

        `rotate` turns packed queries and keys by their positions, in place; `attention` takes [T, B, packed QKV] to
        [T, B, heads D] and may run twice, when it is recomputed.
        """
        region, eps, again = self.region, self.model.rms_norm_eps, self.recompute == "selective"
        h, x = norm(x, self.attention_norm, eps)
        h = rotate(enter_linear(h, self.qkv, region, "attention.enter"))
        h = linear_leave(h, attention, self.o, region, "attention.leave", again)
        h, x = add_norm(h, x, self.mlp_norm, eps)
        h = enter_linear(h, self.gate_up, region, "mlp.enter")
        return linear_leave(h, partial(swiglu, kernels=self.kernels), self.down, region, "mlp.leave", again).add_(x)

    def _rotate(self, qkv: Tensor, metadata: AttentionMetadata) -> Tensor:
        return rotate(qkv, metadata.angles, self.queries, self.model.head_dim, self.kernels)

    def _attention(self, qkv: Tensor, metadata: AttentionMetadata) -> Tensor:
        return causal_attention(qkv, self.model.head_dim, self.queries, metadata, self.kernels)


@dataclass(frozen=True)
class LossRule:
    """z_loss * log^2 Z keeps the softmax's normalizer near 1 (PaLM, arXiv 2204.02311, section 5). With `chunk`, so many
    tokens of each rank go through projection and loss at a time; without, all of a microbatch's.
    """

    z_loss: float
    chunk: int | None


class Head:
    """Final norm, output projection, cross-entropy. On the embedding's stage a tied head uses its weight."""

    def __init__(self, model: ModelConfig, shards: Shards, region: Region, tied: Shards | None, rule: LossRule):
        self.model, self.region, self.rule = model, region, rule
        self.shards = (shards,) if tied is None else (shards, tied)
        self.norm: Weight = shards.weights[-1]
        self.projection: Weight = shards.weights[0] if tied is None else tied.weights[0]
        self.recompute: Recompute = "none"

    def logits(self, x: Tensor) -> Tensor:
        """Local logits [T, B, V/tp]."""
        return self._project(self._normed(x))

    def forward(self, x: Tensor, batch: Microbatch) -> Tensor:
        """The microbatch's share of the objective, a scalar: (sum of losses + z_loss * sum of lse^2) / count."""
        h = self._normed(x)
        if self.rule.chunk is None:
            return self._whole(h, batch)
        projection = projection_of(self.projection, self.model.vocab_size, self.region, self.rule.chunk)
        arguments = h, batch.labels, projection, batch.count, self.rule.z_loss
        objective, batch.loss, batch.z_loss = chunked_cross_entropy(*arguments)
        return objective

    def _normed(self, x: Tensor) -> Tensor:
        return norm(x, self.norm, self.model.rms_norm_eps)[0]

    def _project(self, h: Tensor) -> Tensor:
        return enter_linear(h, self.projection, self.region, "head.enter")

    def _whole(self, h: Tensor, batch: Microbatch) -> Tensor:
        vocabulary = Vocabulary(self.model.vocab_size, self.region.tensor, self.projection.kernels)
        loss, log_sum = vocabulary_cross_entropy(self._project(h), batch.labels, vocabulary)
        counted = (batch.labels >= 0) & (batch.labels < self.model.vocab_size)
        z_loss = self.rule.z_loss * torch.where(counted, log_sum, torch.zeros_like(log_sum)).square()
        batch.loss, batch.z_loss = loss.detach().sum(), z_loss.detach().sum()
        return (loss.sum() + z_loss.sum()) / batch.count
