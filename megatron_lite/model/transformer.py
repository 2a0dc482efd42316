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

from megatron_lite.config import ModelConfig, Recompute
from megatron_lite.model.batch import Microbatch
from megatron_lite.model.operations import (
    AttentionMetadata,
    add_norm,
    causal_attention,
    head_norm,
    norm_and_residual,
    rotate,
    swiglu,
)
from megatron_lite.parallel.tensor import Region, enter_linear, linear_leave, recomputed_linear_leave
from megatron_lite.parallel.vocabulary import vocabulary_embedding
from megatron_lite.parallel.zero import Shards, weights_by_name

Projection = Callable[[Tensor], Tensor]


class Embedding:
    """Token embedding, split over the vocabulary."""

    def __init__(self, shards: Sequence[Shards], region: Region):
        self.shards, self.region = tuple(shards), region
        self.embed = weights_by_name(shards)["embed"]
        self.recompute: Recompute = "none"

    def forward(self, x: Tensor, batch: Microbatch) -> Tensor:
        return vocabulary_embedding(batch.tokens, self.embed, self.region, anchor=x)


class Block:
    """Pre-norm attention and SwiGLU, each added to its input (Llama, arXiv 2302.13971, section 2.2)."""

    def __init__(self, model: ModelConfig, shards: Sequence[Shards], region: Region, recompute: Recompute):
        self.model, self.shards, self.region, self.recompute = model, tuple(shards), region, recompute
        self.kernels = self.shards[0].numerics.kernels
        self.queries = model.num_attention_heads // model.num_key_value_heads  # of a key-value head
        weights = weights_by_name(shards)
        self.qkv, self.o, self.gate_up, self.down = (weights[name] for name in ("qkv", "o", "gate_up", "down"))
        self.head_norms = (weights["q_norm"], weights["k_norm"]) if model.qk_norm else None
        self.leave = recomputed_linear_leave if recompute == "selective" else linear_leave
        self.attention_norm, self.mlp_norm = weights["attention_norm"], weights["mlp_norm"]

    def forward(self, x: Tensor, batch: Microbatch) -> Tensor:
        return self.transform(
            x, partial(self._rotate, metadata=batch.attention), partial(self._attention, metadata=batch.attention)
        )

    def transform(self, x: Tensor, rotate: Projection, attention: Projection) -> Tensor:
        """The block around any attention; generation passes one with a cache.

        `rotate` turns packed queries and keys by their positions, in place; `attention` takes [T, B, packed QKV] to
        [T, B, heads D] and may run twice, when it is recomputed.
        """
        region, eps = self.region, self.model.rms_norm_eps
        h, x = norm_and_residual(x, self.attention_norm, eps)
        h = rotate(self._project(h))
        h = self.leave(h, attention, self.o, region, "attention.leave")
        h, x = add_norm(h, x, self.mlp_norm, eps)
        h = enter_linear(h, self.gate_up, region, "mlp.enter")
        return self.leave(h, partial(swiglu, kernels=self.kernels), self.down, region, "mlp.leave").add_(x)

    def _project(self, h: Tensor) -> Tensor:
        """Packed queries, keys and values, [T, B, G (R + 2) D]."""
        qkv = enter_linear(h, self.qkv, self.region, "attention.enter")
        if self.head_norms is None:
            return qkv
        return head_norm(qkv, self.head_norms, self.queries, self.model.head_dim, self.model.rms_norm_eps)

    def _rotate(self, qkv: Tensor, metadata: AttentionMetadata) -> Tensor:
        return rotate(qkv, metadata.angles, self.queries, self.model.head_dim, self.kernels)

    def _attention(self, qkv: Tensor, metadata: AttentionMetadata) -> Tensor:
        return causal_attention(qkv, self.model.head_dim, self.queries, metadata, self.kernels)
