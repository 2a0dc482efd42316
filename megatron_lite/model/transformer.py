"""The decoder-only transformer, written once for every layout.

    Embedding -> Block x layers -> Head          each a unit: what ZeRO gathers, recomputes and walks over at once

A unit's weights may lie in several shards, those that are trained and those that are frozen; it knows them by name.
Between units activations are [T/tp, B, H] under sequence parallelism, [T, B, H] without. A block's four collectives
stand in its four products: enter, leave, enter, leave (parallel/tensor.py). What each line takes and keeps in memory is
told line by line in planning/unit_memory.py.
"""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from megatron_lite.config import LoraConfig, ModelConfig, Recompute
from megatron_lite.model.adapters import Entering, Leaving, adapters_of
from megatron_lite.model.batch import Microbatch
from megatron_lite.model.noise import noisy
from megatron_lite.model.operations import (
    AttentionMetadata,
    add_norm,
    causal_attention,
    head_norm,
    norm_and_residual,
    rotate,
    swiglu,
    unpack,
)
from megatron_lite.model.sequences import Draws
from megatron_lite.parallel.tensor import Core, Region
from megatron_lite.parallel.vocabulary import vocabulary_embedding
from megatron_lite.parallel.zero import Shards, weights_by_name

Projection = Callable[[Tensor], Tensor]


class Embedding:
    """Token embedding, split over the vocabulary; with `alpha` in training noisy, as NEFTune has it."""

    def __init__(self, shards: Sequence[Shards], region: Region, alpha: float | None):
        self.shards, self.region, self.alpha = tuple(shards), region, alpha
        self.embed = weights_by_name(shards)["embed"]
        self.recompute: Recompute = "none"

    def forward(self, x: Tensor, batch: Microbatch) -> Tensor:
        embedded = vocabulary_embedding(batch.tokens, self.embed, self.region, anchor=x)
        if self.alpha is None or batch.draws is None:
            return embedded
        own = Draws(self.region.own(batch.draws.keys), self.region.own(batch.draws.lengths))
        return noisy(embedded, own, self.alpha, self.embed.local.packs[0].logical.name)


class Block:
    """Pre-norm attention and SwiGLU, each added to its input (Llama, arXiv 2302.13971, section 2.2)."""

    def __init__(self, model: ModelConfig, shards: Sequence[Shards], region: Region, recompute: Recompute,
                 lora: LoraConfig | None):  # fmt: skip
        self.model, self.shards, self.region, self.recompute = model, tuple(shards), region, recompute
        self.kernels = self.shards[0].numerics.kernels
        self.queries = model.num_attention_heads // model.num_key_value_heads  # of a key-value head
        weights = weights_by_name(shards)
        adapter = adapters_of(weights, lora).get
        in_qkv = partial(queries_keys_values, head_dim=model.head_dim, queries=self.queries)
        self.qkv = Entering(weights["qkv"], [adapter(f"{n}_proj") for n in "qkv"], in_qkv)
        self.o = Leaving(weights["o"], adapter("o_proj"), recompute)
        self.gate_up = Entering(weights["gate_up"], [adapter("gate_proj"), adapter("up_proj")], gate_and_up)
        self.down = Leaving(weights["down"], adapter("down_proj"), recompute)
        self.head_norms = (weights["q_norm"], weights["k_norm"]) if model.qk_norm else None
        self.attention_norm, self.mlp_norm = weights["attention_norm"], weights["mlp_norm"]

    def forward(self, x: Tensor, batch: Microbatch) -> Tensor:
        rotate = partial(self._rotate, metadata=batch.attention)
        attention = partial(self._attention, metadata=batch.attention)
        return self.transform(x, rotate, attention, None if batch.draws is None else batch.draws.keys)

    def transform(self, x: Tensor, rotate: Projection, attention: Core, keys: Tensor | None = None) -> Tensor:
        """The block around any attention; generation passes one with a cache.

        `rotate` turns packed queries and keys by their positions, in place; `attention` takes [T, B, packed QKV] to
        [T, B, heads D] and may run twice, when it is recomputed. keys: int64 [T, B], by which adapters' dropout is
        drawn (None: there is none).
        """
        region, eps = self.region, self.model.rms_norm_eps
        h, x = norm_and_residual(x, self.attention_norm, eps)
        h = self._norm_heads(self.qkv(h, region, "attention.enter", keys))
        h = self.o(rotate(h), attention, region, "attention.leave", keys)
        h, x = add_norm(h, x, self.mlp_norm, eps)
        h = self.gate_up(h, region, "mlp.enter", keys)
        return self.down(h, partial(swiglu, kernels=self.kernels), region, "mlp.leave", keys).add_(x)

    def _norm_heads(self, qkv: Tensor) -> Tensor:
        if self.head_norms is None:
            return qkv
        return head_norm(qkv, self.head_norms, self.queries, self.model.head_dim, self.model.rms_norm_eps)

    def _rotate(self, qkv: Tensor, metadata: AttentionMetadata) -> Tensor:
        return rotate(qkv, metadata.angles, self.queries, self.model.head_dim, self.kernels)

    def _attention(self, qkv: Tensor, metadata: AttentionMetadata) -> Tensor:
        return causal_attention(qkv, self.model.head_dim, self.queries, metadata, self.kernels)


def queries_keys_values(qkv: Tensor, head_dim: int, queries: int) -> Sequence[Tensor]:
    """[T, B, G (R + 2) D] -> [T, B, G, R or 1, D] each."""
    return unpack(qkv, head_dim, queries).split([queries, 1, 1], dim=3)


def gate_and_up(packed: Tensor) -> Sequence[Tensor]:
    """[.., 2 F] -> [.., F] each."""
    return packed.chunk(2, -1)
