"""Attention that remembers: keys and values of all positions so far, so that a new token costs one position.

Shapes: T new positions, B sequences, G key-value heads, D head dimension, C the cache's capacity in positions.
Sequences may have different lengths: each new token brings its own position, and a position's slot in the cache is the
position itself. What lies in the slots past a sequence's end is overwritten before anything attends to it.
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_lite.config import ModelConfig
from megatron_lite.model.operations import Rotary, join_heads, rotary, split_heads


@dataclass(frozen=True)
class Slice:
    """What all blocks share in one forward pass.

    positions [B, T]; rope's angles [T, B, 1, R + 2, D]; `end` slots of the cache are in use; visible [B, 1, T, end].
    """

    positions: Tensor
    rope: Rotary
    end: int
    visible: Tensor


def slice_of(positions: Tensor, end: int, model: ModelConfig, dtype: torch.dtype) -> Slice:
    """Of new tokens at `positions` int64 [B, T], all of them below `end`."""
    queries = model.num_attention_heads // model.num_key_value_heads
    slots = torch.arange(end, device=positions.device)
    return Slice(
        positions,
        rotary(positions.t(), model.head_dim, queries, model.rope_theta, dtype),
        end,
        slots <= positions[:, None, :, None],
    )


class Cache:
    """Keys and values of every block, each [B, G, C, D]."""

    def __init__(self, model: ModelConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device):
        size = (batch, model.num_key_value_heads, capacity, model.head_dim)
        self.model = model
        self.blocks = [
            tuple(torch.zeros(size, dtype=dtype, device=device) for _ in ("keys", "values"))
            for _ in range(model.num_hidden_layers)
        ]

    def attention(self, block: int, new: Slice):
        """What `Block.transform` takes: packed QKV [T, B, G (R + 2) D] -> [T, B, G R D]."""
        return partial(self._attend, block=block, new=new)

    def _attend(self, qkv: Tensor, block: int, new: Slice) -> Tensor:
        """Store the new positions' keys and values, then attend to what each position sees."""
        keys, values = self.blocks[block]
        queries = self.model.num_attention_heads // self.model.num_key_value_heads
        q, k, v = split_heads(qkv, self.model.head_dim, queries, new.rope)
        row = torch.arange(len(new.positions), device=qkv.device)[:, None]
        keys[row, :, new.positions] = k.transpose(1, 2)
        values[row, :, new.positions] = v.transpose(1, 2)
        seen = (keys[:, :, : new.end], values[:, :, : new.end])
        return join_heads(F.scaled_dot_product_attention(q, *seen, attn_mask=new.visible, enable_gqa=True))
