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

from megatron_lite.config import ModelConfig, Recompute
from megatron_lite.model.batch import Microbatch
from megatron_lite.model.objective import Objective, Outputs
from megatron_lite.model.operations import AttentionMetadata, add_norm, causal_attention, norm, rotate, swiglu
from megatron_lite.parallel.context import ContextSplit, whole_sequences
from megatron_lite.parallel.linear_cross_entropy import (
    ChunkedProjection,
    linear_cross_entropy,
    linear_cross_entropy_with_gradients,
    projection_of,
)
from megatron_lite.parallel.pipeline.stage import End
from megatron_lite.parallel.statistics import LOSS
from megatron_lite.parallel.tensor import Region, enter_linear, linear_leave
from megatron_lite.parallel.vocabulary import Vocabulary, vocabulary_cross_entropy, vocabulary_embedding
from megatron_lite.parallel.zero import Shards, Weight

Projection = Callable[[Tensor], Tensor]


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
            x, partial(self._rotate, metadata=batch.attention), partial(self._attention, metadata=batch.attention)
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
class Made:
    """What the head made of a microbatch: the objective's numbers, and where nothing is trained the outputs too."""

    numbers: dict[str, Tensor]
    outputs: Outputs | None


@dataclass(frozen=True)
class Ending:
    """How the model ends. With `chunk`, so many tokens of each rank go through projection and loss at a time; without,
    all of a microbatch's.
    """

    objective: Objective
    split: ContextSplit
    chunk: int | None


class Head:
    """Final norm, output projection, the objective. On the embedding's stage a tied head uses its weight."""

    def __init__(self, model: ModelConfig, shards: Shards, region: Region, tied: Shards | None, ending: Ending):
        self.model, self.region, self.ending = model, region, ending
        self.shards = (shards,) if tied is None else (shards, tied)
        self.norm: Weight = shards.weights[-1]
        self.projection: Weight = shards.weights[0] if tied is None else tied.weights[0]
        self.recompute: Recompute = "none"

    def logits(self, x: Tensor) -> Tensor:
        """Local logits [T, B, V/tp]."""
        return self._project(self._hidden(x))

    def forward(self, x: Tensor, batch: Microbatch) -> End:
        """The microbatch's share of the objective, and what is reported of it."""
        objective, chunk, seen = self.ending.objective, self.ending.chunk, (batch.sequences, batch.denominators)
        h, trains = self._hidden(x), x.requires_grad
        # One pass is for whom loss and log-sum are enough.
        one_pass = trains and chunk is not None and objective.statistics is LOSS
        weights = objective.token_weights(*seen) if one_pass else None
        if weights is None or chunk is None:
            per_token, gradient = self._per_token(h, batch.labels), None
        else:
            per_token, gradient = self._with_gradient(h, batch, weights, chunk)
        whole = whole_sequences(per_token, self.ending.split, "head.outputs")
        outputs = Outputs(*whole)
        scalar, numbers = objective.loss(outputs, *seen)
        root = scalar if weights is None else h
        return End(root, gradient, Made(numbers, None if trains else outputs))

    def _hidden(self, x: Tensor) -> Tensor:
        h, temperature = norm(x, self.norm, self.model.rms_norm_eps)[0], self.ending.objective.temperature
        return h if temperature == 1 else h / temperature

    def _project(self, h: Tensor) -> Tensor:
        return enter_linear(h, self.projection, self.region, "head.enter")

    def _per_token(self, h: Tensor, labels: Tensor) -> Tensor:
        """(log-probability, log-sum, ..) [n, T, B], which autograd differentiates."""
        chunk = self.ending.chunk
        if chunk is None:
            vocabulary = Vocabulary(self.model.vocab_size, self.region.tensor, self.projection.kernels)
            statistics = self.ending.objective.statistics
            loss, *others = vocabulary_cross_entropy(self._project(h), labels, vocabulary, statistics)
        else:
            loss, *others = linear_cross_entropy(h, labels, self._in_chunks(chunk))
        return torch.stack([-loss, *others])

    @torch.no_grad()
    def _with_gradient(
        self, h: Tensor, batch: Microbatch, weights: tuple[Tensor, Tensor], chunk: int
    ) -> tuple[Tensor, Tensor]:
        """The same without a graph, and the gradient of h, where it is known what each token counts."""
        own = [batch.own(weight) for weight in weights]
        loss, log_sum, gradient = linear_cross_entropy_with_gradients(h, batch.labels, self._in_chunks(chunk), own)
        return torch.stack([-loss, log_sum]), gradient

    def _in_chunks(self, chunk: int) -> ChunkedProjection:
        statistics = self.ending.objective.statistics
        return projection_of(self.projection, self.model.vocab_size, self.region, chunk, statistics)
