"""Attention that remembers: keys and values of all positions so far, in blocks that any sequence may have.

Shapes: T new tokens of all rows, G key-value heads of this rank, R query heads a key-value head, D head dimension; M
blocks of a table with `size` positions each. A layer's memory is [blocks, size, 2 G D], each position's keys and values
together: a new token is one row of it and a block one piece, and the blocks of a table are copied piece by piece.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_lite.config import ModelConfig
from megatron_lite.inference.new_tokens import Form, Group, NewTokens
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
        """What the block's transform takes: how packed queries and keys turn, and attention with a memory. Tokens are
        [T, 1, ..].
        """
        angles = Angles(self.angles.cos, self.angles.sin, new.positions)
        turn = partial(rotate, angles=angles, queries=block.queries, head_dim=block.model.head_dim,
                       kernels=block.kernels)  # fmt: skip
        return turn, partial(self._attend, block=block, new=new)

    def _attend(self, qkv: Tensor, block: Block, new: NewTokens) -> Tensor:
        """Store all new keys and values, then attend: a row may see blocks that another row fills in this step."""
        memory = self.memories[block]
        packed = unpack(qkv, block.model.head_dim, block.queries).squeeze(1)  # [T, G, R + 2, D]
        q, kv = packed.split([block.queries, 2], 2)
        memory.flatten(0, 1).index_copy_(0, new.slots, kv.flatten(1))
        parts = [_attended(q[group.tokens], kv[group.tokens], block, group, memory) for group in new.groups]
        return torch.cat(parts).unsqueeze(1)


def _attended(q: Tensor, kv: Tensor, block: Block, group: Group, memory: Tensor) -> Tensor:
    """A group's q [N T, G, R, D] and new keys and values [N T, G, 2, D] -> [N T, G R D]."""
    rows = q.unflatten(0, (group.rows, -1))  # [N, T, G, R, D]
    if group.tables is None:
        keys, values = kv.unflatten(0, (group.rows, -1)).permute(3, 0, 2, 1, 4)  # [N, G, T, D]
        output, _ = block.kernels.attention(rows.permute(0, 2, 3, 1, 4), keys, values, True, None)
        return output.transpose(1, 2).flatten(2).flatten(0, 1)
    found = memory.index_select(0, group.tables)  # [N M, size, 2 G D]
    keys, values = found.view(group.rows, -1, *kv.shape[1:]).permute(3, 0, 2, 1, 4)  # [N, G, M size, D]
    # A key-value head's R queries are like R tokens: its keys need not be repeated for them.
    tokens = rows.transpose(1, 2).flatten(2, 3)
    output = F.scaled_dot_product_attention(tokens, keys, values, attn_mask=group.visible)
    return output.unflatten(2, (-1, block.queries)).transpose(1, 2).flatten(2).flatten(0, 1)


def _memory(block: Block, sizes: Sizes, numerics: Numerics) -> Tensor:
    """[blocks, size, 2 G D], still zero."""
    heads = block.model.num_key_value_heads // block.region.tensor.size
    size = (sizes.blocks, sizes.block, 2 * heads * block.model.head_dim)
    return torch.zeros(size, dtype=numerics.compute, device=numerics.device)
