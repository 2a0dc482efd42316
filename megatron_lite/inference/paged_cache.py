"""Attention that remembers: keys and values of all positions so far, in blocks that any sequence may have.

Shapes: T new tokens of all rows, G key-value heads of this rank, R query heads a key-value head, D head dimension; M
blocks of a table with `size` positions each. A layer's keys are [G, blocks, size D]: one index gives a head's part of
whole blocks, and what it gives is in order without a second copy.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_lite.config import ModelConfig
from megatron_lite.inference.new_tokens import Form, Group, NewTokens
from megatron_lite.inference.scheduler import Sizes
from megatron_lite.model.operations import Angles, angles_of, join_heads, rotate, unpack
from megatron_lite.model.transformer import Block, Projection
from megatron_lite.parallel.context import parts_of
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
        angles = Angles(self.angles.cos, self.angles.sin, new.positions.unsqueeze(1).to(torch.int32))
        turn = partial(rotate, angles=angles, queries=block.queries, head_dim=block.model.head_dim,
                       kernels=block.kernels)  # fmt: skip
        return turn, partial(self._attend, block=block, new=new)

    def _attend(self, qkv: Tensor, block: Block, new: NewTokens) -> Tensor:
        """Store all new keys and values, then attend: a row may see blocks that another row fills in this step."""
        memory = self.memories[block]
        _, *new_ones = parts_of(unpack(qkv, block.model.head_dim, block.queries))
        for kept, ones in zip(memory, new_ones, strict=True):
            kept.view(*kept.shape[:1], -1, block.model.head_dim).index_copy_(1, new.slots, ones.squeeze(0))
        return torch.cat([_attended(qkv[group.tokens], block, group, memory) for group in new.groups])


def _attended(qkv: Tensor, block: Block, group: Group, memory: tuple[Tensor, Tensor]) -> Tensor:
    """Packed [N T, 1, G (R + 2) D] of a group -> [N T, 1, G R D]."""
    rows = qkv.view(group.rows, -1, qkv.shape[-1]).transpose(0, 1)
    q, *new_ones = parts_of(unpack(rows, block.model.head_dim, block.queries))  # q [N, G, R, T, D]
    if group.tables is None:
        output, _ = block.kernels.attention(q, *new_ones, True, None)
    else:
        keys, values = (_of_tables(kept, group.tables, group.rows, q.shape[-1]) for kept in memory)
        # A key-value head's R queries are like R tokens: its keys need not be repeated for them.
        tokens = q.transpose(2, 3).flatten(2, 3)
        output = F.scaled_dot_product_attention(tokens, keys, values, attn_mask=group.visible)
        output = output.unflatten(2, (-1, block.queries)).transpose(2, 3).flatten(1, 2)
    return join_heads(output).transpose(0, 1).flatten(0, 1).unsqueeze(1)


def _of_tables(kept: Tensor, tables: Tensor, rows: int, head_dim: int) -> Tensor:
    """[G, blocks, size D] -> [N, G, M size, D] of the tables int64 [N M]."""
    return kept.index_select(1, tables).view(len(kept), rows, -1, head_dim).transpose(0, 1)


def _memory(block: Block, sizes: Sizes, numerics: Numerics) -> tuple[Tensor, Tensor]:
    """(keys, values), still zero."""
    model = block.model
    size = (model.num_key_value_heads // block.region.tensor.size, sizes.blocks, sizes.block * model.head_dim)
    keys, values = (torch.zeros(size, dtype=numerics.compute, device=numerics.device) for _ in range(2))
    return keys, values
