"""Attention that remembers: keys and values of all positions so far, in blocks that any sequence may have.

Shapes: T new tokens of all rows, G key-value heads of this rank, R query heads a key-value head, D head dimension.
"""

from functools import partial

import torch
from torch import Tensor

from megatron_lite.config import ModelConfig
from megatron_lite.inference.new_tokens import Form, NewTokens
from megatron_lite.inference.paged_attention import attended, turn_and_store
from megatron_lite.inference.scheduler import Sizes
from megatron_lite.model.operations import Angles, angles_of, rotate, unpack
from megatron_lite.model.transformer import Block, Projection
from megatron_lite.parallel.pipeline.stage import Stage
from megatron_lite.parallel.weights import Numerics


def cache_bytes(model: ModelConfig, tensor: int, layers: int, sizes: Sizes, itemsize: int) -> int:
    """Keys and values on a rank of a stage with so many layers, on so many tensor ranks."""
    heads = model.num_key_value_heads // tensor
    return 2 * layers * heads * sizes.blocks * sizes.block * model.head_dim * itemsize


class PagedCache:
    """Keys and values of this rank's heads in every block of its stage. `longest` is how long a sequence may get."""

    def __init__(self, stage: Stage, model: ModelConfig, sizes: Sizes, numerics: Numerics, longest: int):
        blocks = [unit for unit in stage.units if isinstance(unit, Block)]
        self.memories = {unit: _memory(unit, sizes, numerics) for unit in blocks}
        queries = model.num_attention_heads // model.num_key_value_heads
        self.form = Form(sizes.block, queries, numerics.compute, numerics.device)
        none = torch.empty((0, 1), dtype=torch.int64, device=numerics.device)
        self.angles = angles_of(none, longest, model, numerics.compute)  # the tables

    def attention(self, block: Block, new: NewTokens) -> tuple[Projection, Projection]:
        """What the block's transform takes: how packed queries and keys turn, which stores them, and attention with a
        memory. Tokens are [T, 1, ..].
        """
        angles = Angles(self.angles.cos, self.angles.sin, new.positions)
        place = partial(self._place, block=block, new=new, angles=angles)
        return place, partial(self._attend, block=block, new=new)

    def _place(self, qkv: Tensor, block: Block, new: NewTokens, angles: Angles) -> Tensor:
        """Turn and store all new keys and values before any attend: a row may see blocks that another row fills in this
        step.
        """
        memory, packed = self.memories[block], self._unpacked(qkv, block)
        if self.form.in_place:
            turn_and_store(packed, angles, new.slots, memory)
            return qkv
        qkv = rotate(qkv, angles, block.queries, block.model.head_dim, block.kernels)
        memory.flatten(0, 1).index_copy_(0, new.slots, packed[:, :, -2:].flatten(1))
        return qkv

    def _attend(self, qkv: Tensor, block: Block, new: NewTokens) -> Tensor:
        memory, packed = self.memories[block], self._unpacked(qkv, block)
        parts = [attended(packed[group.tokens], memory, group, block.kernels) for group in new.groups]
        return torch.cat(parts).unsqueeze(1)

    @staticmethod
    def _unpacked(qkv: Tensor, block: Block) -> Tensor:
        """[T, 1, G (R + 2) D] -> [T, G, R + 2, D]."""
        return unpack(qkv, block.model.head_dim, block.queries).squeeze(1)


def _memory(block: Block, sizes: Sizes, numerics: Numerics) -> Tensor:
    """[blocks, size, 2 G D], still zero."""
    heads = block.model.num_key_value_heads // block.region.tensor.size
    size = (sizes.blocks, sizes.block, 2 * heads * block.model.head_dim)
    return torch.zeros(size, dtype=numerics.compute, device=numerics.device)
