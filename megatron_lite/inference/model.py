"""A trained model on one process, for generating: the training's own units, weights alone, gathered once for good."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron_lite.checkpoint import Checkpoint, load_weights
from megatron_lite.config import Config, config_from_tree, resolve
from megatron_lite.errors import DataError, UsageError
from megatron_lite.inference.cache import Cache, slice_of
from megatron_lite.kernels.choice import kernels_of
from megatron_lite.mesh import Mesh
from megatron_lite.model.build import build_stage, choice_of
from megatron_lite.model.freezing import NOTHING
from megatron_lite.model.heads import Head
from megatron_lite.model.transformer import Block, Embedding
from megatron_lite.parallel.pipeline.stage import Stage
from megatron_lite.parallel.vocabulary import vocabulary_embedding

# Weights are gathered once for good. Selective recomputation makes a block run its attention outside autograd, where it
# may write into a cache.
ALONE = {"zero_regather": "step", "recompute": "selective"}


@dataclass(frozen=True)
class LanguageModel:
    """Logits of the next token. Tokens outside, positions and caches are [B, ...]."""

    config: Config
    stage: Stage
    dtype: torch.dtype
    device: torch.device

    @property
    def longest(self) -> int:
        """Positions that training saw; past them rotary angles are new to the model."""
        return self.config.train.sequence_length

    def new_cache(self, batch: int, capacity: int) -> Cache:
        return Cache(self.config.model, batch, capacity, self.dtype, self.device)

    @torch.no_grad()
    def next_logits(self, tokens: Tensor, positions: Tensor, last: Tensor, end: int, cache: Cache) -> Tensor:
        """New tokens int64 [B, T] at `positions` [B, T] -> logits [B, V] after the new token `last[b]` of each row.

        V is the vocabulary without its padding. `end` lies past all positions. What comes before the new tokens must be
        in the cache, which then holds them too.
        """
        embedding, blocks, head = _parts(self.stage)
        new = slice_of(positions, end, self.config.model, self.dtype)
        x = vocabulary_embedding(tokens.t().contiguous(), embedding.embed, embedding.region, anchor=None)
        for number, block in enumerate(blocks):
            x = block.transform(x, *cache.attention(block, number, new))
        x = x[last, torch.arange(len(last), device=x.device)]
        return head.logits(x.unsqueeze(0)).squeeze(0)[:, : self.config.model.vocab_size]


def _parts(stage: Stage) -> tuple[Embedding, list[Block], Head]:
    """The units of a stage that holds the whole model."""
    embedding, *blocks, head = stage.units
    between = [block for block in blocks if isinstance(block, Block)]
    if not (isinstance(embedding, Embedding) and isinstance(head, Head) and len(between) == len(blocks)):
        raise TypeError("a stage that is not the whole model: an embedding, blocks, a head")
    return embedding, between, head


def load_model(checkpoint: Checkpoint, mesh: Mesh) -> LanguageModel:
    """The checkpoint's model in the dtype it was trained in. `mesh` is one process. Raises DataError."""
    config = single_process_config(checkpoint.index.config)
    resolved = resolve(config, world_size=1)
    kernels = kernels_of(choice_of(config, mesh.device.type))
    stage = build_stage(config, resolved, mesh, kernels, NOTHING)
    load_weights(checkpoint, config.model, stage, mesh)
    for shards in stage.shards:
        shards.wait_gather()
    return LanguageModel(config, stage, getattr(torch, resolved.compute_dtype), mesh.device)


def single_process_config(tree: Mapping[str, Any]) -> Config:
    """A run's configuration with one process for its layout, and auto for kernels that another machine may lack."""
    try:
        config = config_from_tree({**tree, "parallel": ALONE})
    except UsageError as error:
        raise DataError(f"the checkpoint's configuration cannot be used here: {error}") from None
    backend = "torch" if config.kernels.backend == "torch" else "auto"
    kernels = config.kernels.model_copy(update={"backend": backend, "attention": "auto"})
    return config.model_copy(update={"kernels": kernels, "optim": config.optim.model_copy(update={"backend": "auto"})})
