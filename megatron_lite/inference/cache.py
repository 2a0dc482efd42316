"""Attention that remembers: keys and values of all positions so far, so that a new token costs one position.

Shapes: T new positions, B sequences, G key-value heads of this rank, D head dimension, C positions that fit into the
cache. Sequences may have different lengths: each new token brings its own position, and a position's slot in the cache
is the position itself. What lies in the slots past a sequence's end is overwritten before anything attends to it.
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_lite.config import ModelConfig
from megatron_lite.model.operations import Angles, angles_of, join_heads, rotate, unpack
from megatron_lite.model.transformer import Block, Projection
from megatron_lite.parallel.context import parts_of
from megatron_lite.parallel.pipeline.stage import Stage


@dataclass(frozen=True)
class Slice:
    """What all blocks share in one forward pass.

    positions [B, T]; their angles; `end` slots of the cache are in use; visible [B, 1, T, end].
    """

    positions: Tensor
    angles: Angles
    end: int
    visible: Tensor


def slice_of(positions: Tensor, end: int, model: ModelConfig, dtype: torch.dtype) -> Slice:
    """Of new tokens at `positions` int64 [B, T], all of them below `end`."""
    slots = torch.arange(end, device=positions.device)
    return Slice(
        positions,
        angles_of(positions.t(), end, model, dtype),
        end,
        slots <= positions[:, None, :, None],
    )


class Cache:
    """Keys and values of this rank's heads in every block of its stage, each [B, G, C, D]."""

    def __init__(self, stage: Stage, batch: int, capacity: int):
        self.blocks = {unit: _memory(unit, batch, capacity) for unit in stage.units if isinstance(unit, Block)}

    def attention(self, block: Block, new: Slice) -> tuple[Projection, Projection]:
        """What the block's transform takes: how packed queries and keys turn, and attention with a memory."""
        turn = partial(rotate, angles=new.angles, queries=block.queries, head_dim=block.model.head_dim,
                       kernels=block.kernels)  # fmt: skip
        return turn, partial(self._attend, block=block, new=new)

    def _attend(self, qkv: Tensor, block: Block, new: Slice) -> Tensor:
        """Store the new positions' keys and values, then attend to what each position sees."""
        keys, values = self.blocks[block]
        q, k, v = parts_of(unpack(qkv, block.model.head_dim, block.queries))
        row = torch.arange(len(new.positions), device=qkv.device)[:, None]
        keys[row, :, new.positions] = k.transpose(1, 2)
        values[row, :, new.positions] = v.transpose(1, 2)
        seen = (keys[:, :, : new.end], values[:, :, : new.end])
        q = q.flatten(1, 2)
        return join_heads(F.scaled_dot_product_attention(q, *seen, attn_mask=new.visible, enable_gqa=True))


def _memory(block: Block, batch: int, capacity: int) -> tuple[Tensor, Tensor]:
    """(keys, values), still zero."""
    model, numerics = block.model, block.shards[0].numerics
    size = (batch, model.num_key_value_heads // block.region.tensor.size, capacity, model.head_dim)
    keys, values = (torch.zeros(size, dtype=numerics.compute, device=numerics.device) for _ in range(2))
    return keys, values
