"""How the model ends: a projection onto the vocabulary, or onto one number a token. What is made of either is chosen by
the objective that comes with the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_lite.config import ModelConfig, Recompute
from megatron_lite.model.batch import Microbatch
from megatron_lite.model.objective import TokenObjective
from megatron_lite.model.operations import norm_and_residual
from megatron_lite.model.outputs import Made, Outputs, Values
from megatron_lite.parallel.context import ContextSplit, whole_sequences
from megatron_lite.parallel.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_with_gradients,
    projection_of,
)
from megatron_lite.parallel.pipeline.stage import End
from megatron_lite.parallel.statistics import LOSS, Statistics
from megatron_lite.parallel.tensor import Region, enter_linear, outside_linear
from megatron_lite.parallel.vocabulary import Vocabulary, vocabulary_cross_entropy
from megatron_lite.parallel.zero import Shards, weights_by_name


@dataclass(frozen=True)
class Ending:
    """How the model ends. With `chunk`, so many tokens of each rank go through projection and loss at a time; without,
    all of a microbatch's.
    """

    region: Region
    split: ContextSplit
    chunk: int | None


class Head:
    """Final norm, output projection, a token objective. On the embedding's stage a tied head uses its weight."""

    def __init__(self, model: ModelConfig, shards: Sequence[Shards], ending: Ending):
        self.model, self.shards, self.ending = model, tuple(shards), ending
        weights = weights_by_name(shards)
        self.norm = weights["norm"]
        self.projection = weights["embed" if model.tie_word_embeddings else "lm_head"]
        self.recompute: Recompute = "none"

    def logits(self, x: Tensor) -> Tensor:
        """Local logits [T, B, V/tp]."""
        return self._project(self.hidden(x, 1.0))

    def forward(self, x: Tensor, batch: Microbatch) -> End:
        """The microbatch's share of the objective, and what is reported of it."""
        objective, chunk, seen = batch.objective, self.ending.chunk, (batch.sequences, batch.denominators)
        if not isinstance(objective, TokenObjective):
            raise TypeError(f"{type(objective).__name__} is no objective over a vocabulary, as this model's head needs")
        h, trains = self.hidden(x, objective.temperature), x.requires_grad
        # One pass is for whom loss and log-sum are enough.
        one_pass = trains and chunk is not None and objective.statistics is LOSS
        weights = objective.token_weights(*seen) if one_pass else None
        if weights is None or chunk is None:
            per_token, gradient = self.per_token(h, batch.labels, objective.statistics), None
        else:
            per_token, gradient = self._with_gradient(h, batch, weights, chunk)
        outputs = Outputs(*whole_sequences(per_token, self.ending.split, "head.outputs"))
        scalar, numbers = objective.loss(outputs, *seen)
        root = scalar if weights is None else h
        return End(root, gradient, Made(numbers, None if trains else outputs))

    def per_token(self, h: Tensor, labels: Tensor, statistics: Statistics) -> Tensor:
        """(log-probability, log-sum, ..) [n, T, B] of what `hidden` gives, which autograd differentiates."""
        chunk, size, projection = self.ending.chunk, self.model.vocab_size, self.projection
        if chunk is None:
            vocabulary = Vocabulary(size, self.ending.region.tensor, projection.kernels)
            loss, *others = vocabulary_cross_entropy(self._project(h), labels, vocabulary, statistics)
        else:
            in_chunks = projection_of(projection, size, self.ending.region, chunk, statistics)
            loss, *others = linear_cross_entropy(h, labels, in_chunks)
        return torch.stack([-loss, *others])

    def hidden(self, x: Tensor, temperature: float) -> Tensor:
        """What is projected."""
        h = norm_and_residual(x, self.norm, self.model.rms_norm_eps)[0]
        return h if temperature == 1 else h / temperature

    def _project(self, h: Tensor) -> Tensor:
        return enter_linear(h, self.projection, self.ending.region, "head.enter")

    @torch.no_grad()
    def _with_gradient(
        self, h: Tensor, batch: Microbatch, weights: tuple[Tensor, Tensor], chunk: int
    ) -> tuple[Tensor, Tensor]:
        """The same without a graph, and the gradient of h, where it is known what each token counts."""
        own = [batch.own(weight) for weight in weights]
        in_chunks = projection_of(self.projection, self.model.vocab_size, self.ending.region, chunk)
        loss, log_sum, gradient = linear_cross_entropy_with_gradients(h, batch.labels, in_chunks, own)
        return torch.stack([-loss, log_sum]), gradient


class ScalarHead:
    """Final norm and one number a token, in float32: what reward models and critics end with."""

    def __init__(self, model: ModelConfig, shards: Sequence[Shards], ending: Ending):
        self.model, self.shards, self.ending = model, tuple(shards), ending
        weights = weights_by_name(shards)
        self.norm, self.score = weights["norm"], weights["score"]
        self.recompute: Recompute = "none"

    def forward(self, x: Tensor, batch: Microbatch) -> End:
        """The microbatch's share of the objective, and what is reported of it."""
        if isinstance(batch.objective, TokenObjective):
            raise TypeError(f"{type(batch.objective).__name__} is an objective over a vocabulary: this model has none")
        h = norm_and_residual(x, self.norm, self.model.rms_norm_eps)[0]
        value = outside_linear(h, self.score, self.ending.region, "head.values").squeeze(-1)
        outputs = Values(*whole_sequences(value.unsqueeze(0), self.ending.split, "head.outputs"))
        scalar, numbers = batch.objective.loss(outputs, batch.sequences, batch.denominators)
        return End(scalar, None, Made(numbers, None if x.requires_grad else outputs))
